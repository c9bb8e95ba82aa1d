//! One total order of `f32`, and what follows from it.

use std::str::FromStr;

use crate::bound::Format;
use crate::column::filled;
use crate::load::{Bf16, F16, F32};
use crate::pair::{Pair, is_wide};
use crate::select::lowest;
use crate::{Dtype, Error, Result, histogram, radix};

/// What to do with NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NanPolicy {
    /// NaN comes after `+inf`, as in numpy, torch and polars.
    #[default]
    Last,
    /// NaN is an error.
    Error,
    /// NaN is never picked and gets no rank; picking more than the rest holds is an error.
    Drop,
}

impl FromStr for NanPolicy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "last" => Ok(Self::Last),
            "error" => Ok(Self::Error),
            "drop" => Ok(Self::Drop),
            _ => Err(Error::UnknownName { name: "nan", got: name.to_owned(), wanted: "last, error, drop" }),
        }
    }
}

/// Which rank equal values share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RankMethod {
    /// None: ties are ranked by index, every rank is used once.
    #[default]
    Ordinal,
    /// The mean of the ordinal ranks they cover.
    Average,
    /// The lowest of the ordinal ranks they cover: the number of smaller values.
    Min,
    /// Average, of the values with the lower 16 bits of their order key left out: without sorting, in two reads, and
    /// wrong by at most half the number of values that agree in the upper 16 bits (sign, exponent, 7 bits of fraction).
    Histogram,
}

impl FromStr for RankMethod {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "ordinal" => Ok(Self::Ordinal),
            "average" => Ok(Self::Average),
            "min" => Ok(Self::Min),
            "histogram" => Ok(Self::Histogram),
            _ => Err(Error::UnknownName {
                name: "method",
                got: name.to_owned(),
                wanted: "ordinal, average, min, histogram",
            }),
        }
    }
}

/// The lowest rows of every class, in compressed rows: class `c` owns `indices[offsets[c]..offsets[c + 1]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerClass {
    /// Row indices, ascending in the order inside each class.
    pub indices: Vec<i64>,
    /// `n_classes + 1` bounds into `indices`.
    pub offsets: Vec<i64>,
}

/// The indices of the `k` lowest values, ascending; ties go to the lower index.
///
/// At most `threads` threads work, this one among them; no result depends on it.
///
/// # Errors
///
/// [`Error::TooFew`] when `k` exceeds the values that `nan` lets be picked, [`Error::Nan`] on a NaN that it
/// forbids, [`Error::OutOfMemory`].
pub fn bottom_k(values: &[f32], k: usize, nan: NanPolicy, threads: usize) -> Result<Vec<i64>> {
    refuse_nan(values, nan)?;
    picked::<F32>(values, k, nan, threads, || values.len() - count_nan(values))
}

/// [`bottom_k`] of 16-bit floats by their bits, as they are: the same indices as for the `f32` of equal value.
///
/// # Errors
///
/// As of [`bottom_k`], and [`Error::UnknownName`] when `dtype` is not of 16 bits.
pub fn bottom_k_halves(
    values: &[u16],
    dtype: Dtype,
    k: usize,
    nan: NanPolicy,
    threads: usize,
) -> Result<Vec<i64>> {
    match dtype {
        Dtype::F16 => halves::<F16>(values, k, nan, threads),
        Dtype::Bf16 => halves::<Bf16>(values, k, nan, threads),
        Dtype::F32 => Err(Error::UnknownName {
            name: "dtype of 16-bit values",
            got: "float32".to_owned(),
            wanted: "float16, bfloat16",
        }),
    }
}

fn halves<F: Format<Bits = u16>>(
    values: &[u16],
    k: usize,
    nan: NanPolicy,
    threads: usize,
) -> Result<Vec<i64>> {
    let is_nan = |value: &u16| F::key(*value) == F::NAN;
    if nan == NanPolicy::Error
        && let Some(first) = values.iter().position(is_nan)
    {
        return Err(Error::Nan { count: values.iter().copied().filter(is_nan).count(), first });
    }
    picked::<F>(values, k, nan, threads, || values.iter().filter(|value| !is_nan(value)).count())
}

