//! Every routine against a twin of a few lines that is right by looking at it.

use std::cmp::Ordering;

use asepsis_core::{
    Dtype, Epoch, Error, Ledger, NanPolicy, RankMethod, Reducer, Restore, State, Storage, bottom_k,
    bottom_k_halves, bottom_k_per_class, jaccard, key, ranks,
};
use proptest::prelude::*;

const POLICIES: [NanPolicy; 2] = [NanPolicy::Last, NanPolicy::Drop];

fn loss() -> impl Strategy<Value = f32> {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -f32::NAN,
        f32::MIN_POSITIVE / 4.0,
    ];
    prop_oneof![3 => prop::sample::select(special.to_vec()), 1 => prop::num::f32::ANY, 2 => -1.0f32..20.0]
}

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

const N: usize = 9;
const DECAY: f64 = 0.7;

/// Epochs of batches of `(position, loss)`; repeats inside a batch and between batches are frequent.
fn history() -> impl Strategy<Value = Vec<Vec<Vec<(i64, f32)>>>> {
    let batch = prop::collection::vec((0..N as i64, loss()), 0..6);
    let mut epoch = prop::collection::vec(batch, 1..4).boxed();
    epoch =
        epoch.prop_filter("something is observed", |batches| batches.iter().any(|b| !b.is_empty())).boxed();
    prop::collection::vec(epoch, 1..5)
}

fn in_files(memory_limit: u64) -> Storage {
    Storage { memory_limit, ..Storage::default() }
}

/// Every bit that a ledger shows.
fn bits(ledger: &Ledger) -> Vec<u64> {
    let mut bits: Vec<u64> = vec![];
    for by in [
        Reducer::Last,
        Reducer::Ema,
        Reducer::Mean,
        Reducer::MeanRank,
        Reducer::RankEma,
        Reducer::AucLoss,
        Reducer::FirstBelow(0.5),
        Reducer::Drop,
        Reducer::Seep,
    ] {
        bits.extend(ledger.scores(by).unwrap().iter().map(|x| u64::from(x.to_bits())));
    }
    for index in 0..ledger.n_columns() {
        let epoch = ledger.epoch(index).unwrap();
        bits.extend(epoch.losses.iter().map(|x| u64::from(x.to_bits())));
        bits.extend(epoch.observed);
    }
    bits
}

/// The ledger of the parts of another, after a change to them.
fn put_together(
    ledger: &Ledger,
    storage: Storage,
    change: impl Fn(&mut State, &mut Vec<Epoch>),
) -> Result<Ledger, Error> {
    let mut state = ledger.state()?;
    let mut epochs = (0..ledger.n_columns()).map(|at| ledger.epoch(at)).collect::<Result<Vec<_>, _>>()?;
    change(&mut state, &mut epochs);
    let mut parts = Restore::new(ledger.n_samples(), ledger.ema_decay(), storage)?;
    epochs.into_iter().try_for_each(|epoch| parts.epoch(epoch))?;
    parts.finish(state)
}

fn record(mut ledger: Ledger, history: &[Vec<Vec<(i64, f32)>>]) -> (Ledger, Vec<[Option<f32>; N]>) {
    let mut columns = vec![];
    for epoch in history {
        let mut column = [None; N];
        for batch in epoch {
            let (positions, losses): (Vec<i64>, Vec<f32>) = batch.iter().copied().unzip();
            ledger.observe(&positions, &losses).unwrap();
            batch.iter().for_each(|&(position, loss)| column[position as usize] = Some(loss));
        }
        let seen: Vec<f32> = column.iter().flatten().copied().collect();
        let coverage = ledger.end_epoch().unwrap();
        assert_eq!((coverage.observed, coverage.n), (seen.len(), N));
        assert_eq!(coverage.nan, seen.iter().filter(|x| x.is_nan()).count());
        assert_eq!(coverage.inf, seen.iter().filter(|x| x.is_infinite()).count());
        columns.push(column);
    }
    (ledger, columns)
}

/// Each reducer as its definition reads, on the `(epoch, loss)` pairs of one sample and its normalized ranks.
fn naive(by: Reducer, points: &[(f64, f64)], ranks: &[f64], n_columns: usize) -> f64 {
    let losses: Vec<f64> = points.iter().map(|p| p.1).collect();
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let ema = |x: &[f64]| x[1..].iter().fold(x[0], |ema, new| DECAY * ema + (1.0 - DECAY) * new);
    let (first, last) = (points[0], points[points.len() - 1]);
    match by {
        Reducer::Last => last.1,
        Reducer::Ema => ema(&losses),
        Reducer::Mean => mean(&losses),
        Reducer::MeanRank => mean(ranks),
        Reducer::RankEma => ema(ranks),
        Reducer::AucLoss if points.len() == 1 => last.1,
        Reducer::AucLoss => {
            let areas = points.windows(2).map(|p| (p[1].0 - p[0].0) * (p[0].1 + p[1].1) / 2.0);
            areas.sum::<f64>() / (last.0 - first.0)
        }
        Reducer::FirstBelow(t) => {
            points.iter().find(|p| p.1 < f64::from(t)).map_or(n_columns as f64, |p| p.0)
        }
        Reducer::Drop => last.1 - first.1,
        Reducer::Seep => {
            let clipped = |l: &f64| if *l < 1e-6 { 1e-6 } else { *l };
            -mean(&losses.iter().map(|l| 1.0 / (1.0 - (-clipped(l)).exp())).collect::<Vec<_>>())
        }
    }
}

