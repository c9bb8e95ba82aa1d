//! The `k` lowest of many values, in one pass behind a threshold.
//!
//! A sample gives a threshold that a little more than `k` values are likely to lie under. One pass then looks at 64
//! values at a time and stops only at those under it, so it costs what reading costs. What it stops at is held with
//! its index, in index order, and cut back to the `k` lowest whenever a quarter too many are held, which lowers the
//! threshold too. Once `k` are held no tie with the threshold is of interest any more: an earlier one is held.
//! No luck is needed for the result: when the sample's threshold was too low, a second pass starts without one.

use std::thread;

use crate::bound::{BLOCK, Bound, Format};
use crate::column::reserved;
use crate::pair::Pair;
use crate::{Result, radix};

/// Fewer values than this are sorted whole: sampling would cost more.
const FEW: usize = 2048;
/// The most that are sampled.
const SAMPLE: usize = 1 << 15;
/// Values per thread below which another thread costs more than it brings.
const SHARE: usize = 1 << 17;

/// The pairs of the `k` lowest keys, ascending; fewer when there are fewer, NaN not counted where they are dropped.
///
/// # Errors
///
/// [`Error::OutOfMemory`].
pub(crate) fn lowest<F: Format, P: Pair>(
    values: &[F::Bits],
    k: usize,
    drop_nan: bool,
    threads: usize,
) -> Result<Vec<P>> {
    let n = values.len();
    let k = k.min(n);
    if k == 0 {
        return Ok(Vec::new());
    }
    if n < FEW || k > n - n / 8 {
        let mut all = radix::sorted::<F, P>(values)?;
        if drop_nan {
            all.truncate(all.partition_point(|pair| pair.key() < F::NAN));
        }
        all.truncate(k);
        return Ok(all);
    }
    let most = if drop_nan { Bound::Below(F::NAN) } else { Bound::UpTo(F::NAN) };
    let guess = guess::<F>(values, k, most);
    let mut held = pass::<F, P>(values, k, guess, threads)?;
    if held.len() < k && guess != most {
        held = pass::<F, P>(values, k, most, threads)?;
    }
    radix::sort(held)
}

/// The `i`th of places spread over `0..n`, which no order of values is likely to follow: a Weyl sequence by the golden
/// ratio.
pub(crate) fn spread(i: usize, n: usize) -> usize {
    let turn = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(turn) * n as u128) >> 64) as usize
}

/// A bound that more than `k` values lie within, but for bad luck: four standard deviations of it.
fn guess<F: Format>(values: &[F::Bits], k: usize, most: Bound) -> Bound {
    let n = values.len();
    let size = SAMPLE.min(n / 8);
    let mut sample: Vec<u32> = (0..size).map(|i| F::key(values[spread(i, n)])).collect();
    let share = k as f64 / n as f64;
    let expected = share * size as f64;
    let at = (expected + 4.0 * (expected * (1.0 - share)).sqrt() + 4.0) as usize;
    if at >= size {
        return most;
    }
    let (_, &mut key, _) = sample.select_nth_unstable(at);
    // the highest key is that of NaN, and what is said of NaN has been said
    if key == F::NAN { most } else { Bound::UpTo(key) }
}

/// The `k` lowest within the bound, in index order; fewer when fewer lie within it.
fn pass<F: Format, P: Pair>(values: &[F::Bits], k: usize, bound: Bound, threads: usize) -> Result<Vec<P>> {
    let share = values.len().div_ceil(threads.clamp(1, values.len().div_ceil(SHARE).max(1)));
    let run = |(at, part): (usize, &[F::Bits])| {
        let mut held = Held::<P>::new(k, part.len(), bound)?;
        held.take::<F>(part, at * share);
        Ok(held)
    };
    let found: Vec<Result<Held<P>>> = thread::scope(|scope| {
        let jobs = values.chunks(share).enumerate();
        let started = |job| (job, thread::Builder::new().spawn_scoped(scope, move || run(job)).ok());
        let others: Vec<_> = jobs.clone().skip(1).map(started).collect();
        let own = jobs.take(1).map(run).collect::<Vec<_>>();
        let others = others.into_iter().map(|(job, thread)| match thread.map(|thread| thread.join()) {
            Some(Ok(held)) => held,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            // a thread that could not be had is only time lost
            None => run(job),
        });
        own.into_iter().chain(others).collect()
    });
    let mut held: Option<Held<P>> = None;
    for part in found {
        match &mut held {
            None => held = Some(part?),
            Some(held) => held.pairs.extend(part?.pairs),
        }
    }
    Ok(held.map_or_else(Vec::new, |mut held| {
        held.cut();
        held.pairs
    }))
}

/// The lowest values met so far.
struct Held<P> {
    pairs: Vec<P>,
    k: usize,
    most: usize,
    bound: Bound,
}

impl<P: Pair> Held<P> {
    fn new(k: usize, n: usize, bound: Bound) -> Result<Self> {
        let most = n.min(k.saturating_add((k / 4).max(BLOCK * 16)));
        Ok(Self { pairs: reserved(most + BLOCK)?, k, most, bound })
    }

