//! The same loops compiled for what the processor has, chosen at run time.
//!
//! No clone fuses a product with a sum, so all of them return the same bits. The search is in integers, so a processor
//! that was told to flush subnormal numbers to zero finds the same. On aarch64 the portable loops are compiled to NEON,
//! which every such processor has.

use crate::bound::{Find, portable};
use crate::load::Load;
use crate::row_block::{Block, sweep};

/// Fills a block with AVX2 where the processor has it. There is no clone for AVX-512: where both were measured, on Zen 4,
/// the same loops took longer with it.
pub(crate) fn run<R: Load, T: Load>(block: Block<'_>) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: both features were just found.
        return unsafe { avx2::<R::Vector, T::Vector>(block) };
    }
    sweep::<R, T>(block);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn avx2<R: Load, T: Load>(block: Block<'_>) {
    sweep::<R, T>(block);
}

/// The search with the widest instructions this processor has.
pub(crate) fn finder() -> Find {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was just found.
            return |values, bound| unsafe { find::avx512(values, bound) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just found.
            return |values, bound| unsafe { find::avx2(values, bound) };
        }
    }
    portable
}

#[cfg(target_arch = "x86_64")]
mod find {
    use std::arch::x86_64::{
        __m256i, _mm256_castsi256_ps, _mm256_cmpgt_epi32, _mm256_loadu_si256, _mm256_movemask_ps,
        _mm256_set1_epi32, _mm256_srai_epi32, _mm256_srli_epi32, _mm256_sub_epi32, _mm256_xor_si256,
        _mm512_cmple_epi32_mask, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_srai_epi32, _mm512_srli_epi32,
        _mm512_sub_epi32, _mm512_xor_si512,
    };

    use crate::bound::{BLOCK, Bound, SHIFT, last};

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(values: &[f32], bound: Bound) -> Option<(usize, u64)> {
        let limit = bound.limit()?;
        let (most, shift) = (_mm512_set1_epi32(limit), _mm512_set1_epi32(SHIFT));
        let (blocks, rest) = values.as_chunks::<BLOCK>();
        for (at, block) in blocks.iter().enumerate() {
            let mut hits = 0;
            for (part, lanes) in block.as_chunks::<16>().0.iter().enumerate() {
                // SAFETY: sixteen floats are read; they need no alignment.
                let bits = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
                let sign = _mm512_srli_epi32::<1>(_mm512_srai_epi32::<31>(bits));
                let place = _mm512_sub_epi32(_mm512_xor_si512(bits, sign), shift);
                hits |= u64::from(_mm512_cmple_epi32_mask(place, most)) << (16 * part);
            }
            if hits != 0 {
                return Some((at * BLOCK, hits));
            }
        }
        last(blocks.len() * BLOCK, rest, limit)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(values: &[f32], bound: Bound) -> Option<(usize, u64)> {
        let limit = bound.limit()?;
        let (most, shift) = (_mm256_set1_epi32(limit), _mm256_set1_epi32(SHIFT));
        let (blocks, rest) = values.as_chunks::<BLOCK>();
        for (at, block) in blocks.iter().enumerate() {
            let mut hits = 0;
            for (part, lanes) in block.as_chunks::<8>().0.iter().enumerate() {
                // SAFETY: eight floats are read; they need no alignment.
                let bits = unsafe { _mm256_loadu_si256(lanes.as_ptr().cast::<__m256i>()) };
                let sign = _mm256_srli_epi32::<1>(_mm256_srai_epi32::<31>(bits));
                let place = _mm256_sub_epi32(_mm256_xor_si256(bits, sign), shift);
                let beyond = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(place, most)));
                hits |= u64::from(!beyond as u8) << (8 * part);
            }
            if hits != 0 {
                return Some((at * BLOCK, hits));
            }
        }
        last(blocks.len() * BLOCK, rest, limit)
    }
}

/// `float16` by the F16C instructions. Named as [`Load::Vector`] only, which [`run`] alone uses, having looked.
#[cfg(target_arch = "x86_64")]
pub(crate) struct F16c;