fn close(got: f32, wanted: f64) -> bool {
    let wanted = wanted as f32;
    got == wanted || (got.is_nan() && wanted.is_nan()) || (got - wanted).abs() <= 1e-5 * (wanted.abs() + 1e-6)
}

proptest! {
    #[test]
    fn columns_hold_the_last_write_and_tell_missing_from_nan(history in history()) {
        let (ledger, columns) = record(Ledger::new(N, DECAY).unwrap(), &history);
        prop_assert_eq!(ledger.n_columns(), columns.len());
        for (i, column) in columns.iter().enumerate() {
            let (losses, observed) = (ledger.column(i).unwrap(), ledger.observed(i).unwrap());
            for (row, wanted) in column.iter().enumerate() {
                prop_assert_eq!(observed[row], wanted.is_some());
                let wanted = wanted.unwrap_or(f32::NAN);
                prop_assert!(losses[row] == wanted || losses[row].is_nan() && wanted.is_nan());
            }
        }
    }

    #[test]
    fn scores_are_what_the_definitions_say(history in history(), threshold in -1.0f32..20.0) {
        let (ledger, columns) = record(Ledger::new(N, DECAY).unwrap(), &history);
        let normalized: Vec<Vec<f64>> = columns.iter().map(|column| {
            let seen: Vec<f32> = column.iter().flatten().copied().collect();
            let mut own = ranks(&seen, RankMethod::Average, NanPolicy::Last).unwrap().into_iter();
            let mut normalized = || (own.next().unwrap() + 0.5) / seen.len() as f64;
            column.iter().map(|x| if x.is_some() { normalized() } else { f64::NAN }).collect()
        }).collect();
        for by in [
            Reducer::Last, Reducer::Ema, Reducer::Mean, Reducer::MeanRank, Reducer::RankEma, Reducer::AucLoss,
            Reducer::FirstBelow(threshold), Reducer::Drop, Reducer::Seep,
        ] {
            for (row, &score) in ledger.scores(by).unwrap().iter().enumerate() {
                let seen = columns.iter().enumerate().filter_map(|(e, column)| Some((e, column[row]?)));
                let points = seen.clone().map(|(e, loss)| (e as f64, f64::from(loss)));
                let points: Vec<(f64, f64)> = points.collect();
                let own: Vec<f64> = seen.map(|(e, _)| normalized[e][row]).collect();
                let absent = points.is_empty();
                let wanted = if absent { f64::NAN } else { naive(by, &points, &own, columns.len()) };
                prop_assert!(close(score, wanted), "{by:?} of {points:?}: got {score}, wanted {wanted}");
            }
        }
    }

    #[test]
    fn a_ledger_put_together_again_goes_on_as_the_one_taken_apart(
        history in history(),
        open in prop::collection::vec((0..N as i64, loss()), 0..6),
    ) {
        let (mut ledger, _) = record(Ledger::new(N, DECAY).unwrap(), &history);
        let (positions, losses): (Vec<i64>, Vec<f32>) = open.into_iter().unzip();
        if !positions.is_empty() {
            ledger.observe(&positions, &losses).unwrap();
        }
        let mut again = put_together(&ledger, in_files(u64::MAX), |_, _| {}).unwrap();
        prop_assert_eq!(ledger.end_epoch(), again.end_epoch());
        prop_assert_eq!(bits(&ledger), bits(&again));
    }

    #[test]
    #[cfg_attr(miri, ignore = "miri maps no files")]
    fn no_bit_depends_on_where_columns_lie(history in history(), limit in 0..130u64) {
        let (ledger, _) = record(Ledger::new(N, DECAY).unwrap(), &history);
        // a column of nine samples is 44 bytes, so that all, some or none of them lie in files
        let (stored, _) = record(Ledger::stored(N, DECAY, in_files(limit)).unwrap(), &history);
        prop_assert_eq!(stored.n_mapped(), history.len().saturating_sub(limit as usize / 44));
        prop_assert_eq!(bits(&stored), bits(&ledger));
        let again = put_together(&ledger, in_files(limit), |_, _| {}).unwrap();
        prop_assert_eq!(again.n_mapped(), stored.n_mapped());
        prop_assert_eq!(bits(&again), bits(&ledger));
    }

    #[test]
    fn a_refused_batch_leaves_no_trace(
        good in prop::collection::vec((0..N as i64, loss()), 1..6),
        bad in prop::sample::select(vec![-1, N as i64, i64::MIN, i64::MAX]),
    ) {
        let (mut ledger, _) = record(Ledger::new(N, DECAY).unwrap(), &[vec![vec![(0, 1.0)]]]);
        let (mut positions, mut values): (Vec<i64>, Vec<f32>) = good.iter().copied().unzip();
        let at = positions.len();
        positions.push(bad);
        let short = Error::LengthMismatch { name: "losses", got: at, wanted: at + 1 };
        prop_assert_eq!(ledger.observe(&positions, &values), Err(short));
        values.push(0.0);
        let outside = Error::PositionOutOfRange { position: bad, at, n: N };
        prop_assert_eq!(ledger.observe(&positions, &values), Err(outside));
        prop_assert_eq!(ledger.end_epoch(), Err(Error::NothingObserved));
    }
}

