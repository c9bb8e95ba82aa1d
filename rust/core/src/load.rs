//! Sixteen-bit and 32-bit floats from little-endian bytes.

/// Values handled together: two AVX2 registers, one AVX-512 register, four of SSE2 or NEON.
pub(crate) const LANES: usize = 16;

/// A float format: how `LANES` values are read.
pub(crate) trait Load {
    /// Bytes per value.
    const SIZE: usize;
    /// The same values by instructions that a vector unit adds.
    type Vector: Load;

    /// `bytes` holds exactly `LANES` values.
    fn lanes(bytes: &[u8]) -> [f32; LANES];
}

/// `float32`.
pub(crate) struct F32;

/// `bfloat16`: the upper half of a `float32`.
pub(crate) struct Bf16;

/// `float16`, in integer arithmetic.
pub(crate) struct F16;

impl Load for F32 {
    const SIZE: usize = 4;
    type Vector = Self;

    #[inline(always)]
    fn lanes(bytes: &[u8]) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        for (lane, b) in lanes.iter_mut().zip(bytes.chunks_exact(4)) {
            *lane = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        }
        lanes
    }
}

impl Load for Bf16 {
    const SIZE: usize = 2;
    type Vector = Self;

    #[inline(always)]
    fn lanes(bytes: &[u8]) -> [f32; LANES] {
        let (halves, mut lanes) = (halves(bytes), [0.0; LANES]);
        for l in 0..LANES {
            lanes[l] = f32::from_bits(u32::from(halves[l]) << 16);
        }
        lanes
    }
}

impl Load for F16 {
    const SIZE: usize = 2;
    #[cfg(target_arch = "x86_64")]
    type Vector = crate::machine::rows::F16c;
    #[cfg(not(target_arch = "x86_64"))]
    type Vector = Self;

    #[inline(always)]
    fn lanes(bytes: &[u8]) -> [f32; LANES] {
        let (halves, mut lanes) = (halves(bytes), [0.0; LANES]);
        for l in 0..LANES {
            lanes[l] = widen(halves[l]);
        }
        lanes
    }
}

/// The bits of `LANES` 16-bit values.
#[inline(always)]
pub(crate) fn halves(bytes: &[u8]) -> [u16; LANES] {
    let mut lanes = [0; LANES];
    for (lane, b) in lanes.iter_mut().zip(bytes.chunks_exact(2)) {
        *lane = u16::from_le_bytes([b[0], b[1]]);
    }
    lanes
}

/// The `float32` of `float16` bits, without branches so that it vectorizes.
#[inline(always)]
fn widen(half: u16) -> f32 {
    const SMALLEST_NORMAL: u32 = 113 << 23; // 2^-14
    let magnitude = u32::from(half & 0x7fff) << 13;
    let normal = magnitude + (112 << 23);
    // a subnormal is a fraction of 2^-14: read as one above 2^-14, of which 2^-14 is taken
    let subnormal = f32::from_bits(magnitude + SMALLEST_NORMAL) - f32::from_bits(SMALLEST_NORMAL);
    let bits = if magnitude < 1 << 23 {
        subnormal.to_bits()
    } else if magnitude >= 31 << 23 {
        magnitude | 255 << 23
    } else {
        normal
    };
    f32::from_bits(bits | u32::from(half & 0x8000) << 16)
}

/// `value` as `bfloat16` would hold it: to nearest, ties to even.
#[inline(always)]
pub(crate) fn as_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & !0xffff;
    if value.is_nan() { value } else { f32::from_bits(rounded) }
}

/// `value` as `float16` would hold it: to nearest, ties to even, infinite from 65520 on.
#[inline(always)]
pub(crate) fn as_f16(value: f32) -> f32 {
    let (bits, magnitude) = (value.to_bits(), value.abs());
    let normal = f32::from_bits(bits.wrapping_add(0xfff + (bits >> 13 & 1)) & !0x1fff).abs();
    // below 2^-14 the step is 2^-24, which is the step of floats in [0.5, 1)
    let small = (magnitude + 0.5) - 0.5;
    let rounded = if magnitude < f32::from_bits(113 << 23) {
        small
    } else if normal >= 65536.0 {
        f32::INFINITY
    } else {
        normal
    };
    if value.is_nan() { value } else { rounded.copysign(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f16(half: u16) -> f32 {
        F16::lanes(&half.to_le_bytes().repeat(LANES))[0]
    }

    /// The definition of the format.
    fn defined(half: u16) -> f64 {
        // powi may round, by its documentation, and does under Miri
        let power = |exponent: i32| f64::from_bits(((1023 + exponent) as u64) << 52);
        let (exponent, fraction) = (i32::from(half >> 10 & 31), f64::from(half & 1023));
        let magnitude = match exponent {
            0 => fraction * power(-24),
            31 if fraction == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1024.0 + fraction) * power(exponent - 25),
        };
        if half >> 15 == 1 { -magnitude } else { magnitude }
    }

    /// One in so many halves is looked at.
    const STEP: usize = if cfg!(miri) { 251 } else { 1 };

    #[test]
    fn every_half_is_what_the_format_says() {
        for half in (0..=u16::MAX).step_by(STEP) {
            let (got, wanted) = (f64::from(f16(half)), defined(half));
            assert!(
                got == wanted && got.is_sign_negative() == wanted.is_sign_negative()
                    || wanted.is_nan() && got.is_nan(),
                "{half:#x}"
            );
        }
    }

    #[test]
    fn rounding_goes_to_the_nearest_half_and_ties_to_even() {
        for half in (0..0x7c00_u16).step_by(STEP) {
            let (low, high) = (f16(half), if half == 0x7bff { 65536.0 } else { f16(half + 1) });
            let middle = (low + high) / 2.0; // exact: a half has 13 bits less than it could
            let above = if half == 0x7bff { f32::INFINITY } else { high };
            let even = if half % 2 == 0 { low } else { above };
            let (before, after) =
                (f32::from_bits(middle.to_bits() - 1), f32::from_bits(middle.to_bits() + 1));
            for (value, wanted) in [(low, low), (before, low), (middle, even), (after, above)] {
                assert_eq!((as_f16(value), as_f16(-value)), (wanted, -wanted), "{value} of {half:#x}");
            }
        }
        assert!(as_f16(f32::NAN).is_nan() && as_f16(f32::INFINITY) == f32::INFINITY);
    }

    #[test]
    fn rounding_to_the_upper_half_is_to_nearest_and_even() {
        for upper in (0..0x7f80_u32).step_by(7 * STEP) {
            let (low, high) = (f32::from_bits(upper << 16), f32::from_bits((upper + 1) << 16));
            let even = if upper % 2 == 0 { low } else { high };
            let at = |lower: u32| as_bf16(f32::from_bits(upper << 16 | lower));
            assert_eq!([at(0), at(0x7fff), at(0x8000), at(0x8001)], [low, low, even, high]);
        }
        assert!(as_bf16(f32::from_bits(0x7f80_0001)).is_nan());
    }
}
