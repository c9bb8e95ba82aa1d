//! The search by NEON.

use std::arch::aarch64::{
    uint8x16_t, vandq_u8, vcleq_s16, vcleq_s32, vcombine_u8, vcombine_u16, vdupq_n_s16, vdupq_n_s32,
    vdupq_n_u8, veorq_s16, veorq_s32, vgetq_lane_u64, vld1q_s16, vld1q_s32, vld1q_u8, vmovn_u16, vmovn_u32,
    vpaddq_u8, vreinterpretq_s16_u16, vreinterpretq_s32_u32, vreinterpretq_u16_s16, vreinterpretq_u32_s32,
    vreinterpretq_u64_u8, vshrq_n_s16, vshrq_n_s32, vshrq_n_u16, vshrq_n_u32, vsubq_s16, vsubq_s32,
};

use crate::bound::{BLOCK, Bound, Format, last};
use crate::load::F32;

/// A bit of every byte, in their order; bytes are 0 or all ones.
#[target_feature(enable = "neon")]
fn bits(bytes: [uint8x16_t; 4]) -> u64 {
    const WEIGHTS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
    // SAFETY: sixteen bytes are read.
    let weights = unsafe { vld1q_u8(WEIGHTS.as_ptr()) };
    let [a, b, c, d] = bytes.map(|part| vandq_u8(part, weights));
    let sums = vpaddq_u8(vpaddq_u8(a, b), vpaddq_u8(c, d));
    vgetq_lane_u64::<0>(vreinterpretq_u64_u8(vpaddq_u8(sums, sums)))
}

#[target_feature(enable = "neon")]
pub(super) fn singles(values: &[f32], bound: Bound) -> Option<(usize, u64)> {
    let limit = bound.limit::<F32>()?;
    let (most, shift) = (vdupq_n_s32(limit), vdupq_n_s32(F32::SHIFT as i32));
    let within = |lanes: &[f32; 4]| {
        // SAFETY: four floats are read; they need the alignment of one.
        let bits = unsafe { vld1q_s32(lanes.as_ptr().cast()) };
        let sign = vshrq_n_u32::<1>(vreinterpretq_u32_s32(vshrq_n_s32::<31>(bits)));
        vcleq_s32(vsubq_s32(veorq_s32(bits, vreinterpretq_s32_u32(sign)), shift), most)
    };
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    for (at, block) in blocks.iter().enumerate() {
        let mut bytes = [vdupq_n_u8(0); 4];
        for (bytes, lanes) in bytes.iter_mut().zip(block.as_chunks::<16>().0) {
            let quads = lanes.as_chunks::<4>().0;
            let low = vcombine_u16(vmovn_u32(within(&quads[0])), vmovn_u32(within(&quads[1])));
            let high = vcombine_u16(vmovn_u32(within(&quads[2])), vmovn_u32(within(&quads[3])));
            *bytes = vcombine_u8(vmovn_u16(low), vmovn_u16(high));
        }
        let hits = bits(bytes);
        if hits != 0 {
            return Some((at * BLOCK, hits));
        }
    }
    last::<F32>(blocks.len() * BLOCK, rest, limit)
}

#[target_feature(enable = "neon")]
pub(super) fn halves<F: Format<Bits = u16>>(values: &[u16], bound: Bound) -> Option<(usize, u64)> {
    let limit = bound.limit::<F>()?;
    let (most, shift) = (vdupq_n_s16(limit as i16), vdupq_n_s16(F::SHIFT as i16));
    let within = |lanes: &[u16; 8]| {
        // SAFETY: eight values of 16 bits are read; they need the alignment of one.
        let bits = unsafe { vld1q_s16(lanes.as_ptr().cast()) };
        let sign = vshrq_n_u16::<1>(vreinterpretq_u16_s16(vshrq_n_s16::<15>(bits)));
        vcleq_s16(vsubq_s16(veorq_s16(bits, vreinterpretq_s16_u16(sign)), shift), most)
    };
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    for (at, block) in blocks.iter().enumerate() {
        let mut bytes = [vdupq_n_u8(0); 4];
        for (bytes, lanes) in bytes.iter_mut().zip(block.as_chunks::<16>().0) {
            let eights = lanes.as_chunks::<8>().0;
            *bytes = vcombine_u8(vmovn_u16(within(&eights[0])), vmovn_u16(within(&eights[1])));
        }
        let hits = bits(bytes);
        if hits != 0 {
            return Some((at * BLOCK, hits));
        }
    }
    last::<F>(blocks.len() * BLOCK, rest, limit)
}
