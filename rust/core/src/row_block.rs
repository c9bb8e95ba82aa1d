//! A block of row pairs: the loops that [`simd`](crate::simd) compiles, and the exact way round for odd rows.

use crate::load::{F32, LANES, Load, as_bf16, as_f16};
use crate::row_stats::{Dtype, Row};

/// Values added in `f32` before a sum goes on in `f64`: at most 32 additions to a lane, an error below 2e-6.
const SEGMENT: usize = 32 * LANES;

/// Sums of squares in here neither overflowed nor lost what matters to underflow.
const ORDINARY: std::ops::Range<f64> = 1e-25..1e30;

/// What a sweep reads and fills.
pub(crate) struct Block<'a> {
    pub(crate) reference: &'a [&'a [u8]],
    pub(crate) tuned: &'a [&'a [u8]],
    pub(crate) round_to: Option<Dtype>,
    pub(crate) rows: &'a mut [Row],
    pub(crate) scratch: &'a mut Scratch,
}

/// What a thread keeps between blocks.
#[derive(Default)]
pub(crate) struct Scratch {
    rounded: Vec<u8>,
    /// Column sums of the block, of the differences and of their squares; empty when not wanted.
    pub(crate) columns: [Vec<f64>; 2],
    /// The part of them that still is in `f32`.
    partial: [Vec<f32>; 2],
}

impl Scratch {
    pub(crate) fn new(columns: usize) -> Self {
        let partial = [vec![0.0; columns], vec![0.0; columns]];
        Self { rounded: Vec::new(), columns: [vec![0.0; columns], vec![0.0; columns]], partial }
    }
}

/// Fills the rows and the column sums of a block.
#[inline(always)]
pub(crate) fn sweep<R: Load, T: Load>(block: Block<'_>) {
    let Block { reference, tuned, round_to, rows, scratch } = block;
    let columns = !scratch.columns[0].is_empty();
    scratch.columns.iter_mut().for_each(|sums| sums.fill(0.0));
    scratch.partial.iter_mut().for_each(|sums| sums.fill(0.0));
    for ((reference, tuned), row) in reference.iter().zip(tuned).zip(rows) {
        match round_to {
            None | Some(Dtype::F32) => pair::<R, T>(reference, tuned, row, scratch, columns),
            Some(to) => {
                let mut rounded = std::mem::take(&mut scratch.rounded);
                if to == Dtype::F16 {
                    round::<R>(reference, &mut rounded, as_f16);
                } else {
                    round::<R>(reference, &mut rounded, as_bf16);
                }
                pair::<F32, T>(&rounded, tuned, row, scratch, columns);
                scratch.rounded = rounded;
            }
        }
    }
    for (sums, partial) in scratch.columns.iter_mut().zip(&scratch.partial) {
        sums.iter_mut().zip(partial).for_each(|(sum, &part)| *sum += f64::from(part));
    }
}

#[inline(always)]
fn pair<R: Load, T: Load>(
    reference: &[u8],
    tuned: &[u8],
    row: &mut Row,
    scratch: &mut Scratch,
    columns: bool,
) {
    *row = Row::default();
    let mut peak = 0;
    let segments = reference.chunks(SEGMENT * R::SIZE).zip(tuned.chunks(SEGMENT * T::SIZE));
    for (at, (reference, tuned)) in segments.clone().enumerate() {
        let mut sums = Sums::default();
        chunks::<R, T>(reference, tuned, |p, f| sums.add(&p, &f));
        if sums.fold_into(row) {
            peak = at;
        }
    }
    let n = tuned.len() / T::SIZE;
    row.zeros -= (n.next_multiple_of(LANES) - n) as u32; // the filled-up end
    let changed = row.delta_max > 0.0 || row.delta_squared != 0.0;
    if (changed && !ORDINARY.contains(&row.delta_squared)) || !ORDINARY.contains(&row.reference_squared) {
        *row = odd::<R, T>(reference, tuned, columns.then_some(&mut scratch.columns));
        return;
    }
    if changed && let Some((reference, tuned)) = segments.clone().nth(peak) {
        row.delta_argmax = (peak * SEGMENT + position::<R, T>(reference, tuned, row.delta_max)) as u32;
    }
    if columns && changed {
        let [sums, squares] = &mut scratch.partial;
        let (mut sums, mut squares) = (sums.chunks_mut(LANES), squares.chunks_mut(LANES));
        chunks::<R, T>(reference, tuned, |p, f| {
            if let (Some(sums), Some(squares)) = (sums.next(), squares.next()) {
                add_columns(&p, &f, sums, squares);
            }
        });
    }
}

/// Calls `each` on `LANES` values of both rows at a time, the end filled up with zeros.
#[inline(always)]
fn chunks<R: Load, T: Load>(
    reference: &[u8],
    tuned: &[u8],
    mut each: impl FnMut([f32; LANES], [f32; LANES]),
) {
    let references = reference.chunks_exact(LANES * R::SIZE);
    let tuneds = tuned.chunks_exact(LANES * T::SIZE);
    let (p_end, f_end) = (references.remainder(), tuneds.remainder());
    for (p, f) in references.zip(tuneds) {
        each(R::lanes(p), T::lanes(f));
    }
    if !f_end.is_empty() {
        let (mut p, mut f) = ([0; LANES * 4], [0; LANES * 4]);
        p[..p_end.len()].copy_from_slice(p_end);
        f[..f_end.len()].copy_from_slice(f_end);
        each(R::lanes(&p[..LANES * R::SIZE]), T::lanes(&f[..LANES * T::SIZE]));
    }
}

