//! The ledger against its definitions, wherever its columns lie and however it is taken apart.

use asepsis_core::{Epoch, Error, Ledger, NanPolicy, RankMethod, Reducer, Restore, State, Storage, ranks};
use common::loss;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

mod common;

const N: usize = 9;
const DECAY: f64 = 0.7;
const REDUCERS: [Reducer; 9] = [
    Reducer::Last,
    Reducer::Ema,
    Reducer::Mean,
    Reducer::MeanRank,
    Reducer::RankEma,
    Reducer::AucLoss,
    Reducer::FirstBelow(0.5),
    Reducer::Drop,
    Reducer::Seep,
];

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
    for by in REDUCERS {
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
fn a_threshold_goes_with_first_below_and_with_nothing_else() {
    assert_eq!(Reducer::from_name("first_below", Some(0.5)), Ok(Reducer::FirstBelow(0.5)));
    for (name, threshold) in [("first_below", None), ("first_below", Some(f32::NAN)), ("mean", Some(0.5))] {
        assert!(matches!(Reducer::from_name(name, threshold), Err(Error::OutOfBounds { .. })));
    }
}

/// A vector of a length near what is wanted, mostly of that.
fn near<T: std::fmt::Debug + Clone>(
    wanted: usize,
    of: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![12 => Just(wanted), 1 => 0..wanted + 3]
        .prop_flat_map(move |n| prop::collection::vec(of.clone(), n))
}

fn epoch(n: usize) -> impl Strategy<Value = Epoch> {
    // few bits, so that some epochs agree with what was seen
    let words = prop_oneof![3 => Just(0u64), 2 => (0..n.min(64)).prop_map(|bit| 1 << bit), 1 => any::<u64>()];
    (near(n, loss().boxed()), near(n.div_ceil(64), words.boxed()))
        .prop_map(|(losses, observed)| Epoch { losses, observed })
}

type Parts = (usize, Vec<Epoch>, State);

/// Parts of a ledger that fit each other or do not.
fn parts() -> impl Strategy<Value = Parts> {
    (1usize..140, 0usize..3, any::<bool>()).prop_flat_map(|(n, n_columns, honest)| {
        let epochs = prop::collection::vec(epoch(n), n_columns);
        let averages = (near(n, loss().boxed()), near(n, loss().boxed()), near(n, (-1f64..9.0).boxed()));
        let more = (
            near(n, (0u32..2).boxed()),
            prop::option::of(epoch(n)),
            prop_oneof![9 => Just(n_columns), 1 => 0usize..4],
        );
        (Just(n), epochs, averages, more).prop_map(
            move |(n, epochs, averages, (mut epochs_seen, open, n_columns))| {
                if honest && epochs_seen.len() == n {
                    let seen = |epoch: &Epoch, row: usize| {
                        epoch.observed.get(row / 64).is_some_and(|w| w >> (row % 64) & 1 == 1)
                    };
                    epochs_seen = (0..n)
                        .map(|row| epochs.iter().filter(|epoch| seen(epoch, row)).count() as u32)
                        .collect();
                }
                let (loss_ema, rank_ema, rank_sum) = averages;
                (n, epochs, State { epochs_seen, loss_ema, rank_ema, rank_sum, open, n_columns })
            },
        )
    })
}

/// Whatever parts a file may hold, there is an error that names one, or a ledger of just these that goes on.
fn restored_or_refused((n, epochs, state): Parts) -> Result<bool, TestCaseError> {
    let restore = || {
        let mut parts = Restore::new(n, DECAY, Storage::default())?;
        epochs.iter().try_for_each(|epoch| parts.epoch(epoch.clone()))?;
        parts.finish(state.clone())
    };
    let mut ledger = match restore() {
        Ok(ledger) => ledger,
        Err(Error::LengthMismatch { .. } | Error::Inconsistent { .. }) => return Ok(false),
        Err(error) => return Err(TestCaseError::fail(error.to_string())),
    };
    let shown = format!("{:?}", (&epochs, &state)); // by their digits: NaN is not itself
    let again: Vec<Epoch> = (0..ledger.n_columns()).map(|at| ledger.epoch(at).unwrap()).collect();
    prop_assert_eq!(shown, format!("{:?}", (&again, &ledger.state().unwrap())));
    ledger.observe(&[n as i64 - 1], &[0.5]).unwrap();
    prop_assert!(ledger.end_epoch().unwrap().observed >= 1);
    for by in REDUCERS {
        prop_assert_eq!(ledger.scores(by).unwrap().len(), n);
    }
    Ok(true)
}

fn fuzz(cases: u32) {
    let (mut restored, mut refused) = (0, 0);
    let mut runner = TestRunner::new(Config { cases, ..Config::default() });
    let counted = std::cell::RefCell::new((&mut restored, &mut refused));
    let outcome = runner.run(&parts(), |parts| {
        let ok = restored_or_refused(parts)?;
        let mut counts = counted.borrow_mut();
        if ok {
            *counts.0 += 1
        } else {
            *counts.1 += 1
        }
        Ok(())
    });
    outcome.unwrap();
    assert!(
        cfg!(miri) || restored > cases / 50 && refused > cases / 50,
        "{restored} restored, {refused} refused"
    );
}

#[test]
fn any_parts_make_a_ledger_of_just_these_or_an_error() {
    fuzz(if cfg!(miri) { 10 } else { 300 });
}

/// `cargo test --release --package asepsis-core -- --ignored`, in place of a fuzzer.
#[test]
#[ignore = "minutes"]
fn any_parts_make_a_ledger_of_just_these_or_an_error_a_million_times() {
    fuzz(1_000_000);
}
