//! The search by AVX2 and AVX-512.

use std::arch::x86_64::{
    __m256i, _mm256_castsi256_ps, _mm256_cmpgt_epi16, _mm256_cmpgt_epi32, _mm256_loadu_si256,
    _mm256_movemask_epi8, _mm256_movemask_ps, _mm256_packs_epi16, _mm256_permute4x64_epi64,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_srai_epi16, _mm256_srai_epi32, _mm256_srli_epi16,
    _mm256_srli_epi32, _mm256_sub_epi16, _mm256_sub_epi32, _mm256_xor_si256, _mm512_cmple_epi16_mask,
    _mm512_cmple_epi32_mask, _mm512_loadu_si512, _mm512_set1_epi16, _mm512_set1_epi32, _mm512_srai_epi16,
    _mm512_srai_epi32, _mm512_srli_epi16, _mm512_srli_epi32, _mm512_sub_epi16, _mm512_sub_epi32,
    _mm512_xor_si512,
};

use crate::bound::{BLOCK, Bound, Format, last};
use crate::load::F32;

#[target_feature(enable = "avx512f")]
pub(super) fn singles_avx512(values: &[f32], bound: Bound) -> Option<(usize, u64)> {
    let limit = bound.limit::<F32>()?;
    let (most, shift) = (_mm512_set1_epi32(limit), _mm512_set1_epi32(F32::SHIFT as i32));
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
    last::<F32>(blocks.len() * BLOCK, rest, limit)
}

#[target_feature(enable = "avx2")]
pub(super) fn singles_avx2(values: &[f32], bound: Bound) -> Option<(usize, u64)> {
    let limit = bound.limit::<F32>()?;
    let (most, shift) = (_mm256_set1_epi32(limit), _mm256_set1_epi32(F32::SHIFT as i32));
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
    last::<F32>(blocks.len() * BLOCK, rest, limit)
}

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn halves_avx512<F: Format<Bits = u16>>(values: &[u16], bound: Bound) -> Option<(usize, u64)> {
    let limit = bound.limit::<F>()?;
    let (most, shift) = (_mm512_set1_epi16(limit as i16), _mm512_set1_epi16(F::SHIFT as i16));
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    for (at, block) in blocks.iter().enumerate() {
        let mut hits = 0;
        for (part, lanes) in block.as_chunks::<32>().0.iter().enumerate() {
            // SAFETY: 32 values of 16 bits are read; they need no alignment.
            let bits = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
            let sign = _mm512_srli_epi16::<1>(_mm512_srai_epi16::<15>(bits));
            let place = _mm512_sub_epi16(_mm512_xor_si512(bits, sign), shift);
            hits |= u64::from(_mm512_cmple_epi16_mask(place, most)) << (32 * part);
        }
        if hits != 0 {
            return Some((at * BLOCK, hits));
        }
    }
    last::<F>(blocks.len() * BLOCK, rest, limit)
}

#[target_feature(enable = "avx2")]
pub(super) fn halves_avx2<F: Format<Bits = u16>>(values: &[u16], bound: Bound) -> Option<(usize, u64)> {
    let limit = bound.limit::<F>()?;
    let (most, shift) = (_mm256_set1_epi16(limit as i16), _mm256_set1_epi16(F::SHIFT as i16));
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    for (at, block) in blocks.iter().enumerate() {
        let mut hits = 0;
        for (part, lanes) in block.as_chunks::<32>().0.iter().enumerate() {
            let mut beyond = [_mm256_set1_epi16(0); 2];
            for (beyond, lanes) in beyond.iter_mut().zip(lanes.as_chunks::<16>().0) {
                // SAFETY: sixteen values of 16 bits are read; they need no alignment.
                let bits = unsafe { _mm256_loadu_si256(lanes.as_ptr().cast::<__m256i>()) };
                let sign = _mm256_srli_epi16::<1>(_mm256_srai_epi16::<15>(bits));
                let place = _mm256_sub_epi16(_mm256_xor_si256(bits, sign), shift);
                *beyond = _mm256_cmpgt_epi16(place, most);
            }
            // packed by halves of the registers, which the permutation puts in order
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(beyond[0], beyond[1]));
            hits |= u64::from(!_mm256_movemask_epi8(packed) as u32) << (32 * part);
        }
        if hits != 0 {
            return Some((at * BLOCK, hits));
        }
    }
    last::<F>(blocks.len() * BLOCK, rest, limit)
}
