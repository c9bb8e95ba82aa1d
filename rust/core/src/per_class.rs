//! The lowest rows of every class, in two passes whatever the number of classes.

use crate::column::filled;
use crate::order::{NanPolicy, PerClass, refuse_nan};
use crate::pair::{Pair, is_wide, key};
use crate::select::spread;
use crate::{Error, Result, radix};

/// The most rows that are sampled for thresholds.
const SAMPLE: usize = 1 << 18;
/// A class with fewer rows than this in the sample gets no threshold from it.
const ENOUGH: usize = 24;

/// The lowest `max(1, floor(ratio * n_c))` rows of every class of `n_c` rows; none of an empty class.
///
/// NaN rows count towards `n_c` under every policy.
///
/// # Errors
///
/// [`Error::LengthMismatch`], [`Error::OutOfBounds`] on a ratio outside `(0, 1]`, [`Error::LabelOutOfRange`],
/// [`Error::Nan`] on a NaN that `nan` forbids, [`Error::ClassTooSmall`] when dropping NaN leaves a class
/// short, [`Error::OutOfMemory`].
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
    refuse_nan(values, nan)?;
    let sizes = sizes(labels, n_classes)?;
    let shares: Vec<usize> =
        sizes.iter().map(|&n| if n == 0 { 0 } else { ((ratio * n as f64) as usize).max(1) }).collect();
    let rows = Rows { values, labels, shares: &shares, drop_nan: nan == NanPolicy::Drop };
    if is_wide(values.len()) { rows.pick::<u128>() } else { rows.pick::<u64>() }
}

/// How many rows every class has.
fn sizes(labels: &[i64], n_classes: usize) -> Result<Vec<usize>> {
    // two counters a class: rows side by side are often of one class, and a counter takes its time to be counted up
    let mut even = filled(n_classes, 0)?;
    let mut odd = filled(n_classes, 0)?;
    let outside = |label: &i64| usize::try_from(*label).map_or(true, |class| class >= n_classes);
    for pair in labels.chunks(2) {
        for (label, counts) in pair.iter().zip([&mut even, &mut odd]) {
            match usize::try_from(*label).ok().and_then(|class| counts.get_mut(class)) {
                Some(count) => *count += 1,
                None => {
                    let at = labels.iter().position(outside).unwrap_or_default();
                    return Err(Error::LabelOutOfRange { label: labels[at], at, n_classes });
                }
            }
        }
    }
    even.iter_mut().zip(odd).for_each(|(count, more)| *count += more);
    Ok(even)
}

/// Rows to pick from. Every label is a class.
struct Rows<'a> {
    values: &'a [f32],
    labels: &'a [i64],
    /// How many rows of each class are wanted.
    shares: &'a [usize],
    drop_nan: bool,
}

impl Rows<'_> {
    fn class(&self, row: usize) -> usize {
        self.labels[row] as usize
    }

    fn pick<P: Pair>(&self) -> Result<PerClass> {
        let n_classes = self.shares.len();
        // keys from here on are of no interest
        let end = u64::from(u32::MAX) + u64::from(!self.drop_nan);
        let mut ends = self.guess(end)?;
        let mut groups = self.held::<P>(ends.clone())?;
        let missed = |groups: &Groups<P>, class: usize| groups.of(class).len() < self.shares[class];
        let again: Vec<bool> =
            (0..n_classes).map(|class| ends[class] < end && missed(&groups, class)).collect();
        if again.contains(&true) {
            // bad luck in the sample: all rows of these classes, and the others once more
            ends.iter_mut().zip(&again).filter(|(_, again)| **again).for_each(|(own, _)| *own = end);
            groups = self.held(ends)?;
        }
        let mut picked = PerClass { indices: Vec::new(), offsets: vec![0] };
        for (class, &k) in self.shares.iter().enumerate() {
            let group = groups.of(class);
            if group.len() < k {
                let row = self.labels.iter().position(|&label| label == class as i64).unwrap_or_default();
                return Err(Error::ClassTooSmall { row, k, available: group.len() });
            }
            let mut lowest = radix::sort(group.to_vec())?;
            lowest.truncate(k);
            picked.indices.extend(lowest.into_iter().map(|pair| pair.index() as i64));
            picked.offsets.push(picked.indices.len() as i64);
        }
        Ok(picked)
    }

    /// For every class a key that more rows than wanted are likely to lie below, by a sample; `end` where it is too
    /// small to tell.
    fn guess(&self, end: u64) -> Result<Vec<u64>> {
        let (n, n_classes) = (self.values.len(), self.shares.len());
        let mut ends = filled(n_classes, end)?;
        let size = SAMPLE.min(n / 8);
        if size / ENOUGH < n_classes {
            return Ok(ends);
        }
        let take = |row: usize| (self.class(row), key(self.values[row]));
        let mut sample: Vec<(usize, u32)> = (0..size).map(|i| take(spread(i, n))).collect();
        sample.sort_unstable();
        for group in sample.chunk_by(|a, b| a.0 == b.0) {
            let class = group[0].0;
            let expected = self.shares[class] as f64 / n as f64 * size as f64;
            let at = (expected + 4.0 * expected.sqrt() + 4.0) as usize;
            if group.len() >= ENOUGH && at < group.len() {
                ends[class] = end.min(u64::from(group[at].1) + 1);
            }
        }
        Ok(ends)
    }

    /// The rows with a key below the end of their class, by class and in index order. Of ties with the last key
    /// before it no more than are wanted.
    fn held<P: Pair>(&self, mut ends: Vec<u64>) -> Result<Groups<P>> {
        let n_classes = self.shares.len();
        let mut counts = filled(n_classes, 0usize)?;
        let mut held: Vec<P> = Vec::new();
        let tied: Vec<u64> = ends.iter().map(|end| end.saturating_sub(1)).collect();
        for (row, (&value, &label)) in self.values.iter().zip(self.labels).enumerate() {
            let (key, class) = (key(value), label as usize);
            if u64::from(key) < ends[class] {
                counts[class] += 1;
                if counts[class] == self.shares[class] {
                    ends[class] = tied[class];
                }
                if held.len() == held.capacity() {
                    let more = held.len().max(1 << 12);
                    held.try_reserve_exact(more).map_err(|_| Error::OutOfMemory { n: held.len() + more })?;
                }
                held.push(P::new(key, row));
            }
        }
        let mut starts = filled(n_classes + 1, 0)?;
        for class in 0..n_classes {
            starts[class + 1] = starts[class] + counts[class];
        }
        let mut next = starts.clone();
        let mut pairs = filled(held.len(), P::default())?;
        for pair in held {
            let slot = &mut next[self.class(pair.index())];
            pairs[*slot] = pair;
            *slot += 1;
        }
        Ok(Groups { pairs, starts })
    }
}

