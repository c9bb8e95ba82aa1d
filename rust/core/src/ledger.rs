//! The per-sample loss ledger.

use std::path::Path;

use crate::column::{Column, Storage, filled};
use crate::order::{NanPolicy, RankMethod, ranks};
use crate::reduce::{Reducer, Trajectory};
use crate::{Error, Result};

/// What one epoch saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coverage {
    /// Samples with a loss.
    pub observed: usize,
    /// Of these, how many losses are NaN.
    pub nan: usize,
    /// Of these, how many losses are `+inf` or `-inf`.
    pub inf: usize,
    /// Samples of the ledger.
    pub n: usize,
}

/// One loss per sample and epoch, kept whole.
///
/// Losses go into the open column by [`observe`](Self::observe) in any order; [`end_epoch`](Self::end_epoch)
/// closes it. A sample that is not observed in an epoch has no loss there, which is not the same as a NaN
/// loss.
#[derive(Debug)]
pub struct Ledger {
    pub(crate) n: usize,
    pub(crate) ema_decay: f64,
    storage: Storage,
    pub(crate) columns: Vec<Column>,
    pub(crate) open: Option<Column>,
    pub(crate) epochs_seen: Vec<u32>,
    pub(crate) loss_ema: Vec<f32>,
    pub(crate) rank_ema: Vec<f32>,
    pub(crate) rank_sum: Vec<f64>,
}

impl Ledger {
    /// A ledger of `n` samples in memory. The averages move by `ema = ema_decay * ema + (1 - ema_decay) * new`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when `n` is 0 or `ema_decay` is outside `[0, 1)`, [`Error::OutOfMemory`].
    pub fn new(n: usize, ema_decay: f64) -> Result<Self> {
        Self::stored(n, ema_decay, Storage::default())
    }

    /// [`Ledger::new`], with columns that go to files when there are many. No result depends on where they lie.
    ///
    /// # Errors
    ///
    /// As of [`Ledger::new`].
    pub fn stored(n: usize, ema_decay: f64, storage: Storage) -> Result<Self> {
        if n == 0 {
            return Err(Error::OutOfBounds { name: "n", got: 0.0, wanted: "at least 1" });
        }
        if !(0.0..1.0).contains(&ema_decay) {
            return Err(Error::OutOfBounds { name: "ema_decay", got: ema_decay, wanted: "in [0, 1)" });
        }
        Ok(Self {
            n,
            ema_decay,
            storage,
            columns: Vec::new(),
            open: None,
            epochs_seen: filled(n, 0)?,
            loss_ema: filled(n, f32::NAN)?,
            rank_ema: filled(n, f32::NAN)?,
            rank_sum: filled(n, 0.0)?,
        })
    }

    /// How many samples there are.
    #[must_use]
    pub fn n_samples(&self) -> usize {
        self.n
    }

    /// How many epochs are closed.
    #[must_use]
    pub fn n_columns(&self) -> usize {
        self.columns.len()
    }

    /// How many columns lie in files, the open one among them.
    #[must_use]
    pub fn n_mapped(&self) -> usize {
        self.columns.iter().chain(&self.open).filter(|column| column.is_mapped()).count()
    }

    /// How much of an average stays.
    #[must_use]
    pub fn ema_decay(&self) -> f64 {
        self.ema_decay
    }

    /// The folder of the next column, none where it has room in memory.
    pub(crate) fn place(&self) -> Option<&Path> {
        let in_memory = self.columns.iter().chain(&self.open).filter(|column| !column.is_mapped()).count();
        let bytes = Column::bytes(self.n).saturating_mul(in_memory as u64 + 1);
        (bytes > self.storage.memory_limit).then_some(&self.storage.folder)
    }

    /// Writes the losses of a batch into the open column. The last write wins, inside a batch and between
    /// batches.
    ///
    /// # Errors
    ///
    /// [`Error::LengthMismatch`], [`Error::PositionOutOfRange`]; both before anything is written.
    /// [`Error::OutOfMemory`] and [`Error::Storage`] on the first batch of an epoch; [`Error::ForkedMap`].
    pub fn observe(&mut self, positions: &[i64], losses: &[f32]) -> Result<()> {
        if positions.len() != losses.len() {
            return Err(Error::LengthMismatch { name: "losses", got: losses.len(), wanted: positions.len() });
        }
        let n = self.n;
        let outside = |&position: &i64| usize::try_from(position).map_or(true, |row| row >= n);
        if let Some(at) = positions.iter().position(outside) {
            return Err(Error::PositionOutOfRange { position: positions[at], at, n });
        }
        let column = match self.open.take() {
            Some(column) => column,
            None => Column::new(n, self.place())?,
        };
        self.open.insert(column).write(positions, losses)
    }

