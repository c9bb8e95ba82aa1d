//! A ledger taken apart and put together again, one epoch at a time.

use crate::column::{Column, Storage, reserved};
use crate::{Error, Ledger, Result};

/// All that a [`Ledger`] knows but its closed epochs. These never change: [`Ledger::epoch`] gives them one by one.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// In how many closed epochs each sample was observed.
    pub epochs_seen: Vec<u32>,
    /// Moving average of the loss, NaN before the first.
    pub loss_ema: Vec<f32>,
    /// Moving average of the normalized rank, NaN before the first.
    pub rank_ema: Vec<f32>,
    /// Sum of the normalized ranks.
    pub rank_sum: Vec<f64>,
    /// The epoch under way, if a batch was observed.
    pub open: Option<Epoch>,
    /// How many epochs are closed.
    pub n_columns: usize,
}

/// One epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct Epoch {
    /// A loss per sample, NaN where there is none.
    pub losses: Vec<f32>,
    /// A bit per sample, the lowest of the first word for the first: whether it was observed.
    pub observed: Vec<u64>,
}

impl Epoch {
    fn of(column: &Column) -> Result<Self> {
        Ok(Self { losses: copy(column.losses())?, observed: copy(column.words())? })
    }
}

impl Ledger {
    /// A copy of what may still change.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn state(&self) -> Result<State> {
        Ok(State {
            epochs_seen: copy(&self.epochs_seen)?,
            loss_ema: copy(&self.loss_ema)?,
            rank_ema: copy(&self.rank_ema)?,
            rank_sum: copy(&self.rank_sum)?,
            open: self.open.as_ref().map(Epoch::of).transpose()?,
            n_columns: self.columns.len(),
        })
    }

    /// A copy of a closed epoch.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchColumn`], [`Error::OutOfMemory`].
    pub fn epoch(&self, index: usize) -> Result<Epoch> {
        Epoch::of(self.closed(index)?)
    }
}

/// A ledger that is put together again: its closed epochs in their order, then its state.
#[derive(Debug)]
pub struct Restore {
    ledger: Ledger,
}

impl Restore {
    /// Starts with no epoch.
    ///
    /// # Errors
    ///
    /// Those of [`Ledger::stored`].
    pub fn new(n: usize, ema_decay: f64, storage: Storage) -> Result<Self> {
        Ok(Self { ledger: Ledger::stored(n, ema_decay, storage)? })
    }

    /// Adds a closed epoch.
    ///
    /// # Errors
    ///
    /// [`Error::LengthMismatch`] when it has not as many values as there are samples, [`Error::Inconsistent`] when it
    /// observed a sample beyond the last, [`Error::Storage`].
    pub fn epoch(&mut self, epoch: Epoch) -> Result<()> {
        let column = self.column(epoch)?;
        self.ledger.columns.push(column);
        Ok(())
    }

    /// The ledger with this state.
    ///
    /// # Errors
    ///
    /// As of [`Restore::epoch`]; [`Error::Inconsistent`] when samples were seen in other epochs than the columns say.
    pub fn finish(mut self, state: State) -> Result<Ledger> {
        let n = self.ledger.n;
        for (name, got, wanted) in [
            ("epochs_seen", state.epochs_seen.len(), n),
            ("loss_ema", state.loss_ema.len(), n),
            ("rank_ema", state.rank_ema.len(), n),
            ("rank_sum", state.rank_sum.len(), n),
            ("columns", self.ledger.columns.len(), state.n_columns),
        ] {
            if got != wanted {
                return Err(Error::LengthMismatch { name, got, wanted });
            }
        }
        self.ledger.open = state.open.map(|epoch| self.column(epoch)).transpose()?;
        for (row, &seen) in state.epochs_seen.iter().enumerate() {
            if self.ledger.columns.iter().filter(|column| column.is_observed(row)).count() != seen as usize {
                return Err(Error::Inconsistent { name: "epochs_seen", row });
            }
        }
        self.ledger.epochs_seen = state.epochs_seen;
        self.ledger.loss_ema = state.loss_ema;
        self.ledger.rank_ema = state.rank_ema;
        self.ledger.rank_sum = state.rank_sum;
        Ok(self.ledger)
    }

    fn column(&self, epoch: Epoch) -> Result<Column> {
        Column::from_parts(epoch.losses, epoch.observed, self.ledger.n, self.ledger.place())
    }
}

fn copy<T: Copy>(values: &[T]) -> Result<Vec<T>> {
    let mut copy = reserved(values.len())?;
    copy.extend_from_slice(values);
    Ok(copy)
}
