//! The lanes of a row brought together by AVX2.
//!
//! The compiler takes lanes one by one here, which costs a twentieth of the whole pass. The additions and their order are those of
//! [`Portable`](crate::row_visit::Portable), so the bits are too.

use std::arch::x86_64::{
    __m256i, _mm_add_epi32, _mm_add_pd, _mm_add_sd, _mm_cvtsd_f64, _mm_cvtsi128_si32, _mm_cvtss_f32,
    _mm_loadu_ps, _mm_max_ps, _mm_max_ss, _mm_movehdup_ps, _mm_movehl_ps, _mm_shuffle_epi32, _mm_unpackhi_pd,
    _mm256_add_epi32, _mm256_add_pd, _mm256_castpd256_pd128, _mm256_castps256_ps128, _mm256_castsi256_si128,
    _mm256_cvtps_pd, _mm256_extractf128_pd, _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_max_ps,
};

use crate::load::LANES;
use crate::row_visit::Fold;

/// Named in [`run`](super::rows::run) alone, which has looked for the feature.
pub(crate) struct Avx2;

impl Fold for Avx2 {
    #[inline(always)]
    fn sum(lanes: &[f32; LANES]) -> f64 {
        // SAFETY: the type is used behind a look for the feature.
        unsafe { sum(lanes) }
    }

    #[inline(always)]
    fn largest(lanes: &[f32; LANES]) -> f32 {
        // SAFETY: as above.
        unsafe { largest(lanes) }
    }

    #[inline(always)]
    fn count(lanes: &[u32; LANES]) -> u32 {
        // SAFETY: as above.
        unsafe { count(lanes) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum(lanes: &[f32; LANES]) -> f64 {
    // SAFETY: four floats are read of each quarter; they need no alignment.
    let [a, b, c, d] =
        [0, 4, 8, 12].map(|at| unsafe { _mm256_cvtps_pd(_mm_loadu_ps(lanes[at..at + 4].as_ptr())) });
    let four = _mm256_add_pd(_mm256_add_pd(a, c), _mm256_add_pd(b, d));
    let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
    _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn largest(lanes: &[f32; LANES]) -> f32 {
    // SAFETY: eight floats are read of each half; they need no alignment.
    let [low, high] = [0, 8].map(|at| unsafe { _mm256_loadu_ps(lanes[at..at + 8].as_ptr()) });
    let eight = _mm256_max_ps(low, high);
    let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn count(lanes: &[u32; LANES]) -> u32 {
    // SAFETY: eight counts are read of each half; they need no alignment.
    let [low, high] =
        [0, 8].map(|at| unsafe { _mm256_loadu_si256(lanes[at..at + 8].as_ptr().cast::<__m256i>()) });
    let eight = _mm256_add_epi32(low, high);
    let four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two))) as u32
}