#[test]
fn an_average_stays_where_it_was_while_a_sample_is_away() {
    let mut ledger = Ledger::new(2, 0.5).unwrap();
    for (positions, losses) in [(vec![0, 1], vec![4.0, 1.0]), (vec![1], vec![3.0]), (vec![0], vec![0.0])] {
        ledger.observe(&positions, &losses).unwrap();
        ledger.end_epoch().unwrap();
    }
    assert_eq!(ledger.scores(Reducer::Ema).unwrap(), [2.0, 2.0]);
    assert_eq!(ledger.scores(Reducer::RankEma).unwrap(), [0.625, 0.375]);
}

#[test]
fn a_state_that_contradicts_itself_is_refused() {
    let history = [vec![vec![(0, 1.0), (3, 2.0)]], vec![vec![(3, 1.0)]]];
    let (ledger, _) = record(Ledger::new(N, DECAY).unwrap(), &history);
    assert_eq!(ledger.state().unwrap().epochs_seen[..4], [1, 0, 0, 2]);
    let broken = |change: fn(&mut State, &mut Vec<Epoch>)| {
        put_together(&ledger, Storage::default(), change).unwrap_err()
    };
    let short = |name, got, wanted| Error::LengthMismatch { name, got, wanted };
    let odd = |name, row| Error::Inconsistent { name, row };
    assert_eq!(broken(|state, _| state.epochs_seen[1] = 1), odd("epochs_seen", 1));
    assert_eq!(broken(|_, epochs| epochs[0].observed[0] |= 1 << N), odd("observed", N));
    assert_eq!(broken(|_, epochs| epochs[1].losses.truncate(1)), short("losses", 1, N));
    assert_eq!(broken(|_, epochs| epochs[1].observed.push(0)), short("observed", 2, 1));
    assert_eq!(broken(|state, _| state.n_columns = 3), short("columns", 2, 3));
    assert_eq!(broken(|state, _| state.rank_sum.push(0.0)), short("rank_sum", N + 1, N));
    assert_eq!(broken(|state, _| state.loss_ema.clear()), short("loss_ema", 0, N));
    let refused = |n, decay| Restore::new(n, decay, Storage::default()).unwrap_err();
    assert!(matches!(refused(N, 1.0), Error::OutOfBounds { name: "ema_decay", .. }));
    assert!(matches!(refused(0, DECAY), Error::OutOfBounds { name: "n", .. }));
    assert!(matches!(refused(usize::MAX / 8, DECAY), Error::OutOfMemory { .. }));
}

#[test]
#[cfg_attr(miri, ignore = "miri maps no files")]
fn a_column_that_finds_no_room_is_an_error_and_the_next_one_may_find_it() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    let storage = Storage { memory_limit: 0, folder: gone.clone() };
    let mut ledger = Ledger::stored(N, DECAY, storage).unwrap();
    let refused = ledger.observe(&[1], &[0.5]).unwrap_err();
    assert!(matches!(&refused, Error::Storage { folder, bytes: 44, .. } if *folder == gone), "{refused}");
    assert_eq!(ledger.end_epoch(), Err(Error::NothingObserved));
    std::fs::create_dir(&gone).unwrap();
    ledger.observe(&[1], &[0.5]).unwrap();
    assert_eq!(ledger.end_epoch().unwrap().observed, 1);
}

#[test]
fn an_open_epoch_is_not_scored() {
    let mut ledger = Ledger::new(3, 0.9).unwrap();
    assert_eq!(ledger.scores(Reducer::Last), Err(Error::NoColumns { pending: 0 }));
    ledger.observe(&[2, 2], &[1.0, 2.0]).unwrap();
    assert_eq!(ledger.scores(Reducer::Last), Err(Error::NoColumns { pending: 1 }));
    assert_eq!(ledger.column(0), Err(Error::NoSuchColumn { index: 0, n_columns: 0 }));
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
fn a_threshold_goes_with_first_below_and_with_nothing_else() {
    assert_eq!(Reducer::from_name("first_below", Some(0.5)), Ok(Reducer::FirstBelow(0.5)));
    for (name, threshold) in [("first_below", None), ("first_below", Some(f32::NAN)), ("mean", Some(0.5))] {
        assert!(matches!(Reducer::from_name(name, threshold), Err(Error::OutOfBounds { .. })));
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
