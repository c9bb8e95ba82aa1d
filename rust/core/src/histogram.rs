//! Ranks by the upper half of the key: two reads of the values and no sort.

use crate::Result;
use crate::column::filled;
use crate::order::NanPolicy;
use crate::pair::key;

const BINS: usize = 1 << 16;

/// The average rank among the values, those of one bin taken as equal. NaN has a bin of its own, the last.
pub(crate) fn ranks(values: &[f32], nan: NanPolicy) -> Result<Vec<f64>> {
    let mut counts = vec![0u64; BINS];
    for &value in values {
        counts[bin(value)] += 1;
    }
    let mut first = 0;
    let mut middle = vec![0.0; BINS];
    for (middle, &count) in middle.iter_mut().zip(&counts) {
        *middle = first as f64 + (count as f64 - 1.0) / 2.0;
        first += count;
    }
    if nan == NanPolicy::Drop {
        middle[BINS - 1] = f64::NAN;
    }
    let mut ranks = filled(values.len(), 0.0)?;
    ranks.iter_mut().zip(values).for_each(|(rank, &value)| *rank = middle[bin(value)]);
    Ok(ranks)
}

#[inline(always)]
fn bin(value: f32) -> usize {
    (key(value) >> 16) as usize
}