#[cfg(target_arch = "x86_64")]
mod f16c {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};

    use super::F16c;
    use crate::load::{LANES, Load, halves};

    impl Load for F16c {
        const SIZE: usize = 2;
        type Vector = Self;

        #[inline(always)]
        fn lanes(bytes: &[u8]) -> [f32; LANES] {
            // SAFETY: the type is used behind a look for the feature.
            unsafe { widen(halves(bytes)) }
        }
    }

    #[inline]
    #[target_feature(enable = "avx,f16c")]
    fn widen(halves: [u16; LANES]) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        for (eight, from) in lanes.chunks_exact_mut(8).zip(halves.chunks_exact(8)) {
            // SAFETY: eight halves are read and eight floats written; neither needs alignment.
            unsafe {
                let bits = _mm_loadu_si128(from.as_ptr().cast::<__m128i>());
                _mm256_storeu_ps(eight.as_mut_ptr(), _mm256_cvtph_ps(bits));
            }
        }
        lanes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bound::{BLOCK, Bound};
    use crate::load::{Bf16, F16, F32};
    use crate::pair::key;
    use crate::row_block::Scratch;
    use crate::row_stats::{Dtype, Row};

    type Found = (Vec<Row>, [Vec<f64>; 2]);

    fn fill(by: fn(Block<'_>), bytes: [&[u8]; 2], round_to: Option<Dtype>, columns: usize) -> Found {
        let (mut rows, mut scratch) = ([Row::default()], Scratch::new(columns));
        let [reference, tuned] = [&[bytes[0]], &[bytes[1]]];
        by(Block { reference, tuned, round_to, rows: &mut rows, scratch: &mut scratch });
        (rows.to_vec(), scratch.columns)
    }

    fn agree<R: Load, T: Load>() {
        let mut state = 1u32;
        // the exponents of weights, so that no row leaves the ordinary way
        let mut value = |size: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let high = (state >> 16) as u16 & 0x83ff | if size == 4 { 0x3c00 } else { 0x3000 };
            [state as u8, (state >> 8) as u8, high as u8, (high >> 8) as u8][4 - size..].to_vec()
        };
        for columns in [1, 15, 16, 17, 768, 1100] {
            let p: Vec<u8> = (0..columns).flat_map(|_| value(R::SIZE)).collect();
            let f: Vec<u8> = (0..columns).flat_map(|_| value(T::SIZE)).collect();
            for round_to in [None, Some(Dtype::F16), Some(Dtype::Bf16)] {
                let fastest = fill(run::<R, T>, [&p, &f], round_to, columns);
                let portable = fill(sweep::<R, T>, [&p, &f], round_to, columns);
                assert!(fastest.0[0].delta_squared > 0.0);
                assert_eq!(fastest, portable, "{columns} columns");
            }
        }
    }

    fn finders() -> Vec<Find> {
        let mut found: Vec<Find> = vec![portable, finder()];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the feature was just found.
            found.push(|values, bound| unsafe { find::avx2(values, bound) });
        }
        found
    }

    #[test]
    fn every_search_finds_the_values_within_the_bound() {
        let edges = [
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
            edges.iter().flat_map(|&bits| [bits, bits | 1 << 31]).map(f32::from_bits).collect();
        let within = |value: f32, bound: Bound| match bound {
            Bound::UpTo(most) => key(value) <= most,
            Bound::Below(end) => key(value) < end,
        };
        for n in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 17] {
            for step in [1, 3, 7] {
                let values: Vec<f32> = (0..n).map(|at| edges[at * step % edges.len()]).collect();
                let keys = edges.iter().map(|&edge| key(edge)).chain([0, 1, u32::MAX]);
                for bound in keys.flat_map(|key| [Bound::UpTo(key), Bound::Below(key)]) {
                    for find in finders() {
                        let (mut at, mut found) = (0, vec![]);
                        while let Some((block, hits)) = find(&values[at..], bound) {
                            at += block;
                            found.extend((0..BLOCK).filter(|bit| hits >> bit & 1 == 1).map(|bit| at + bit));
                            at = n.min(at + BLOCK);
                        }
                        let wanted: Vec<usize> = (0..n).filter(|&at| within(values[at], bound)).collect();
                        assert_eq!(found, wanted, "{bound:?} of {n}");
                    }
                }
            }
        }
    }

    #[test]
    fn this_processor_gives_the_bits_that_any_other_gives() {
        agree::<F32, F32>();
        agree::<F16, F16>();
        agree::<Bf16, Bf16>();
        agree::<F16, F32>();
        agree::<F32, Bf16>();
    }
}
