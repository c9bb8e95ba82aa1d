//! Every routine against a twin of a few lines that is right by looking at it.

use std::cmp::Ordering;

use asepsis_core::{
    Dtype, Error, Ledger, NanPolicy, RankMethod, bottom_k, bottom_k_halves, bottom_k_per_class, jaccard, key,
    ranks,
};
use common::loss;
use proptest::prelude::*;

mod common;

const POLICIES: [NanPolicy; 2] = [NanPolicy::Last, NanPolicy::Drop];

/// Bits of a 16-bit float, the edges of both formats often among them.
fn half() -> impl Strategy<Value = u16> {
    let edges = [0u16, 1, 0x3f80, 0x3c00, 0x7bff, 0x7c00, 0x7c01, 0x7f7f, 0x7f80, 0x7f81, 0x7fff];
    let edges: Vec<u16> = edges.iter().flat_map(|&bits| [bits, bits | 1 << 15]).collect();
    prop_oneof![1 => prop::sample::select(edges), 1 => any::<u16>()]
}

/// The value by the definition of its format.
fn widened(half: u16, dtype: Dtype) -> f32 {
    if dtype == Dtype::Bf16 {
        return f32::from_bits(u32::from(half) << 16);
    }
    let (exponent, fraction) = (i32::from(half >> 10 & 31), f32::from(half & 1023));
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    };
    if half >> 15 == 1 { -size } else { size }
}

fn losses() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(loss(), 0..80)
}

fn compare(a: f32, b: f32) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

fn argsort(values: &[f32]) -> Vec<i64> {
    let mut order: Vec<i64> = (0..values.len() as i64).collect();
    order.sort_by(|&a, &b| compare(values[a as usize], values[b as usize]));
    order
}

fn pickable(values: &[f32], nan: NanPolicy) -> usize {
    values.iter().filter(|x| nan == NanPolicy::Last || !x.is_nan()).count()
}

fn sorted(values: &[f32], nan: NanPolicy) -> Vec<i64> {
    asepsis_core::argsort(values, nan).unwrap()
}