#[derive(Default)]
struct Sums {
    delta_squared: [f32; LANES],
    delta_dot: [f32; LANES],
    reference_squared: [f32; LANES],
    delta_abs: [f32; LANES],
    delta_max: [f32; LANES],
    zeros: [u32; LANES],
}

impl Sums {
    #[inline(always)]
    fn add(&mut self, p: &[f32; LANES], f: &[f32; LANES]) {
        for l in 0..LANES {
            let delta = f[l] - p[l];
            let size = delta.abs();
            // no mul_add: without FMA it is a call into libm, and with it other bits
            self.delta_squared[l] += delta * delta;
            self.delta_dot[l] += delta * p[l];
            self.reference_squared[l] += p[l] * p[l];
            self.delta_abs[l] += size;
            self.delta_max[l] = if size > self.delta_max[l] { size } else { self.delta_max[l] };
            self.zeros[l] += u32::from(delta == 0.0);
        }
    }

    /// Whether the largest difference of the row so far is in here.
    #[inline(always)]
    fn fold_into(self, row: &mut Row) -> bool {
        row.delta_squared += fold(self.delta_squared);
        row.delta_dot += fold(self.delta_dot);
        row.reference_squared += fold(self.reference_squared);
        row.delta_abs += fold(self.delta_abs);
        row.zeros += self.zeros.iter().sum::<u32>();
        let max = self.delta_max.into_iter().fold(0.0, |a, b| if b > a { b } else { a });
        let higher = max > row.delta_max;
        if higher {
            row.delta_max = max;
        }
        higher
    }
}

#[inline(always)]
fn fold(lanes: [f32; LANES]) -> f64 {
    let mut lanes = lanes.map(f64::from);
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
    }
    lanes[0]
}

/// Where the first difference of this size is; it is somewhere.
#[inline(always)]
fn position<R: Load, T: Load>(reference: &[u8], tuned: &[u8], size: f32) -> usize {
    let (mut at, mut found) = (0, None);
    chunks::<R, T>(reference, tuned, |p, f| {
        if found.is_none() {
            let mut hits = 0;
            for l in 0..LANES {
                hits |= u32::from((f[l] - p[l]).abs() == size) << l;
            }
            if hits != 0 {
                found = Some(at + hits.trailing_zeros() as usize);
            }
        }
        at += LANES;
    });
    found.unwrap_or_default()
}

#[inline(always)]
fn add_columns(p: &[f32; LANES], f: &[f32; LANES], sums: &mut [f32], squares: &mut [f32]) {
    // written out for the full width, which a loop over the shorter end would keep from vectorizing
    if let (Ok(sums), Ok(squares)) =
        (<&mut [f32; LANES]>::try_from(&mut *sums), <&mut [f32; LANES]>::try_from(&mut *squares))
    {
        for l in 0..LANES {
            let delta = f[l] - p[l];
            sums[l] += delta;
            squares[l] += delta * delta;
        }
        return;
    }
    for (l, (sum, square)) in sums.iter_mut().zip(squares).enumerate() {
        let delta = f[l] - p[l];
        *sum += delta;
        *square += delta * delta;
    }
}

#[inline(always)]
fn round<R: Load>(row: &[u8], rounded: &mut Vec<u8>, by: impl Fn(f32) -> f32) {
    rounded.resize(row.len() / R::SIZE * 4, 0);
    let mut out = rounded.chunks_mut(LANES * 4);
    chunks::<R, R>(row, row, |values, _| {
        if let Some(out) = out.next() {
            let values = values.map(&by);
            out.chunks_exact_mut(4)
                .zip(values)
                .for_each(|(to, value)| to.copy_from_slice(&value.to_le_bytes()));
        }
    });
}

/// A row whose sums leave the range of `f32`, or that holds what is not finite: slower, in `f64`.
#[inline(never)]
fn odd<R: Load, T: Load>(reference: &[u8], tuned: &[u8], columns: Option<&mut [Vec<f64>; 2]>) -> Row {
    let mut deltas = Vec::with_capacity(tuned.len() / T::SIZE + LANES);
    let mut row = Row::default();
    chunks::<R, T>(reference, tuned, |p, f| {
        for (p, f) in p.into_iter().zip(f) {
            row.reference_squared += f64::from(p) * f64::from(p);
            row.delta_dot += f64::from(f - p) * f64::from(p);
            deltas.push(f - p);
        }
    });
    deltas.truncate(tuned.len() / T::SIZE);
    row.zeros = deltas.iter().filter(|&&delta| delta == 0.0).count() as u32;
    row.non_finite = deltas.iter().filter(|delta| !delta.is_finite()).count() as u32;
    if let Some(first) = deltas.iter().position(|delta| !delta.is_finite()) {
        let nan = f64::NAN;
        (row.delta_squared, row.delta_dot, row.reference_squared, row.delta_abs) = (nan, nan, nan, nan);
        (row.delta_max, row.delta_argmax) = (f32::NAN, first as u32);
        return row;
    }
    for (at, delta) in deltas.iter().enumerate() {
        row.delta_squared += f64::from(*delta) * f64::from(*delta);
        row.delta_abs += f64::from(delta.abs());
        if delta.abs() > row.delta_max {
            (row.delta_max, row.delta_argmax) = (delta.abs(), at as u32);
        }
    }
    if let Some([sums, squares]) = columns {
        for ((sum, square), &delta) in sums.iter_mut().zip(squares).zip(&deltas) {
            *sum += f64::from(delta);
            *square += f64::from(delta) * f64::from(delta);
        }
    }
    row
}
