//! Medians of columns, which no single pass gives: a strip of columns at a time is laid out and selected in.

use crate::Result;
use crate::column::filled;
use crate::load::{Bf16, F16, F32, LANES, Load, as_bf16, as_f16};
use crate::row_stats::{Dtype, Matrix};

/// Bytes of the strip.
const STRIP: usize = 1 << 26;

/// Per column, of the differences of rows in which all of them are finite.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnMedians {
    /// The median: of an even number the mean of the two in the middle.
    pub median: Vec<f64>,
    /// The median distance from it.
    pub deviation: Vec<f64>,
    /// How many rows were finite; without one, medians are NaN.
    pub rows: usize,
}

/// Exact medians of `tuned - reference` by column, in `f32` differences, the reference rounded to `round_to` first.
///
/// Two reads of both matrices; 64 MiB besides, or 64 bytes a row where that is more.
///
/// # Errors
///
/// [`Error::LengthMismatch`] when the matrices differ in shape, [`Error::OutOfMemory`].
pub fn column_medians(
    reference: &Matrix<'_>,
    tuned: &Matrix<'_>,
    round_to: Option<Dtype>,
) -> Result<ColumnMedians> {
    reference.same_shape(tuned)?;
    let width = tuned.columns();
    let delta = |rows: (&[u8], &[u8]), at: usize| {
        let p = lanes(rows.0, reference.dtype(), at);
        let f = lanes(rows.1, tuned.dtype(), at);
        let mut delta = [0.0; LANES];
        for l in 0..LANES {
            delta[l] = f[l]
                - match round_to {
                    None | Some(Dtype::F32) => p[l],
                    Some(Dtype::F16) => as_f16(p[l]),
                    Some(Dtype::Bf16) => as_bf16(p[l]),
                };
        }
        delta
    };
    let is_finite = |rows: &(&[u8], &[u8])| {
        (0..width).step_by(LANES).all(|at| delta(*rows, at).iter().all(|delta| delta.is_finite()))
    };
    let rows: Vec<(&[u8], &[u8])> = reference.rows().zip(tuned.rows()).filter(is_finite).collect();
    let n = rows.len();
    let mut found =
        ColumnMedians { median: filled(width, f64::NAN)?, deviation: filled(width, f64::NAN)?, rows: n };
    if n == 0 {
        return Ok(found);
    }
    let strip = (STRIP / 4 / n / LANES * LANES).clamp(LANES, width.next_multiple_of(LANES));
    let mut columns = filled(strip * n, 0.0f32)?;
    let mut distances: Vec<f64> = filled(n, 0.0)?;
    for start in (0..width).step_by(strip) {
        for (row, &pair) in rows.iter().enumerate() {
            for at in (start..width.min(start + strip)).step_by(LANES) {
                for (l, delta) in delta(pair, at).into_iter().enumerate() {
                    columns[(at - start + l) * n + row] = delta;
                }
            }
        }
        for (at, column) in columns.chunks_exact_mut(n).take(width - start).enumerate() {
            let median = middle(column, f32::total_cmp);
            distances
                .iter_mut()
                .zip(&*column)
                .for_each(|(distance, &x)| *distance = (f64::from(x) - median).abs());
            found.median[start + at] = median;
            found.deviation[start + at] = middle(&mut distances, f64::total_cmp);
        }
    }
    Ok(found)
}

/// The differences from a column on, zeros past the end.
fn lanes(row: &[u8], dtype: Dtype, at: usize) -> [f32; LANES] {
    let size = dtype.size();
    let bytes = &row[at * size..row.len().min((at + LANES) * size)];
    let mut whole = [0; LANES * 4];
    whole[..bytes.len()].copy_from_slice(bytes);
    match dtype {
        Dtype::F32 => F32::lanes(&whole),
        Dtype::F16 => F16::lanes(&whole[..LANES * 2]),
        Dtype::Bf16 => Bf16::lanes(&whole[..LANES * 2]),
    }
}

/// The median of values, which change their places.
fn middle<T: Copy + Into<f64>>(values: &mut [T], order: impl Fn(&T, &T) -> std::cmp::Ordering) -> f64 {
    let half = values.len() / 2;
    let odd = values.len() % 2 == 1;
    let (below, &mut upper, _) = values.select_nth_unstable_by(half, &order);
    match below.iter().max_by(|a, b| order(a, b)) {
        Some(&lower) if !odd => f64::midpoint(lower.into(), upper.into()),
        _ => upper.into(),
    }
}