/// Pairs by class.
struct Groups<P> {
    pairs: Vec<P>,
    starts: Vec<usize>,
}

impl<P: Pair> Groups<P> {
    fn of(&self, class: usize) -> &[P] {
        &self.pairs[self.starts[class]..self.starts[class + 1]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bottom_k;

    /// Class by class, by [`bottom_k`] of its rows alone.
    fn one_by_one(values: &[f32], labels: &[i64], ratio: f64, n_classes: usize, nan: NanPolicy) -> PerClass {
        let mut picked = PerClass { indices: vec![], offsets: vec![0] };
        for class in 0..n_classes as i64 {
            let rows: Vec<usize> = (0..labels.len()).filter(|&row| labels[row] == class).collect();
            let own: Vec<f32> = rows.iter().map(|&row| values[row]).collect();
            let k = if own.is_empty() { 0 } else { ((ratio * own.len() as f64) as usize).max(1) };
            let lowest = bottom_k(&own, k, nan, 1).unwrap();
            picked.indices.extend(lowest.into_iter().map(|at| rows[at as usize] as i64));
            picked.offsets.push(picked.indices.len() as i64);
        }
        picked
    }

    #[test]
    #[cfg_attr(miri, ignore = "too many values")]
    fn a_sample_large_enough_for_thresholds_changes_no_pick() {
        let n = 20_000;
        let mut state = 3u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u32
        };
        let random: Vec<f32> = (0..n).map(|_| next() as f32 / 1e6).collect();
        let classes: Vec<i64> = (0..n).map(|_| i64::from(next() % 1000)).collect();
        // of even size; a few large and many small; one alone
        let labels: [Vec<i64>; 3] = [
            classes.iter().map(|class| class % 7).collect(),
            classes.iter().map(|&class| if class < 900 { class % 2 } else { class - 890 }).collect(),
            vec![3; n],
        ];
        let values: [Vec<f32>; 4] = [
            random.clone(),
            vec![0.0; n],
            random.iter().map(|x| x.floor()).collect(),
            random.iter().enumerate().map(|(at, &x)| if at % 10 == 0 { f32::NAN } else { x }).collect(),
        ];
        for values in &values {
            for labels in &labels {
                for ratio in [1e-9, 0.01, 0.3] {
                    for nan in [NanPolicy::Last, NanPolicy::Drop] {
                        let got = bottom_k_per_class(values, labels, ratio, 120, nan);
                        assert_eq!(got.unwrap(), one_by_one(values, labels, ratio, 120, nan));
                    }
                }
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too many values")]
    fn a_class_whose_sample_lied_is_picked_from_all_its_rows() {
        let n = 40_000;
        let size = n / 8;
        let mut values = vec![1.0; n];
        (0..size).for_each(|i| values[spread(i, n)] = 0.0);
        let labels: Vec<i64> = (0..n as i64).map(|row| row % 2).collect();
        let wanted = one_by_one(&values, &labels, 0.4, 2, NanPolicy::Last);
        assert_eq!(bottom_k_per_class(&values, &labels, 0.4, 2, NanPolicy::Last), Ok(wanted));
    }
}
