//! The search for values within a bound, with the widest instructions the processor has.
//!
//! It is in integers, so a processor that was told to flush subnormal numbers to zero finds the same.

#[cfg(target_arch = "aarch64")]
use super::search_arm as arm;
#[cfg(target_arch = "x86_64")]
use super::search_x86 as x86;
use crate::bound::{Find, Format, portable};
use crate::load::F32;

/// The search in `float32`.
pub(crate) fn singles() -> Find<f32> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was just found.
            return |values, bound| unsafe { x86::singles_avx512(values, bound) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just found.
            return |values, bound| unsafe { x86::singles_avx2(values, bound) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        // SAFETY: the feature was just found.
        return |values, bound| unsafe { arm::singles(values, bound) };
    }
    portable::<F32>
}

/// The search in a format of 16 bits.
pub(crate) fn halves<F: Format<Bits = u16>>() -> Find<u16> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            // SAFETY: the features were just found.
            return |values, bound| unsafe { x86::halves_avx512::<F>(values, bound) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just found.
            return |values, bound| unsafe { x86::halves_avx2::<F>(values, bound) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        // SAFETY: the feature was just found.
        return |values, bound| unsafe { arm::halves::<F>(values, bound) };
    }
    portable::<F>
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bound::{BLOCK, Bound};
    use crate::load::{Bf16, F16};

    /// Every search against the definition, on the edges of the order in every place of a block.
    fn check<F: Format>(edges: &[F::Bits], finders: &[Find<F::Bits>]) {
        let within = |value: F::Bits, bound: Bound| match bound {
            Bound::UpTo(most) => F::key(value) <= most,
            Bound::Below(end) => F::key(value) < end,
        };
        let lengths = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 17];
        for n in if cfg!(miri) { &lengths[4..5] } else { &lengths[..] } {
            for step in [1, 3, 7] {
                let values: Vec<F::Bits> = (0..*n).map(|at| edges[at * step % edges.len()]).collect();
                let keys = edges.iter().map(|&edge| F::key(edge)).chain([0, 1, F::NAN]);
                for bound in keys.flat_map(|key| [Bound::UpTo(key), Bound::Below(key)]) {
                    for find in finders {
                        let (mut at, mut found) = (0, vec![]);
                        while let Some((block, hits)) = find(&values[at..], bound) {
                            at += block;
                            found.extend((0..BLOCK).filter(|bit| hits >> bit & 1 == 1).map(|bit| at + bit));
                            at = values.len().min(at + BLOCK);
                        }
                        let wanted: Vec<usize> = (0..*n).filter(|&at| within(values[at], bound)).collect();
                        assert_eq!(found, wanted, "{bound:?} of {n}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_search_in_singles_finds_the_values_within_the_bound() {
        let sizes = [
            0,
            1,
            0x7f_ffff,
            0x80_0000,
            0x3f80_0000,
            0x7f7f_ffff,
            0x7f80_0000,
            0x7f80_0001,
            0x7fc0_0000,
            0x7fff_ffff,
        ];
        let edges: Vec<f32> =
            sizes.iter().flat_map(|&bits| [bits, bits | 1 << 31]).map(f32::from_bits).collect();
        let mut finders: Vec<Find<f32>> = vec![portable::<F32>, singles()];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just found.
            finders.push(|values, bound| unsafe { x86::singles_avx2(values, bound) });
        }
        finders.rotate_left(1);
        check::<F32>(&edges, &finders);
    }

    fn check_halves<F: Format<Bits = u16>>() {
        let infinity = (F::INFINITY - F::ZERO) as u16;
        let one = 0x3fff & infinity;
        let sizes = [
            0,
            1,
            (1 << F::FRACTION) - 1,
            1 << F::FRACTION,
            one,
            infinity - 1,
            infinity,
            infinity + 1,
            0x7fff,
        ];
        let edges: Vec<u16> = sizes.iter().flat_map(|&bits| [bits, bits | 1 << 15]).collect();
        let mut finders: Vec<Find<u16>> = vec![portable::<F>, halves::<F>()];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just found.
            finders.push(|values, bound| unsafe { x86::halves_avx2::<F>(values, bound) });
        }
        finders.rotate_left(1);
        check::<F>(&edges, &finders);
    }

    #[test]
    fn every_search_in_halves_finds_the_values_within_the_bound() {
        check_halves::<Bf16>();
        check_halves::<F16>();
    }

    #[test]
    fn keys_of_halves_order_as_those_of_the_singles_they_are() {
        let step = if cfg!(miri) { 1009 } else { 1 };
        let single = |half: u16| f32::from_bits(u32::from(half) << 16);
        let mut halves: Vec<u16> = (0..=u16::MAX).step_by(step).collect();
        halves.sort_by_key(|&half| (Bf16::key(half), half));
        assert!(halves.is_sorted_by_key(|&half| F32::key(single(half))));
        for pair in halves.windows(2) {
            let equal = F32::key(single(pair[0])) == F32::key(single(pair[1]));
            assert_eq!(Bf16::key(pair[0]) == Bf16::key(pair[1]), equal);
        }
    }
}
