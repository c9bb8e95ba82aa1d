//! Two versions of a tensor mixed element by element, by a mask that is computed and never stored.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::{Error, Result};

/// Elements that one thread works on at a time.
const BLOCK: usize = 1 << 16;
/// Elements whose lanes are at hand at a time. They start on a multiple of four.
const STRIP: usize = 256;
/// The most a lane can be compared with: [`Mask::kept_of_65536`] of everything.
const ALL: u32 = 1 << 16;

/// Which elements of a tensor are kept from its tuned version.
///
/// Element `e` has a lane of 16 bits, `hash(seed, key, e / 4) >> 16 (e % 4)`, and is kept when the lane is below
/// `kept_of_65536`. So a mask depends on neither order nor threads, and one that keeps fewer is part of one
/// that keeps more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    /// Where the elements of this tensor lie on the generator's orbit.
    origin: u64,
    kept_of_65536: u32,
}

impl Mask {
    /// The mask of the tensor called `key` under `seed`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when `kept_of_65536` is above 65536.
    pub fn new(seed: u64, key: u64, kept_of_65536: u32) -> Result<Self> {
        if kept_of_65536 > ALL {
            let got = f64::from(kept_of_65536);
            return Err(Error::OutOfBounds { name: "kept_of_65536", got, wanted: "at most 65536" });
        }
        Ok(Self { origin: scramble(seed ^ scramble(key)), kept_of_65536 })
    }

    /// The lanes of four elements, the first in the low bits: SplitMix64 entered at the wanted place.
    #[inline(always)]
    fn word(self, at: u64) -> u64 {
        scramble(self.origin.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
}

/// The output function of SplitMix64.
#[inline(always)]
fn scramble(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills `out` with the tuned element where the mask keeps it, else with that of the reference; returns how many were
/// kept. Bits are copied, nothing is computed from them.
///
/// `start` is the index in its tensor of the first element here, so that a tensor may be mixed in parts. At most
/// `threads` threads work, this one among them; no result depends on it.
///
/// # Errors
///
/// [`Error::UnknownName`] unless an element has 1, 2, 4 or 8 bytes, [`Error::LengthMismatch`] when the three differ in
/// length or end within an element.
pub fn mix(
    reference: &[u8],
    tuned: &[u8],
    out: &mut [u8],
    item_size: usize,
    mask: Mask,
    start: u64,
    threads: usize,
) -> Result<usize> {
    let run = match item_size {
        1 => block::<u8, 1>,
        2 => block::<u16, 2>,
        4 => block::<u32, 4>,
        8 => block::<u64, 8>,
        _ => {
            let got = item_size.to_string();
            return Err(Error::UnknownName { name: "item_size", got, wanted: "1, 2, 4, 8" });
        }
    };
    let wanted = out.len() - out.len() % item_size;
    for (name, got) in [("out", out.len()), ("reference", reference.len()), ("tuned", tuned.len())] {
        if got != wanted {
            return Err(Error::LengthMismatch { name, got, wanted });
        }
    }
    let n = out.len() / item_size;
    match mask.kept_of_65536 {
        0 => out.copy_from_slice(reference),
        ALL => out.copy_from_slice(tuned),
        _ => {
            let kept = AtomicUsize::new(0);
            let bytes = BLOCK * item_size;
            let blocks = out.chunks_mut(bytes).zip(reference.chunks(bytes)).zip(tuned.chunks(bytes));
            let blocks = Mutex::new(blocks.enumerate());
            let work = || loop {
                let next = blocks.lock().ok().and_then(|mut blocks| blocks.next());
                let Some((at, ((out, reference), tuned))) = next else { return };
                let first = start.wrapping_add((at * BLOCK) as u64);
                kept.fetch_add(run(reference, tuned, out, mask, first), Ordering::Relaxed);
            };
            thread::scope(|scope| {
                for _ in 1..threads.clamp(1, n.div_ceil(BLOCK).max(1)) {
                    // a thread that cannot be had is only time lost
                    let _ = thread::Builder::new().spawn_scoped(scope, work);
                }
                work();
            });
            return Ok(kept.into_inner());
        }
    }
    Ok(if mask.kept_of_65536 == 0 { 0 } else { n })
}

/// An element as one number: of arrays of bytes the compiler would choose addresses, one by one.
trait Bits<const SIZE: usize> {
    fn choose(keep: bool, tuned: [u8; SIZE], reference: [u8; SIZE]) -> [u8; SIZE];
}

macro_rules! bits {
    ($($number:ty, $size:literal;)*) => {$(
        impl Bits<$size> for $number {
            #[inline(always)]
            fn choose(keep: bool, tuned: [u8; $size], reference: [u8; $size]) -> [u8; $size] {
                let (tuned, reference) = (Self::from_ne_bytes(tuned), Self::from_ne_bytes(reference));
                let all = Self::from(keep).wrapping_neg();
                (reference ^ ((reference ^ tuned) & all)).to_ne_bytes()
            }
        }
    )*};
}

bits! { u8, 1; u16, 2; u32, 4; u64, 8; }

fn block<T: Bits<SIZE>, const SIZE: usize>(
    reference: &[u8],
    tuned: &[u8],
    out: &mut [u8],
    mask: Mask,
    start: u64,
) -> usize {
    // an unaligned start costs the first strip three lanes at most, and only it
    let skipped = (start % 4) as usize;
    let first = (STRIP - skipped) * SIZE;
    let mut word = start / 4;
    let mut kept = 0;
    let (out, rest) = out.split_at_mut(first.min(out.len()));
    let (near, far) = (reference.split_at(out.len()), tuned.split_at(out.len()));
    kept += strip::<T, SIZE>(near.0, far.0, out, mask, word, skipped);
    let bytes = STRIP * SIZE;
    for ((out, reference), tuned) in rest.chunks_mut(bytes).zip(near.1.chunks(bytes)).zip(far.1.chunks(bytes))
    {
        word = word.wrapping_add((STRIP / 4) as u64);
        kept += strip::<T, SIZE>(reference, tuned, out, mask, word, 0);
    }
    kept
}

/// One strip at most: the lanes from `word` on, but for the first `skipped`.
#[inline(always)]
fn strip<T: Bits<SIZE>, const SIZE: usize>(
    reference: &[u8],
    tuned: &[u8],
    out: &mut [u8],
    mask: Mask,
    word: u64,
    skipped: usize,
) -> usize {
    let mut lanes = [0u16; STRIP];
    for (at, four) in lanes.chunks_exact_mut(4).enumerate() {
        let bits = mask.word(word.wrapping_add(at as u64));
        four.copy_from_slice(&[bits as u16, (bits >> 16) as u16, (bits >> 32) as u16, (bits >> 48) as u16]);
    }
    // neither all nor nothing is kept here, so the bound fits
    let bound = mask.kept_of_65536 as u16;
    let (out, _) = out.as_chunks_mut::<SIZE>();
    let (reference, _) = reference.as_chunks::<SIZE>();
    let (tuned, _) = tuned.as_chunks::<SIZE>();
    let lanes = &lanes[skipped..][..out.len()];
    let mut kept = 0u16; // at most STRIP
    for ((out, &lane), (reference, tuned)) in out.iter_mut().zip(lanes).zip(reference.iter().zip(tuned)) {
        let keep = lane < bound;
        kept += u16::from(keep);
        *out = T::choose(keep, *tuned, *reference);
    }
    usize::from(kept)
}
