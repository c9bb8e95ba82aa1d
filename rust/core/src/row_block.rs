//! A block of row pairs: the loops that [`machine`](crate::machine::rows) compiles, and the exact way round for odd rows.

use crate::load::{F32, LANES, Load};
use crate::row_stats::{Dtype, Row};
use crate::row_visit::{Columns, Fold, Line, Pairs, Position, Rounded, Sums, visit};

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
    partial: [Vec<Line>; 2],
}

impl Scratch {
    pub(crate) fn new(columns: usize) -> Self {
        let lines = columns.div_ceil(LANES);
        Self {
            rounded: Vec::new(),
            columns: [vec![0.0; columns], vec![0.0; columns]],
            partial: [vec![Line::default(); lines], vec![Line::default(); lines]],
        }
    }
}

/// Fills the rows and the column sums of a block.
#[inline(always)]
pub(crate) fn sweep<R: Load, T: Load, O: Fold>(block: Block<'_>) {
    let Block { reference, tuned, round_to, rows, scratch } = block;
    let columns = !scratch.columns[0].is_empty();
    scratch.columns.iter_mut().for_each(|sums| sums.fill(0.0));
    scratch.partial.iter_mut().for_each(|sums| sums.fill(Line::default()));
    for ((reference, tuned), row) in reference.iter().zip(tuned).zip(rows) {
        match round_to {
            None | Some(Dtype::F32) => pair::<R, T, O>(reference, tuned, row, scratch, columns),
            Some(to) => {
                let mut rounded = std::mem::take(&mut scratch.rounded);
                let n = tuned.len() / T::SIZE;
                rounded.resize(n.next_multiple_of(LANES) * 4, 0);
                if to == Dtype::F16 {
                    visit::<R, R>(reference, reference, &mut Rounded::<true> { to: &mut rounded });
                } else {
                    visit::<R, R>(reference, reference, &mut Rounded::<false> { to: &mut rounded });
                }
                pair::<F32, T, O>(&rounded[..n * 4], tuned, row, scratch, columns);
                scratch.rounded = rounded;
            }
        }
    }
    for (sums, partial) in scratch.columns.iter_mut().zip(&scratch.partial) {
        sums.iter_mut()
            .zip(partial.iter().flat_map(|line| &line.0))
            .for_each(|(sum, &part)| *sum += f64::from(part));
    }
}

#[inline(always)]
fn pair<R: Load, T: Load, O: Fold>(
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
        if sums.fold_into::<O>(row) {
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

/// A row whose sums leave the range of `f32`, or that holds what is not finite: slower, in `f64`.
#[inline(never)]
fn odd<R: Load, T: Load>(reference: &[u8], tuned: &[u8], columns: Option<&mut [Vec<f64>; 2]>) -> Row {
    let mut pairs = Pairs::default();
    visit::<R, T>(reference, tuned, &mut pairs);
    let pairs = &pairs.0[..tuned.len() / T::SIZE];
    let mut row = Row {
        zeros: pairs.iter().filter(|(_, delta)| *delta == 0.0).count() as u32,
        non_finite: pairs.iter().filter(|(_, delta)| !delta.is_finite()).count() as u32,
        ..Row::default()
    };
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
