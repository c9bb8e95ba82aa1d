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
    /// The part of them that still is in `f32`, filled up to whole lanes.
    partial: [Vec<f32>; 2],
}

impl Scratch {
    pub(crate) fn new(columns: usize) -> Self {
        let full = columns.next_multiple_of(LANES);
        Self {
            rounded: Vec::new(),
            columns: [vec![0.0; columns], vec![0.0; columns]],
            partial: [vec![0.0; full], vec![0.0; full]],
        }
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
                let n = tuned.len() / T::SIZE;
                rounded.resize(n.next_multiple_of(LANES) * 4, 0);
                if to == Dtype::F16 {
                    visit::<R, R>(reference, reference, &mut Rounded::<true> { to: &mut rounded });
                } else {
                    visit::<R, R>(reference, reference, &mut Rounded::<false> { to: &mut rounded });
                }
                pair::<F32, T>(&rounded[..n * 4], tuned, row, scratch, columns);
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
        visit::<R, T>(reference, tuned, &mut sums);
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
        let mut position = Position { size: row.delta_max, found: 0 };
        visit::<R, T>(reference, tuned, &mut position);
        row.delta_argmax = (peak * SEGMENT + position.found) as u32;
    }
    if columns && changed {
        let [sums, squares] = &mut scratch.partial;
        visit::<R, T>(reference, tuned, &mut Columns { sums, squares });
    }
}

/// What is done with `LANES` values of both rows. A trait and no closure: a closure is compiled apart, without the
/// vector instructions of its surroundings.
trait Visitor {
    /// `at` is the column of the first. False when no more is wanted.
    fn visit(&mut self, at: usize, p: &[f32; LANES], f: &[f32; LANES]) -> bool;
}

/// Shows both rows, the end filled up with zeros.
#[inline(always)]
fn visit<R: Load, T: Load>(reference: &[u8], tuned: &[u8], visitor: &mut impl Visitor) {
    let references = reference.chunks_exact(LANES * R::SIZE);
    let tuneds = tuned.chunks_exact(LANES * T::SIZE);
    let (p_end, f_end) = (references.remainder(), tuneds.remainder());
    let mut at = 0;
    for (p, f) in references.zip(tuneds) {
        if !visitor.visit(at, &R::lanes(p), &T::lanes(f)) {
            return;
        }
        at += LANES;
    }
    if !f_end.is_empty() {
        let (mut p, mut f) = ([0; LANES * 4], [0; LANES * 4]);
        p[..p_end.len()].copy_from_slice(p_end);
        f[..f_end.len()].copy_from_slice(f_end);
        visitor.visit(at, &R::lanes(&p[..LANES * R::SIZE]), &T::lanes(&f[..LANES * T::SIZE]));
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

impl Visitor for Sums {
    #[inline(always)]
    fn visit(&mut self, _: usize, p: &[f32; LANES], f: &[f32; LANES]) -> bool {
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
        true
    }
}

impl Sums {
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
    let mut sums = [0.0; LANES];
    for l in 0..LANES {
        sums[l] = f64::from(lanes[l]);
    }
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            sums[l] += sums[l + half];
        }
    }
    sums[0]
}

/// Looks for the first difference of a size.
struct Position {
    size: f32,
    found: usize,
}

impl Visitor for Position {
    #[inline(always)]
    fn visit(&mut self, at: usize, p: &[f32; LANES], f: &[f32; LANES]) -> bool {
        let mut hit = 0;
        for l in 0..LANES {
            hit |= u32::from((f[l] - p[l]).abs() == self.size);
        }
        if hit == 0 {
            return true;
        }
        self.found = at + (0..LANES).find(|&l| (f[l] - p[l]).abs() == self.size).unwrap_or_default();
        false
    }
}

/// Adds a row to the columns.
struct Columns<'a> {
    sums: &'a mut [f32],
    squares: &'a mut [f32],
}