/// `valid` counts the values that are not NaN.
fn picked<F: Format>(
    values: &[F::Bits],
    k: usize,
    nan: NanPolicy,
    threads: usize,
    valid: impl FnOnce() -> usize,
) -> Result<Vec<i64>> {
    let drop_nan = nan == NanPolicy::Drop;
    if k > values.len() {
        return Err(Error::TooFew { k, available: if drop_nan { valid() } else { values.len() } });
    }
    let picked = if is_wide(values.len()) {
        indices(lowest::<F, u128>(values, k, drop_nan, threads)?)
    } else {
        indices(lowest::<F, u64>(values, k, drop_nan, threads)?)
    };
    if picked.len() < k {
        return Err(Error::TooFew { k, available: picked.len() });
    }
    Ok(picked)
}

/// The indices that sort the values: `bottom_k` of all that `nan` lets be picked.
///
/// # Errors
///
/// [`Error::Nan`] on a NaN that `nan` forbids, [`Error::OutOfMemory`].
pub fn argsort(values: &[f32], nan: NanPolicy) -> Result<Vec<i64>> {
    refuse_nan(values, nan)?;
    let mut sorted = if is_wide(values.len()) {
        indices(radix::sorted::<F32, u128>(values)?)
    } else {
        indices(radix::sorted::<F32, u64>(values)?)
    };
    if nan == NanPolicy::Drop {
        sorted.truncate(values.len() - count_nan(values));
    }
    Ok(sorted)
}

fn indices<P: Pair>(pairs: Vec<P>) -> Vec<i64> {
    pairs.into_iter().map(|pair| pair.index() as i64).collect()
}

/// The rank of every value, from 0.
///
/// Under [`NanPolicy::Drop`] a NaN has rank NaN and the others are ranked as if it were not there.
///
/// # Errors
///
/// [`Error::Nan`] on a NaN that `nan` forbids, [`Error::OutOfMemory`].
pub fn ranks(values: &[f32], method: RankMethod, nan: NanPolicy) -> Result<Vec<f64>> {
    refuse_nan(values, nan)?;
    let n = values.len();
    let ranked = if nan == NanPolicy::Drop { n - count_nan(values) } else { n };
    if method == RankMethod::Histogram {
        return histogram::ranks(values, nan);
    }
    if is_wide(n) {
        by_order::<u128>(values, ranked, method)
    } else {
        by_order::<u64>(values, ranked, method)
    }
}

fn by_order<P: Pair>(values: &[f32], ranked: usize, method: RankMethod) -> Result<Vec<f64>> {
    let order = radix::sorted::<F32, P>(values)?;
    let mut ranks = filled(values.len(), f64::NAN)?;
    let mut first = 0;
    for ties in order[..ranked].chunk_by(|a, b| a.key() == b.key()) {
        for (offset, pair) in ties.iter().enumerate() {
            ranks[pair.index()] = match method {
                RankMethod::Ordinal => (first + offset) as f64,
                RankMethod::Min => first as f64,
                _ => first as f64 + (ties.len() - 1) as f64 / 2.0,
            };
        }
        first += ties.len();
    }
    Ok(ranks)
}

/// The share of indices that two sets have in common, `|a & b| / |a | b|`; 1 for two empty sets.
///
/// Order and repeats do not matter.
#[must_use]
pub fn jaccard(a: &[i64], b: &[i64]) -> f64 {
    let (a, b) = (as_set(a), as_set(b));
    let common = a.iter().filter(|x| b.binary_search(x).is_ok()).count();
    let union = a.len() + b.len() - common;
    if union == 0 { 1.0 } else { common as f64 / union as f64 }
}

fn as_set(indices: &[i64]) -> Vec<i64> {
    let mut set = indices.to_vec();
    set.sort_unstable();
    set.dedup();
    set
}

/// An error where the policy forbids a NaN and there is one.
pub(crate) fn refuse_nan(values: &[f32], nan: NanPolicy) -> Result<()> {
    if nan == NanPolicy::Error {
        let count = count_nan(values);
        if let Some(first) = values.iter().position(|x| x.is_nan()) {
            return Err(Error::Nan { count, first });
        }
    }
    Ok(())
}

fn count_nan(values: &[f32]) -> usize {
    // short counts, which the compiler keeps in vectors
    values.chunks(1 << 16).map(|part| part.iter().map(|x| u32::from(x.is_nan())).sum::<u32>() as usize).sum()
}
