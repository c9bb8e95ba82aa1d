//! Mixing against one loop over elements that is right by looking at it.

use asepsis_core::{Error, Mask, mix};
use proptest::prelude::*;

fn scramble(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn kept(seed: u64, key: u64, element: u64, of_65536: u32) -> bool {
    let at = (element / 4).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = scramble(scramble(seed ^ scramble(key)).wrapping_add(at));
    ((word >> (16 * (element % 4))) & 0xffff) < u64::from(of_65536)
}

/// Bytes that differ between the two versions in every element.
fn versions(n: usize, size: usize) -> [Vec<u8>; 2] {
    let reference: Vec<u8> = (0..n * size).map(|i| (i * 37 + i / 251) as u8).collect();
    let tuned = reference.iter().map(|byte| byte ^ 0xa5).collect();
    [reference, tuned]
}

fn mixed(n: usize, size: usize, mask: Mask, start: u64, threads: usize) -> (Vec<u8>, usize) {
    let [reference, tuned] = versions(n, size);
    let mut out = vec![0x5a; n * size];
    let kept = mix(&reference, &tuned, &mut out, size, mask, start, threads).unwrap();
    (out, kept)
}

proptest! {
    #[test]
    fn every_element_comes_whole_from_the_side_its_lane_says(
        n in prop_oneof![0usize..1200, 65_530usize..65_545],
        size in prop::sample::select(vec![1, 2, 4, 8]),
        seed: u64,
        key: u64,
        start in prop_oneof![0u64..10, any::<u64>().prop_map(|at| at / 2)],
        of_65536 in prop_oneof![0u32..=65536, Just(0), Just(1), Just(65535), Just(65536)],
    ) {
        let (out, count) = mixed(n, size, Mask::new(seed, key, of_65536).unwrap(), start, 1);
        let [reference, tuned] = versions(n, size);
        let mut wanted = 0;
        for e in 0..n {
            let keep = kept(seed, key, start + e as u64, of_65536);
            wanted += usize::from(keep);
            let from = if keep { &tuned } else { &reference };
            prop_assert_eq!(&out[e * size..][..size], &from[e * size..][..size], "element {}", e);
        }
        prop_assert_eq!(count, wanted);
    }

    #[test]
    fn a_tensor_mixed_in_parts_is_the_tensor_mixed_at_once(cut in 0usize..3000, seed: u64) {
        let (n, size) = (3000, 2);
        let mask = Mask::new(seed, 7, 20_000).unwrap();
        let (whole, count) = mixed(n, size, mask, 11, 1);
        let [reference, tuned] = versions(n, size);
        let mut out = vec![0; n * size];
        let (left, right) = out.split_at_mut(cut * size);
        let parts = mix(&reference[..cut * size], &tuned[..cut * size], left, size, mask, 11, 1).unwrap()
            + mix(&reference[cut * size..], &tuned[cut * size..], right, size, mask, 11 + cut as u64, 1).unwrap();
        prop_assert_eq!(out, whole);
        prop_assert_eq!(parts, count);
    }
}

#[test]
fn no_bit_depends_on_the_number_of_threads() {
    let mask = Mask::new(3, 5, 30_000).unwrap();
    let one = mixed(200_003, 4, mask, 2, 1);
    for threads in [0, 2, 8, 100] {
        assert_eq!(mixed(200_003, 4, mask, 2, threads), one);
    }
}

#[test]
fn all_and_nothing_are_copies() {
    let [reference, tuned] = versions(1000, 4);
    assert_eq!(mixed(1000, 4, Mask::new(1, 2, 0).unwrap(), 0, 2), (reference, 0));
    assert_eq!(mixed(1000, 4, Mask::new(1, 2, 65_536).unwrap(), 0, 2), (tuned, 1000));
}

#[test]
fn what_is_no_pair_of_tensors_is_refused() {
    let mask = Mask::new(0, 0, 1).unwrap();
    let mut out = [0; 6];
    assert!(matches!(Mask::new(0, 0, 65_537), Err(Error::OutOfBounds { .. })));
    assert!(matches!(mix(&[0; 6], &[0; 6], &mut out, 3, mask, 0, 1), Err(Error::UnknownName { .. })));
    for (reference, tuned, size) in [(5, 6, 2), (6, 7, 1), (6, 6, 4)] {
        let (reference, tuned) = (vec![0; reference], vec![0; tuned]);
        let found = mix(&reference, &tuned, &mut out, size, mask, 0, 1);
        assert!(matches!(found, Err(Error::LengthMismatch { .. })), "{found:?}");
    }
}
