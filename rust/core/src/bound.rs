//! A bound on keys, and the search for values within it.

/// Values looked at together: as many as a word has bits.
pub(crate) const BLOCK: usize = 64;

/// Puts minus infinity on the lowest `i32`, so that every NaN, of either sign, wraps around to above infinity.
pub(crate) const SHIFT: i32 = 0x7f_ffff;

/// What a value must be to be of interest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bound {
    /// Its [`key`](crate::key) is this or lower.
    UpTo(u32),
    /// Its key is lower.
    Below(u32),
}

impl Bound {
    /// The highest [`place`] within the bound; nothing where no value is. A negative zero has a place of its own, one
    /// below that of zero.
    pub(crate) fn limit(self) -> Option<i32> {
        const ZERO: u32 = 1 << 31;
        const INFINITY: u32 = 0xff80_0000;
        const NAN: u32 = u32::MAX;
        let place = |key: u32| (key as i64 - i64::from(ZERO)) - i64::from(SHIFT);
        let limit = match self {
            Self::UpTo(NAN) => i64::from(i32::MAX),
            Self::Below(NAN) => place(INFINITY),
            Self::UpTo(key) => place(key.min(INFINITY)),
            Self::Below(ZERO) => place(ZERO) - 2,
            Self::Below(key) => (place(key) - 1).min(place(INFINITY)),
        };
        i32::try_from(limit).ok()
    }
}

/// Ascends as the keys of values do.
#[inline(always)]
fn place(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    (bits ^ ((bits >> 31) as u32 >> 1) as i32).wrapping_sub(SHIFT)
}

/// Finds the first block of values with one within the bound: where it starts, and a bit for each value of it.
pub(crate) type Find = fn(&[f32], Bound) -> Option<(usize, u64)>;

/// [`Find`] on any processor.
pub(crate) fn portable(values: &[f32], bound: Bound) -> Option<(usize, u64)> {
    let limit = bound.limit()?;
    let (blocks, rest) = values.as_chunks::<BLOCK>();
    for (at, block) in blocks.iter().enumerate() {
        // a sum, which compilers make vectors of; the bits are made where there are any
        let count: u32 = block.iter().map(|&value| u32::from(place(value) <= limit)).sum();
        if count > 0 {
            return Some((at * BLOCK, bits(block, limit)));
        }
    }
    last(blocks.len() * BLOCK, rest, limit)
}

/// The values after the last whole block.
pub(crate) fn last(at: usize, rest: &[f32], limit: i32) -> Option<(usize, u64)> {
    let hits = bits(rest, limit);
    (hits != 0).then_some((at, hits))
}

fn bits(values: &[f32], limit: i32) -> u64 {
    values.iter().enumerate().fold(0, |hits, (at, &value)| hits | u64::from(place(value) <= limit) << at)
}