    /// Closes the open column and moves the averages of the samples it observed.
    ///
    /// # Errors
    ///
    /// [`Error::NothingObserved`] when no sample was observed, [`Error::OutOfMemory`]. The ledger is then as
    /// before.
    pub fn end_epoch(&mut self) -> Result<Coverage> {
        let column = self.open.as_ref().ok_or(Error::NothingObserved)?;
        let (rows, losses): (Vec<usize>, Vec<f32>) = column.entries().unzip();
        if rows.is_empty() {
            return Err(Error::NothingObserved);
        }
        let order = ranks(&losses, RankMethod::Average, NanPolicy::Last)?;
        for ((&row, &loss), rank) in rows.iter().zip(&losses).zip(order) {
            // the middle of the rank's cell: inside (0, 1), and 1/2 for a sample observed alone
            let rank = (rank + 0.5) / rows.len() as f64;
            let started = self.epochs_seen[row] > 0;
            let decay = self.ema_decay;
            let moved = |old: f32, new: f64| {
                let new = if started { decay * f64::from(old) + (1.0 - decay) * new } else { new };
                new as f32
            };
            self.loss_ema[row] = moved(self.loss_ema[row], f64::from(loss));
            self.rank_ema[row] = moved(self.rank_ema[row], rank);
            self.rank_sum[row] += rank;
            self.epochs_seen[row] += 1;
        }
        self.columns.extend(self.open.take());
        Ok(Coverage {
            observed: rows.len(),
            nan: losses.iter().filter(|loss| loss.is_nan()).count(),
            inf: losses.iter().filter(|loss| loss.is_infinite()).count(),
            n: self.n,
        })
    }

    /// The losses of a closed epoch, NaN where there is none. See [`observed`](Self::observed) for which are
    /// missing.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchColumn`].
    pub fn column(&self, index: usize) -> Result<&[f32]> {
        Ok(self.closed(index)?.losses())
    }

    /// Which samples a closed epoch observed.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchColumn`].
    pub fn observed(&self, index: usize) -> Result<Vec<bool>> {
        let column = self.closed(index)?;
        Ok((0..self.n).map(|row| column.is_observed(row)).collect())
    }

    /// One score per sample, **lower is more suspicious**, NaN for a sample that was never observed.
    ///
    /// Only closed epochs count. [`Reducer`] says what happens to NaN and infinite losses.
    ///
    /// # Errors
    ///
    /// [`Error::NoColumns`] before the first epoch is closed.
    pub fn scores(&self, by: Reducer) -> Result<Vec<f32>> {
        if self.columns.is_empty() {
            let pending = self.open.as_ref().map_or(0, Column::n_observed);
            return Err(Error::NoColumns { pending });
        }
        Ok(match by {
            Reducer::Last => self.each(Trajectory::last),
            Reducer::Ema => self.loss_ema.clone(),
            Reducer::Mean => self.each(Trajectory::mean),
            Reducer::MeanRank => {
                let mean = |(&sum, &seen): (&f64, &u32)| (sum / f64::from(seen)) as f32;
                self.rank_sum.iter().zip(&self.epochs_seen).map(mean).collect()
            }
            Reducer::RankEma => self.rank_ema.clone(),
            Reducer::AucLoss => self.each(Trajectory::mean_height),
            Reducer::FirstBelow(threshold) => self.each(|sample| sample.first_below(threshold)),
            Reducer::Drop => self.each(Trajectory::rise),
            Reducer::Seep => self.each(Trajectory::seep),
        })
    }

    fn each<'a>(&'a self, score: impl Fn(Trajectory<'a>) -> f64) -> Vec<f32> {
        let columns = &self.columns[..];
        (0..self.n).map(|row| score(Trajectory { columns, row }) as f32).collect()
    }

    pub(crate) fn closed(&self, index: usize) -> Result<&Column> {
        let n_columns = self.columns.len();
        self.columns.get(index).ok_or(Error::NoSuchColumn { index, n_columns })
    }
}
