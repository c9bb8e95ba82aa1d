//! The loops over rows, compiled for what the processor has, chosen at run time.
//!
//! No clone fuses a product with a sum, so all of them return the same bits. On aarch64 the portable loops are compiled
//! to NEON, which every such processor has.

#[cfg(target_arch = "x86_64")]
use super::rows_x86::Avx2;
use crate::load::Load;
use crate::row_block::{Block, sweep};
use crate::row_visit::Portable;

/// Fills a block with AVX2 where the processor has it. There is no clone for AVX-512: where both were measured, on Zen 4,
/// the same loops took no less with it, also with all sums in its registers: they wait for memory.
pub(crate) fn run<R: Load, T: Load>(block: Block<'_>) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: both features were just found.
        return unsafe { avx2::<R::Vector, T::Vector>(block) };
    }
    sweep::<R, T, Portable>(block);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn avx2<R: Load, T: Load>(block: Block<'_>) {
    sweep::<R, T, Avx2>(block);
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
    use crate::load::{Bf16, F16, F32};
    use crate::row_block::Scratch;
    use crate::row_stats::{Dtype, Row};

    type Found = (Vec<Row>, [Vec<f64>; 2]);

    /// Three rows, so that one is added to the columns while the next is read.
    fn fill<R: Load, T: Load>(
        by: fn(Block<'_>),
        bytes: [&[u8]; 2],
        round_to: Option<Dtype>,
        columns: usize,
    ) -> Found {
        let (mut rows, mut scratch) = ([Row::default(); 3], Scratch::new(columns));
        let reference: Vec<&[u8]> = bytes[0].chunks(columns * R::SIZE).collect();
        let tuned: Vec<&[u8]> = bytes[1].chunks(columns * T::SIZE).collect();
        by(Block { reference: &reference, tuned: &tuned, round_to, rows: &mut rows, scratch: &mut scratch });
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
        for columns in if cfg!(miri) { vec![17] } else { vec![1, 15, 16, 17, 768, 1100] } {
            let p: Vec<u8> = (0..3 * columns).flat_map(|_| value(R::SIZE)).collect();
            let f: Vec<u8> = (0..3 * columns).flat_map(|_| value(T::SIZE)).collect();
            for round_to in [None, Some(Dtype::F16), Some(Dtype::Bf16)] {
                let fastest = fill::<R, T>(run::<R, T>, [&p, &f], round_to, columns);
                let portable = fill::<R, T>(sweep::<R, T, Portable>, [&p, &f], round_to, columns);
                assert!(fastest.0.iter().all(|row| row.delta_squared > 0.0));
                assert_eq!(fastest, portable, "{columns} columns");
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
