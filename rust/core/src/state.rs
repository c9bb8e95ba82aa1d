//! A ledger taken apart and put together again.

use crate::column::{Column, reserved};
use crate::{Error, Ledger, Result};

/// All that a [`Ledger`] knows.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Number of samples.
    pub n: usize,
    /// How much of an average stays.
    pub ema_decay: f64,
    /// In how many closed epochs each sample was observed.
    pub epochs_seen: Vec<u32>,
    /// Moving average of the loss, NaN before the first.
    pub loss_ema: Vec<f32>,
    /// Moving average of the normalized rank, NaN before the first.
    pub rank_ema: Vec<f32>,
    /// Sum of the normalized ranks.
    pub rank_sum: Vec<f64>,
    /// The closed epochs.
    pub columns: Vec<Epoch>,
    /// The epoch under way, if a batch was observed.
    pub open: Option<Epoch>,
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

    fn into_column(self, n: usize) -> Result<Column> {
        Column::from_parts(self.losses, self.observed, n)
    }
}

impl Ledger {
    /// A copy of everything, from which [`from_state`](Self::from_state) makes an equal ledger.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn state(&self) -> Result<State> {
        Ok(State {
            n: self.n,
            ema_decay: self.ema_decay,
            epochs_seen: copy(&self.epochs_seen)?,
            loss_ema: copy(&self.loss_ema)?,
            rank_ema: copy(&self.rank_ema)?,
            rank_sum: copy(&self.rank_sum)?,
            columns: self.columns.iter().map(Epoch::of).collect::<Result<_>>()?,
            open: self.open.as_ref().map(Epoch::of).transpose()?,
        })
    }

    /// The ledger of a state.
    ///
    /// # Errors
    ///
    /// Those of [`Ledger::new`]; [`Error::LengthMismatch`] when a part has not as many values as there are samples,
    /// [`Error::Inconsistent`] when samples were seen in other epochs than the columns say.
    pub fn from_state(state: State) -> Result<Self> {
        // an empty ledger checks the settings; its memory is given back at once
        let mut ledger = Self::new(state.n, state.ema_decay)?;
        let n = state.n;
        for (name, got) in [
            ("epochs_seen", state.epochs_seen.len()),
            ("loss_ema", state.loss_ema.len()),
            ("rank_ema", state.rank_ema.len()),
            ("rank_sum", state.rank_sum.len()),
        ] {
            if got != n {
                return Err(Error::LengthMismatch { name, got, wanted: n });
            }
        }
        let columns = state.columns.into_iter().map(|epoch| epoch.into_column(n));
        ledger.columns = columns.collect::<Result<Vec<_>>>()?;
        ledger.open = state.open.map(|epoch| epoch.into_column(n)).transpose()?;
        for (row, &seen) in state.epochs_seen.iter().enumerate() {
            if ledger.columns.iter().filter(|column| column.is_observed(row)).count() != seen as usize {
                return Err(Error::Inconsistent { name: "epochs_seen", row });
            }
        }
        ledger.epochs_seen = state.epochs_seen;
        ledger.loss_ema = state.loss_ema;
        ledger.rank_ema = state.rank_ema;
        ledger.rank_sum = state.rank_sum;
        Ok(ledger)
    }
}

fn copy<T: Copy>(values: &[T]) -> Result<Vec<T>> {
    let mut copy = reserved(values.len())?;
    copy.extend_from_slice(values);
    Ok(copy)
}
