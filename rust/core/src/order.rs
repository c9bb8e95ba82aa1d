//! One total order of `f32`, and what follows from it.

use std::str::FromStr;

use crate::column::filled;
use crate::{Error, Result};

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
}

impl FromStr for RankMethod {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "ordinal" => Ok(Self::Ordinal),
            "average" => Ok(Self::Average),
            "min" => Ok(Self::Min),
            _ => Err(Error::UnknownName {
                name: "method",
                got: name.to_owned(),
                wanted: "ordinal, average, min",
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

/// The unsigned integer that sorts as `value` does: `-inf < ... < -0.0 == 0.0 < ... < inf < NaN`.
#[inline]
#[must_use]
pub fn key(value: f32) -> u32 {
    if value.is_nan() {
        return u32::MAX;
    }
    let bits = if value == 0.0 { 0 } else { value.to_bits() };
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The indices of the `k` lowest values, ascending; ties go to the lower index.
///
/// # Errors
///
/// [`Error::TooFew`] when `k` exceeds the values that `nan` lets be picked, [`Error::Nan`] on a NaN that it forbids.
pub fn bottom_k(values: &[f32], k: usize, nan: NanPolicy) -> Result<Vec<i64>> {
    let available = admit(values, nan)?;
    if k > available {
        return Err(Error::TooFew { k, available });
    }
    Ok(lowest(values, k).into_iter().map(|i| i as i64).collect())
}

/// The lowest `max(1, floor(ratio * n_c))` rows of every class of `n_c` rows; none of an empty class.
///
/// NaN rows count towards `n_c` under every policy.
///
/// # Errors
///
/// [`Error::LengthMismatch`], [`Error::OutOfBounds`] on a ratio outside `(0, 1]`, [`Error::LabelOutOfRange`],
/// [`Error::Nan`] on a NaN that `nan` forbids, [`Error::ClassTooSmall`] when dropping NaN leaves a class short.
pub fn bottom_k_per_class(
    values: &[f32],
    labels: &[i64],
    ratio: f64,
    n_classes: usize,
    nan: NanPolicy,
) -> Result<PerClass> {
    if labels.len() != values.len() {
        return Err(Error::LengthMismatch { name: "labels", got: labels.len(), wanted: values.len() });
    }
    if !(ratio > 0.0 && ratio <= 1.0) {
        return Err(Error::OutOfBounds { name: "ratio", got: ratio, wanted: "in (0, 1]" });
    }
    admit(values, nan)?;
    let (rows, starts) = group(labels, n_classes)?;

    let mut picked = PerClass { indices: Vec::new(), offsets: vec![0] };
    let mut losses = Vec::new();
    for class in 0..n_classes {
        let members = &rows[starts[class]..starts[class + 1]];
        if !members.is_empty() {
            losses.clear();
            losses.extend(members.iter().map(|&row| values[row]));
            let k = ((ratio * members.len() as f64) as usize).max(1);
            let available = admit(&losses, nan)?;
            if k > available {
                return Err(Error::ClassTooSmall { class, k, available });
            }
            picked.indices.extend(lowest(&losses, k).into_iter().map(|i| members[i] as i64));
        }
        picked.offsets.push(picked.indices.len() as i64);
    }
    Ok(picked)
}

/// The rank of every value, from 0.
///
/// Under [`NanPolicy::Drop`] a NaN has rank NaN and the others are ranked as if it were not there.
///
/// # Errors
///
/// [`Error::Nan`] on a NaN that `nan` forbids, [`Error::TooMany`] above `u32::MAX` values.
pub fn ranks(values: &[f32], method: RankMethod, nan: NanPolicy) -> Result<Vec<f64>> {
    let ranked = admit(values, nan)?;
    if values.len() > u32::MAX as usize {
        return Err(Error::TooMany { n: values.len() });
    }
    // the key above the index: distinct integers, so an unstable sort is a stable one
    let mut order: Vec<u64> =
        values.iter().enumerate().map(|(i, &x)| u64::from(key(x)) << 32 | i as u64).collect();
    order.sort_unstable();

    let mut ranks = vec![f64::NAN; values.len()];
    let mut first = 0;
    for ties in order[..ranked].chunk_by(|a, b| a >> 32 == b >> 32) {
        for (offset, pair) in ties.iter().enumerate() {
            ranks[*pair as u32 as usize] = match method {
                RankMethod::Ordinal => (first + offset) as f64,
                RankMethod::Average => first as f64 + (ties.len() - 1) as f64 / 2.0,
                RankMethod::Min => first as f64,
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

/// How many values may be picked.
fn admit(values: &[f32], nan: NanPolicy) -> Result<usize> {
    if nan == NanPolicy::Last {
        return Ok(values.len());
    }
    let count = values.iter().filter(|x| x.is_nan()).count();
    match values.iter().position(|x| x.is_nan()) {
        Some(first) if nan == NanPolicy::Error => Err(Error::Nan { count, first }),
        _ => Ok(values.len() - count),
    }
}

/// The positions of the `k <= values.len()` lowest. NaN keys are the highest, so they are picked after all else.
fn lowest(values: &[f32], k: usize) -> Vec<usize> {
    if k == 0 {
        return Vec::new();
    }
    let mut keys: Vec<u32> = values.iter().map(|&x| key(x)).collect();
    let (below, &mut cut, _) = keys.select_nth_unstable(k - 1);
    // `below` may hold values equal to the cut; only as many of those are let in as there is room for
    let mut room = k - below.iter().filter(|&&x| x < cut).count();
    drop(keys);

    let mut picked = Vec::with_capacity(k);
    for (i, &value) in values.iter().enumerate() {
        let key = key(value);
        if key < cut {
            picked.push(i);
        } else if key == cut && room > 0 {
            room -= 1;
            picked.push(i);
        }
    }
    picked.sort_by_key(|&i| key(values[i]));
    picked
}

/// Row indices grouped by label, ascending inside each class, and the bounds of the groups.
fn group(labels: &[i64], n_classes: usize) -> Result<(Vec<usize>, Vec<usize>)> {
    let mut starts = filled(n_classes.saturating_add(1), 0)?;
    for (at, &label) in labels.iter().enumerate() {
        match usize::try_from(label) {
            Ok(class) if class < n_classes => starts[class + 1] += 1,
            _ => return Err(Error::LabelOutOfRange { label, at, n_classes }),
        }
    }
    for class in 0..n_classes {
        starts[class + 1] += starts[class];
    }
    let mut next = starts.clone();
    let mut rows = vec![0; labels.len()];
    for (row, &label) in labels.iter().enumerate() {
        let slot = &mut next[label as usize];
        rows[*slot] = row;
        *slot += 1;
    }
    Ok((rows, starts))
}
