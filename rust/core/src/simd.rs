//! The one place with `unsafe`: the same loops compiled for what the processor has.
//!
//! No clone fuses a product with a sum, so all of them return the same bits.
#![allow(unsafe_code)]

use crate::load::Load;
use crate::row_block::{Block, sweep};

/// Fills a block with the widest instructions this processor has.
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