    /// Looks at values whose first has the index `start`, after all those with lower ones.
    fn take<F: Format>(&mut self, values: &[F::Bits], start: usize) {
        let find = F::finder();
        let mut at = 0;
        while let Some((block, mut hits)) = find(&values[at..], self.bound) {
            at += block;
            let n = hits.count_ones() as usize;
            for _ in 0..n {
                let here = at + hits.trailing_zeros() as usize;
                hits &= hits - 1;
                self.pairs.push(Pair::new(F::key(values[here]), start + here));
            }
            at = values.len().min(at + BLOCK);
            if self.pairs.len() >= self.k {
                if let Bound::UpTo(key) = self.bound {
                    self.bound = Bound::Below(key);
                }
                if self.pairs.len() > self.most {
                    self.cut();
                }
            }
        }
    }

    /// Back to the `k` lowest, in index order.
    fn cut(&mut self) {
        if self.pairs.len() <= self.k {
            return;
        }
        let mut keys: Vec<u32> = self.pairs.iter().map(|pair| pair.key()).collect();
        let (below, &mut last, _) = keys.select_nth_unstable(self.k - 1);
        // as many values equal to the last one as there is room for
        let mut room = self.k - below.iter().filter(|&&key| key < last).count();
        self.pairs.retain(|pair| {
            let key = pair.key();
            let tie = key == last && room > 0;
            room -= usize::from(tie);
            key < last || tie
        });
        self.bound = Bound::Below(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::F32;
    use crate::pair::key;

    fn exponential(n: usize) -> Vec<f32> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            -((state >> 40) as f32 / (1u32 << 24) as f32).ln_1p()
        };
        (0..n).map(|_| next()).collect()
    }

    fn wanted<P: Pair>(values: &[f32], drop_nan: bool) -> Vec<P> {
        let mut all: Vec<P> = values.iter().enumerate().map(|(at, &x)| P::new(key(x), at)).collect();
        all.sort();
        all.retain(|pair| !drop_nan || pair.key() < u32::MAX);
        all
    }

    /// What a threshold by sample could trip over: ties, order, NaN, subnormals, few values.
    fn adversaries(n: usize) -> Vec<(&'static str, Vec<f32>)> {
        let usual = exponential(n);
        let sorted = {
            let mut sorted = usual.clone();
            sorted.sort_by(f32::total_cmp);
            sorted
        };
        let each = |of: fn(usize, f32) -> f32| usual.iter().enumerate().map(|(at, &x)| of(at, x)).collect();
        vec![
            ("constant", vec![1.5; n]),
            ("half zeros", each(|at, x| if at % 2 == 0 { 0.0 } else { x })),
            ("both zeros", each(|at, _| if at % 3 == 0 { 0.0 } else { -0.0 })),
            ("two values", each(|_, x| f32::from(u8::from(x < -0.3)))),
            ("descending", sorted.iter().rev().copied().collect()),
            ("ascending", sorted),
            ("some NaN", each(|at, x| if at % 100 == 7 { f32::NAN } else { x })),
            ("mostly NaN", each(|at, x| if at % 20 == 0 { x } else { -f32::NAN })),
            ("all NaN", vec![f32::NAN; n]),
            ("subnormal", each(|_, x| x * 1e-39)),
            ("of bfloat16", each(|_, x| f32::from_bits(x.to_bits() & 0xffff_0000))),
            ("infinite", each(|at, x| if at % 2 == 0 { f32::NEG_INFINITY } else { x / 0.0 })),
            ("usual", usual),
        ]
    }

    fn check<P: Pair + std::fmt::Debug>(n: usize, threads: usize) {
        for (name, values) in adversaries(n) {
            for drop_nan in [false, true] {
                let wanted = wanted::<P>(&values, drop_nan);
                for k in [0, 1, n / 1000, n / 100, n / 10, n / 2, n - n / 8, n - 1, n] {
                    let got = lowest::<F32, P>(&values, k, drop_nan, threads).unwrap();
                    assert_eq!(got, wanted[..k.min(wanted.len())], "{name}, {k} of {n}, {threads} threads");
                }
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too many values")]
    fn no_order_and_no_number_of_ties_trips_the_threshold() {
        for n in [1, 2, FEW - 1, FEW, 20_000] {
            check::<u64>(n, 1);
        }
        check::<u128>(5000, 1);
    }

    #[test]
    #[cfg_attr(miri, ignore = "too many values")]
    fn threads_change_nothing() {
        check::<u64>(2 * SHARE + 77, 3);
    }

    #[test]
    #[cfg_attr(miri, ignore = "too many values")]
    fn a_threshold_that_was_too_low_is_made_good() {
        let values = exponential(10_000);
        let too_low = pass::<F32, u64>(&values, 500, Bound::Below(0), 1).unwrap();
        assert!(too_low.is_empty());
        // all sampled places hold the lowest values, so the guess is too low
        let mut values = vec![1.0; 65_536];
        for i in 0..SAMPLE.min(65_536 / 8) {
            values[spread(i, 65_536)] = -1.0;
        }
        let k = 20_000;
        assert_eq!(guess::<F32>(&values, k, Bound::UpTo(u32::MAX)), Bound::UpTo(key(-1.0)));
        let got = lowest::<F32, u64>(&values, k, false, 1).unwrap();
        assert_eq!(got, wanted::<u64>(&values, false)[..k]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "too many values")]
    fn no_more_is_held_than_a_quarter_too_many() {
        let mut values = exponential(300_000);
        values.sort_by(|a, b| b.total_cmp(a));
        let mut held = Held::<u64>::new(1000, values.len(), Bound::UpTo(u32::MAX)).unwrap();
        let room = held.pairs.capacity();
        held.take::<F32>(&values, 0);
        assert_eq!(held.pairs.capacity(), room);
        assert!(room < 2200);
    }
}
