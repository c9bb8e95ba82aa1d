//! A key and an index in one integer, which sorts as the two do.

/// The unsigned integer that sorts as `value` does: `-inf < ... < -0.0 == 0.0 < ... < inf < NaN`.
///
/// Integer arithmetic only: a processor that was told to flush subnormal numbers to zero orders them all the same.
#[inline]
#[must_use]
pub fn key(value: f32) -> u32 {
    const INFINITY: u32 = 0x7f80_0000;
    let bits = value.to_bits();
    let size = bits & 0x7fff_ffff;
    if size > INFINITY {
        return u32::MAX;
    }
    // of the two zeros the positive one
    let bits = if size == 0 { 0 } else { bits };
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// What is sorted: distinct for distinct indices, so that an unstable sort is a stable one.
pub(crate) trait Pair: Copy + Ord + Default + Send + Sync {
    fn new(key: u32, index: usize) -> Self;
    fn key(self) -> u32;
    fn index(self) -> usize;
}

/// Indices below 2^32.
impl Pair for u64 {
    #[inline(always)]
    fn new(key: u32, index: usize) -> Self {
        u64::from(key) << 32 | index as u64
    }

    #[inline(always)]
    fn key(self) -> u32 {
        (self >> 32) as u32
    }

    #[inline(always)]
    fn index(self) -> usize {
        self as u32 as usize
    }
}

/// Any index.
impl Pair for u128 {
    #[inline(always)]
    fn new(key: u32, index: usize) -> Self {
        u128::from(key) << 64 | index as u128
    }

    #[inline(always)]
    fn key(self) -> u32 {
        (self >> 64) as u32
    }

    #[inline(always)]
    fn index(self) -> usize {
        self as u64 as usize
    }
}

/// Whether the indices of `n` values need the wide pair.
pub(crate) fn is_wide(n: usize) -> bool {
    u32::try_from(n.saturating_sub(1)).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_gives_back_what_it_was_made_of() {
        for key in [0, 1, u32::MAX] {
            for index in [0, 1, u32::MAX as usize] {
                assert_eq!((u64::new(key, index).key(), u64::new(key, index).index()), (key, index));
            }
            let far = u32::MAX as usize + 2;
            assert_eq!((u128::new(key, far).key(), u128::new(key, far).index()), (key, far));
        }
    }

    #[test]
    fn indices_above_32_bits_take_the_wide_pair() {
        let most = 1usize << 32;
        assert_eq!([0, 1, most, most + 1].map(is_wide), [false, false, false, true]);
    }
}
