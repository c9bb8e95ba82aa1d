//! Radix sort of pairs by their key. Stable, so pairs that come in index order need no look at the index.

use crate::Result;
use crate::bound::Format;
use crate::column::{filled, reserved};
use crate::pair::Pair;

const BITS: u32 = 8;
const BINS: usize = 1 << BITS;
const PASSES: usize = 4;
/// Below this a comparison sort is quicker than four rounds of counting.
const FEW: usize = 800;

/// How often each digit occurs, in each of the four places.
struct Counts {
    digits: Vec<[usize; BINS]>,
}

#[inline(always)]
fn digit(key: u32, pass: usize) -> usize {
    (key >> (BITS * pass as u32)) as usize & (BINS - 1)
}

impl Counts {
    fn of(keys: impl Iterator<Item = u32>) -> Self {
        let mut digits = vec![[0; BINS]; PASSES];
        if let [low, second, third, high] = &mut digits[..] {
            for key in keys {
                low[digit(key, 0)] += 1;
                second[digit(key, 1)] += 1;
                third[digit(key, 2)] += 1;
                high[digit(key, 3)] += 1;
            }
        }
        Self { digits }
    }

    /// The places where not all keys have the same digit.
    fn passes(&self, n: usize) -> impl Iterator<Item = usize> + '_ {
        (0..PASSES).filter(move |&pass| !self.digits[pass].contains(&n))
    }

    /// Where the first pair of each digit goes.
    fn starts(&self, pass: usize) -> [usize; BINS] {
        let (mut starts, mut sum) = ([0; BINS], 0);
        for (start, &count) in starts.iter_mut().zip(&self.digits[pass]) {
            *start = sum;
            sum += count;
        }
        starts
    }
}

#[inline(always)]
fn scatter<P: Pair>(from: impl Iterator<Item = P>, to: &mut [P], mut starts: [usize; BINS], pass: usize) {
    for pair in from {
        // the mask is there already: with it the compiler sees that the digit is below BINS
        let start = &mut starts[digit(pair.key(), pass) & (BINS - 1)];
        to[*start] = pair;
        *start += 1;
    }
}

/// Sorts pairs that stand in index order.
///
/// # Errors
///
/// [`Error::OutOfMemory`].
pub(crate) fn sort<P: Pair>(mut pairs: Vec<P>) -> Result<Vec<P>> {
    if pairs.len() < FEW {
        pairs.sort_unstable();
        return Ok(pairs);
    }
    let keys = || pairs.iter().map(|pair| pair.key());
    if keys().is_sorted() {
        return Ok(pairs);
    }
    let counts = Counts::of(keys());
    let mut other = filled(pairs.len(), P::default())?;
    for pass in counts.passes(pairs.len()) {
        scatter(pairs.iter().copied(), &mut other, counts.starts(pass), pass);
        std::mem::swap(&mut pairs, &mut other);
    }
    Ok(pairs)
}

/// The pairs of all values, sorted: [`sort`], with the pairs made on the way to their first place.
///
/// # Errors
///
/// [`Error::OutOfMemory`].
pub(crate) fn sorted<F: Format, P: Pair>(values: &[F::Bits]) -> Result<Vec<P>> {
    let n = values.len();
    let pairs = || values.iter().enumerate().map(|(at, &value)| P::new(F::key(value), at));
    if n < FEW {
        return sort(pairs().collect());
    }
    let keys = || values.iter().map(|&value| F::key(value));
    // either look ends at once where the values are in no order
    let ascending = keys().is_sorted();
    if ascending || keys().is_sorted_by(|before, after| before > after) {
        let mut all = reserved(n)?;
        if ascending {
            all.extend(pairs());
        } else {
            all.extend(pairs().rev());
        }
        return Ok(all);
    }
    let counts = Counts::of(keys());
    let mut passes = counts.passes(n);
    let mut done = filled(n, P::default())?;
    // there is one: the keys are not all the same, or they would ascend
    if let Some(first) = passes.next() {
        scatter(pairs(), &mut done, counts.starts(first), first);
    }
    let mut passes = passes.peekable();
    let mut other = if passes.peek().is_some() { filled(n, P::default())? } else { Vec::new() };
    for pass in passes {
        scatter(done.iter().copied(), &mut other, counts.starts(pass), pass);
        std::mem::swap(&mut done, &mut other);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::F32;
    use crate::pair::key;

    fn values(n: usize, of: impl Fn(u32) -> f32) -> Vec<f32> {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        (0..n).map(|_| of(next())).collect()
    }

    fn check<P: Pair + std::fmt::Debug>(values: &[f32]) {
        let mut wanted: Vec<P> = values.iter().enumerate().map(|(at, &x)| P::new(key(x), at)).collect();
        let given = wanted.clone();
        wanted.sort();
        assert_eq!(sorted::<F32, P>(values), Ok(wanted.clone()));
        assert_eq!(sort(given), Ok(wanted));
    }

    #[test]
    fn every_length_and_every_number_of_passes_sorts_as_a_comparison_does() {
        let lengths = [0, 1, 2, FEW, FEW - 1, 4 * FEW];
        for &n in if cfg!(miri) { &lengths[..4] } else { &lengths[..] } {
            let mut cases = vec![
                values(n, |x| f32::from_bits(x.wrapping_mul(0x9e37_79b9))), // all four places, NaN among them
                values(n, |x| f32::from_bits((x & 0xff) << 16)),            // the low places alike
                values(n, |x| f32::from_bits((x & 1) << 22)),               // one place differs
                values(n, |_| 1.0),
                (0..n).map(|at| at as f32).collect(),
                (0..n).map(|at| -(at as f32)).collect(),
            ];
            // descending but for one pair of equals, which a reversal would turn round
            let mut nearly: Vec<f32> = (0..n).map(|at| -(at as f32)).collect();
            if n > 2 {
                nearly[n / 2] = nearly[n / 2 - 1];
            }
            cases.push(nearly);
            for case in cases {
                check::<u64>(&case);
                check::<u128>(&case);
            }
        }
    }
}