impl Visitor for Columns<'_> {
    #[inline(always)]
    fn visit(&mut self, at: usize, p: &[f32; LANES], f: &[f32; LANES]) -> bool {
        let (mut deltas, mut squares) = ([0.0; LANES], [0.0; LANES]);
        for l in 0..LANES {
            deltas[l] = f[l] - p[l];
            squares[l] = deltas[l] * deltas[l];
        }
        add(&mut self.sums[at..at + LANES], &deltas);
        add(&mut self.squares[at..at + LANES], &squares);
        true
    }
}

#[inline(always)]
fn add(sums: &mut [f32], lanes: &[f32; LANES]) {
    // by way of a copy: the compiler cannot see that the two sums of a column are apart
    let mut copy = [0.0; LANES];
    copy.copy_from_slice(sums);
    for l in 0..LANES {
        copy[l] += lanes[l];
    }
    sums.copy_from_slice(&copy);
}

/// Rounds a row.
struct Rounded<'a, const HALF: bool> {
    to: &'a mut [u8],
}

impl<const HALF: bool> Visitor for Rounded<'_, HALF> {
    #[inline(always)]
    fn visit(&mut self, at: usize, p: &[f32; LANES], _: &[f32; LANES]) -> bool {
        let mut values = [0.0; LANES];
        for l in 0..LANES {
            values[l] = if HALF { as_f16(p[l]) } else { as_bf16(p[l]) };
        }
        let mut bytes = [0; LANES * 4];
        for l in 0..LANES {
            bytes[4 * l..4 * l + 4].copy_from_slice(&values[l].to_le_bytes());
        }
        self.to[4 * at..4 * (at + LANES)].copy_from_slice(&bytes);
        true
    }
}

/// Every value, for [`odd`].
#[derive(Default)]
struct Pairs(Vec<(f32, f32)>);

impl Visitor for Pairs {
    #[inline(always)]
    fn visit(&mut self, _: usize, p: &[f32; LANES], f: &[f32; LANES]) -> bool {
        for l in 0..LANES {
            self.0.push((p[l], f[l] - p[l]));
        }
        true
    }
}

/// A row whose sums leave the range of `f32`, or that holds what is not finite: slower, in `f64`.
#[inline(never)]
fn odd<R: Load, T: Load>(reference: &[u8], tuned: &[u8], columns: Option<&mut [Vec<f64>; 2]>) -> Row {
    let mut pairs = Pairs::default();
    visit::<R, T>(reference, tuned, &mut pairs);
    let pairs = &pairs.0[..tuned.len() / T::SIZE];
    let mut row = Row::default();
    row.zeros = pairs.iter().filter(|(_, delta)| *delta == 0.0).count() as u32;
    row.non_finite = pairs.iter().filter(|(_, delta)| !delta.is_finite()).count() as u32;
    if let Some(first) = pairs.iter().position(|(_, delta)| !delta.is_finite()) {
        let nan = f64::NAN;
        (row.delta_squared, row.delta_dot, row.reference_squared, row.delta_abs) = (nan, nan, nan, nan);
        (row.delta_max, row.delta_argmax) = (f32::NAN, first as u32);
        return row;
    }
    for (at, &(p, delta)) in pairs.iter().enumerate() {
        if delta.abs() > row.delta_max {
            (row.delta_max, row.delta_argmax) = (delta.abs(), at as u32);
        }
        let (p, delta) = (f64::from(p), f64::from(delta));
        row.delta_squared += delta * delta;
        row.delta_dot += delta * p;
        row.reference_squared += p * p;
        row.delta_abs += delta.abs();
    }
    if let Some([sums, squares]) = columns {
        for ((sum, square), &(_, delta)) in sums.iter_mut().zip(squares).zip(pairs) {
            *sum += f64::from(delta);
            *square += f64::from(delta) * f64::from(delta);
        }
    }
    row
}
