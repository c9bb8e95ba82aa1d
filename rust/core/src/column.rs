//! One epoch of losses.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process;

use crate::machine::pages::{self, Mapped, Number};
use crate::{Error, Result};

/// Where the columns of a ledger lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Bytes that columns may take in memory; those after that are mapped from temporary files.
    pub memory_limit: u64,
    /// The folder of these files.
    pub folder: PathBuf,
}

impl Default for Storage {
    /// All in memory.
    fn default() -> Self {
        Self { memory_limit: u64::MAX, folder: std::env::temp_dir() }
    }
}

/// A loss per sample, and which samples have one. A NaN that was observed is a loss; a missing loss is a
/// clear bit.
#[derive(Debug)]
pub(crate) struct Column {
    losses: Values<f32>,
    observed: Values<u64>,
    /// The process that made it.
    process: u32,
}

impl Column {
    /// The bytes of a column of `n` samples.
    pub(crate) fn bytes(n: usize) -> u64 {
        4 * n as u64 + 8 * n.div_ceil(64) as u64
    }

    /// A column without a loss, in memory or in files of a folder.
    pub(crate) fn new(n: usize, folder: Option<&Path>) -> Result<Self> {
        let (losses, observed) = (f32::NAN, 0);
        let words = n.div_ceil(64);
        let Some(folder) = folder else {
            let (losses, observed) = (filled(n, losses)?, filled(words, observed)?);
            return Ok(Self::of(Values::Memory(losses), Values::Memory(observed)));
        };
        let map = || {
            let losses = Mapped::filled(folder, n, losses)?;
            Ok((losses, Mapped::filled(folder, words, observed)?))
        };
        let (losses, observed) = map().map_err(|problem: std::io::Error| Error::Storage {
            folder: folder.to_path_buf(),
            bytes: Self::bytes(n),
            problem: problem.to_string(),
        })?;
        Ok(Self::of(Values::File(losses), Values::File(observed)))
    }

    fn of(losses: Values<f32>, observed: Values<u64>) -> Self {
        Self { losses, observed, process: process::id() }
    }

    /// A column of its two parts: losses, and a bit for each that was observed.
    pub(crate) fn from_parts(
        losses: Vec<f32>,
        observed: Vec<u64>,
        n: usize,
        folder: Option<&Path>,
    ) -> Result<Self> {
        for (name, got, wanted) in [("losses", losses.len(), n), ("observed", observed.len(), n.div_ceil(64))]
        {
            if got != wanted {
                return Err(Error::LengthMismatch { name, got, wanted });
            }
        }
        // a bit past the end would count as a sample
        if !n.is_multiple_of(64) && observed[n / 64] >> (n % 64) != 0 {
            return Err(Error::Inconsistent { name: "observed", row: n });
        }
        if folder.is_none() {
            return Ok(Self::of(Values::Memory(losses), Values::Memory(observed)));
        }
        let mut column = Self::new(n, folder)?;
        column.losses.copy_from_slice(&losses);
        column.observed.copy_from_slice(&observed);
        Ok(column)
    }

    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.losses, Values::File(_))
    }

    pub(crate) fn words(&self) -> &[u64] {
        &self.observed
    }

    pub(crate) fn losses(&self) -> &[f32] {
        &self.losses
    }

    /// Writes losses, of which every position is a row.
    pub(crate) fn write(&mut self, positions: &[i64], losses: &[f32]) -> Result<()> {
        // memory is copied when a process forks, a map is not: the child would write to its parent's ledger
        if self.is_mapped() && self.process != process::id() {
            return Err(Error::ForkedMap);
        }
        let (rows, observed) = (&mut *self.losses, &mut *self.observed);
        for (&position, &loss) in positions.iter().zip(losses) {
            let row = position as usize;
            rows[row] = loss;
            observed[row / 64] |= 1 << (row % 64);
        }
        Ok(())
    }

    pub(crate) fn get(&self, row: usize) -> Option<f32> {
        self.is_observed(row).then(|| self.losses[row])
    }

    pub(crate) fn is_observed(&self, row: usize) -> bool {
        self.observed[row / 64] >> (row % 64) & 1 == 1
    }

    pub(crate) fn n_observed(&self) -> usize {
        self.observed.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The observed rows, ascending, with their losses.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (usize, f32)> + '_ {
        self.losses.iter().enumerate().filter_map(|(row, &loss)| self.is_observed(row).then_some((row, loss)))
    }
}

/// Numbers in memory or in a file.
#[derive(Debug)]
enum Values<T> {
    Memory(Vec<T>),
    File(Mapped<T>),
}

impl<T: Number> Deref for Values<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Memory(values) => values,
            Self::File(values) => values,
        }
    }
}

impl<T: Number> DerefMut for Values<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::Memory(values) => values,
            Self::File(values) => values,
        }
    }
}

/// A vector of `n` times `value`, or an error where `vec!` would end the process.
pub(crate) fn filled<T: Clone>(n: usize, value: T) -> Result<Vec<T>> {
    let mut filled = reserved(n)?;
    filled.resize(n, value);
    Ok(filled)
}

/// An empty vector with room for `n`, or an error where `Vec::with_capacity` would end the process.
pub(crate) fn reserved<T>(n: usize) -> Result<Vec<T>> {
    let mut room = Vec::new();
    room.try_reserve_exact(n).map_err(|_| Error::OutOfMemory { n })?;
    pages::prefer_large_pages(&mut room);
    Ok(room)
}