proptest! {
    #[test]
    fn keys_order_as_the_values_do(a in loss(), b in loss()) {
        prop_assert_eq!(key(a).cmp(&key(b)), compare(a, b));
    }

    #[test]
    fn bottom_k_is_the_head_of_a_stable_argsort(values in losses(), share in 0.0f64..=1.0) {
        for nan in POLICIES {
            let available = pickable(&values, nan);
            for k in [0, (share * available as f64) as usize, available] {
                prop_assert_eq!(&bottom_k(&values, k, nan, 1).unwrap(), &argsort(&values)[..k]);
            }
            let k = available + 1;
            prop_assert_eq!(bottom_k(&values, k, nan, 1), Err(Error::TooFew { k, available }));
        }
    }

    #[test]
    fn halves_are_picked_as_the_singles_they_are(
        bits in prop::collection::vec(half(), 0..80),
        repeats in prop::sample::select(vec![1usize, 100]),
        share in 0.0f64..=1.0,
    ) {
        // repeated often enough to be sampled and searched, not only sorted
        let bits = bits.repeat(repeats);
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let singles: Vec<f32> = bits.iter().map(|&half| widened(half, dtype)).collect();
            for nan in [NanPolicy::Last, NanPolicy::Drop, NanPolicy::Error] {
                for k in [(share * bits.len() as f64) as usize, bits.len(), bits.len() + 1] {
                    let got = bottom_k_halves(&bits, dtype, k, nan, 1);
                    prop_assert_eq!(got, bottom_k(&singles, k, nan, 1));
                }
            }
        }
    }

    #[test]
    fn a_forbidden_nan_is_reported_with_its_place(values in losses()) {
        let wanted = values.iter().position(|x| x.is_nan()).map(|first| {
            Error::Nan { count: values.len() - pickable(&values, NanPolicy::Drop), first }
        });
        prop_assert_eq!(bottom_k(&values, 0, NanPolicy::Error, 1).err(), wanted.clone());
        prop_assert_eq!(ranks(&values, RankMethod::Min, NanPolicy::Error).err(), wanted);
    }

    #[test]
    fn every_class_is_picked_as_if_alone(
        rows in prop::collection::vec((loss(), 0i64..4), 0..80),
        ratio in 0.001f64..=1.0,
    ) {
        let (values, labels): (Vec<f32>, Vec<i64>) = rows.iter().copied().unzip();
        for nan in POLICIES {
            let mut wanted = Ok(vec![]);
            let mut offsets = vec![0];
            for class in 0..5 { // the last is always empty
                let members = (0..labels.len() as i64).filter(|&row| labels[row as usize] == class);
                let members: Vec<i64> = members.collect();
                let own: Vec<f32> = members.iter().map(|&row| values[row as usize]).collect();
                let k = if own.is_empty() { 0 } else { 1.max((ratio * own.len() as f64).floor() as usize) };
                let available = pickable(&own, nan);
                if k > available {
                    wanted = wanted.and(Err(Error::ClassTooSmall { row: members[0] as usize, k, available }));
                } else if let Ok(wanted) = &mut wanted {
                    wanted.extend(argsort(&own)[..k].iter().map(|&i| members[i as usize]));
                    offsets.push(wanted.len() as i64);
                }
            }
            match bottom_k_per_class(&values, &labels, ratio, 5, nan) {
                Ok(picked) => {
                    prop_assert_eq!(Ok(picked.indices), wanted);
                    prop_assert_eq!(picked.offsets, offsets);
                }
                Err(error) => prop_assert_eq!(Err(error), wanted),
            }
        }
    }

    #[test]
    fn ranks_count_what_comes_before(values in losses()) {
        for nan in POLICIES {
            let ordinal = ranks(&values, RankMethod::Ordinal, nan).unwrap();
            let average = ranks(&values, RankMethod::Average, nan).unwrap();
            let min = ranks(&values, RankMethod::Min, nan).unwrap();
            for (i, &x) in values.iter().enumerate() {
                if nan == NanPolicy::Drop && x.is_nan() {
                    prop_assert!(ordinal[i].is_nan() && average[i].is_nan() && min[i].is_nan());
                    continue;
                }
                let smaller = values.iter().filter(|&&y| compare(y, x).is_lt()).count() as f64;
                let equal = values.iter().filter(|&&y| compare(y, x).is_eq()).count() as f64;
                let equal_before = values[..i].iter().filter(|&&y| compare(y, x).is_eq()).count() as f64;
                prop_assert_eq!(ordinal[i], smaller + equal_before);
                prop_assert_eq!(average[i], smaller + (equal - 1.0) / 2.0);
                prop_assert_eq!(min[i], smaller);
            }
        }
    }

    #[test]
    fn argsort_is_bottom_k_of_all_there_is(values in losses()) {
        for nan in POLICIES {
            prop_assert_eq!(&sorted(&values, nan), &argsort(&values)[..pickable(&values, nan)]);
        }
    }

    #[test]
    fn ranks_by_histogram_are_average_ranks_of_the_upper_half(values in losses()) {
        // the number of a bin orders as the bin does
        let coarse: Vec<f32> = values.iter().map(|&x| if x.is_nan() { x } else { (key(x) >> 16) as f32 }).collect();
        for nan in POLICIES {
            let got = ranks(&values, RankMethod::Histogram, nan).unwrap();
            for (got, wanted) in got.iter().zip(ranks(&coarse, RankMethod::Average, nan).unwrap()) {
                prop_assert!(*got == wanted || got.is_nan() && wanted.is_nan());
            }
        }
    }

    #[test]
    fn jaccard_is_common_over_all(
        a in prop::collection::vec(0i64..20, 0..20),
        b in prop::collection::vec(0i64..20, 0..20),
    ) {
        let common = (0..20).filter(|x| a.contains(x) && b.contains(x)).count();
        let all = (0..20).filter(|x| a.contains(x) || b.contains(x)).count();
        prop_assert_eq!(jaccard(&a, &b), if all == 0 { 1.0 } else { common as f64 / all as f64 });
    }
}

#[test]
fn settings_out_of_bounds_are_refused() {
    for decay in [-0.1, 1.0, f64::NAN] {
        assert!(matches!(Ledger::new(1, decay), Err(Error::OutOfBounds { name: "ema_decay", .. })));
    }
    assert!(matches!(Ledger::new(0, 0.9), Err(Error::OutOfBounds { name: "n", .. })));
    assert!(matches!(Ledger::new(usize::MAX / 8, 0.9), Err(Error::OutOfMemory { .. })));
    for ratio in [0.0, -1.0, 1.1, f64::NAN] {
        let picked = bottom_k_per_class(&[1.0], &[0], ratio, 1, NanPolicy::Last);
        assert!(matches!(picked, Err(Error::OutOfBounds { name: "ratio", .. })));
    }
    for label in [-1, 2] {
        let picked = bottom_k_per_class(&[1.0], &[label], 0.5, 2, NanPolicy::Last);
        assert_eq!(picked, Err(Error::LabelOutOfRange { label, at: 0, n_classes: 2 }));
    }
}

#[test]
fn messages_start_lower_case_and_hold_the_numbers() {
    let messages = [
        (Error::TooFew { k: 5, available: 3 }, "5 values were asked for, only 3 can be picked"),
        (
            Error::PositionOutOfRange { position: -7, at: 2, n: 10 },
            "position -7 (entry 2 of the batch) is outside 0..10; nothing was recorded",
        ),
        (Error::LabelOutOfRange { label: 4, at: 1, n_classes: 3 }, "label 4 of row 1 is outside 0..3"),
    ];
    for (error, wanted) in messages {
        assert_eq!(error.to_string(), wanted);
    }
    let unknown = "mode".parse::<RankMethod>().unwrap_err().to_string();
    assert_eq!(unknown, "method must be one of ordinal, average, min, histogram, got \"mode\"");
}
