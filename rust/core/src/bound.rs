//! A bound on keys, and the search for values within it.

use crate::load::{Bf16, F16, F32};
use crate::machine::search;
use crate::pair::key;

/// Values looked at together: as many as a word has bits.
pub(crate) const BLOCK: usize = 64;

/// A format of floats that are ranked as they are stored.
pub(crate) trait Format {
    /// What a value is stored as.
    type Bits: Copy + Send + Sync;
    /// Bits of a value.
    const WIDTH: u32;
    /// Bits of its fraction.
    const FRACTION: u32;

    /// The highest key, that of NaN.
    const NAN: u32 = u32::MAX >> (32 - Self::WIDTH);
    /// The key of zero.
    const ZERO: u32 = 1 << (Self::WIDTH - 1);
    /// Puts minus infinity on the lowest integer of the width, so that every NaN, of either sign, wraps around to above
    /// infinity.
    const SHIFT: u32 = (1 << Self::FRACTION) - 1;
    /// The key of infinity.
    const INFINITY: u32 = Self::NAN - Self::SHIFT;

    /// The unsigned integer that sorts as the value does, as [`key`].
    fn key(value: Self::Bits) -> u32;

    /// Ascends as the keys of values do, in the integers of the width.
    fn place(value: Self::Bits) -> i32;

    /// The search with the widest instructions this processor has.
    fn finder() -> Find<Self::Bits>;
}

impl Format for F32 {
    type Bits = f32;
    const WIDTH: u32 = 32;
    const FRACTION: u32 = 23;

    #[inline(always)]
    fn key(value: f32) -> u32 {
        key(value)
    }

    #[inline(always)]
    fn place(value: f32) -> i32 {
        let bits = value.to_bits() as i32;
        (bits ^ ((bits >> 31) as u32 >> 1) as i32).wrapping_sub(Self::SHIFT as i32)
    }

    fn finder() -> Find<f32> {
        search::singles()
    }
}

macro_rules! half {
    ($format:ident, $fraction:literal) => {
        impl Format for $format {
            type Bits = u16;
            const WIDTH: u32 = 16;
            const FRACTION: u32 = $fraction;

            #[inline(always)]
            fn key(value: u16) -> u32 {
                let size = u32::from(value & 0x7fff);
                if size > Self::INFINITY - Self::ZERO {
                    Self::NAN
                } else if size == 0 {
                    Self::ZERO
                } else if value >> 15 == 1 {
                    u32::from(!value)
                } else {
                    size | Self::ZERO
                }
            }

            #[inline(always)]
            fn place(value: u16) -> i32 {
                let bits = value as i16;
                i32::from((bits ^ ((bits >> 15) as u16 >> 1) as i16).wrapping_sub(Self::SHIFT as i16))
            }

            fn finder() -> Find<u16> {
                search::halves::<Self>()
            }
        }
    };
}

half!(Bf16, 7);
half!(F16, 10);

/// What a value must be to be of interest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bound {
    /// Its [`Format::key`] is this or lower.
    UpTo(u32),
    /// Its key is lower.
    Below(u32),
}

impl Bound {
    /// The highest [`Format::place`] within the bound; nothing where no value is. A negative zero has a place of its own,
    /// one below that of zero.
    pub(crate) fn limit<F: Format>(self) -> Option<i32> {
        let place = |key: u32| i64::from(key) - i64::from(F::ZERO) - i64::from(F::SHIFT);
        let limit = match self {
            Self::UpTo(key) if key >= F::NAN => i64::from(F::ZERO) - 1,
            Self::Below(key) if key >= F::NAN => place(F::INFINITY),
            Self::UpTo(key) => place(key.min(F::INFINITY)),
            Self::Below(key) if key == F::ZERO => place(key) - 2,
            Self::Below(key) => (place(key) - 1).min(place(F::INFINITY)),
        };
        i32::try_from(limit).ok().filter(|&limit| i64::from(limit) >= -i64::from(F::ZERO))
    }
}

/// Finds the first block of values with one within the bound: where it starts, and a bit for each value of it.
pub(crate) type Find<T> = fn(&[T], Bound) -> Option<(usize, u64)>;

/// [`Find`] on any processor.
pub(crate) fn portable<F: Format>(values: &[F::Bits], bound: Bound) -> Option<(usize, u64)> {
    let limit = bound.limit::<F>()?;
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    for (at, block) in blocks.iter().enumerate() {
        // a sum, which compilers make vectors of; the bits are made where there are any
        let count: u32 = block.iter().map(|&value| u32::from(F::place(value) <= limit)).sum();
        if count > 0 {
            return Some((at * BLOCK, bits::<F>(block, limit)));
        }
    }
    last::<F>(blocks.len() * BLOCK, rest, limit)
}

/// The values after the last whole block.
pub(crate) fn last<F: Format>(at: usize, rest: &[F::Bits], limit: i32) -> Option<(usize, u64)> {
    let hits = bits::<F>(rest, limit);
    (hits != 0).then_some((at, hits))
}

fn bits<F: Format>(values: &[F::Bits], limit: i32) -> u64 {
    let bit = |(at, &value): (usize, &F::Bits)| u64::from(F::place(value) <= limit) << at;
    values.iter().enumerate().map(bit).fold(0, |hits, bit| hits | bit)
}
