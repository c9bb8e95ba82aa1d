//! One epoch of losses.

use crate::{Error, Result, simd};

/// A loss per sample, and which samples have one. A NaN that was observed is a loss; a missing loss is a
/// clear bit.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    losses: Vec<f32>,
    observed: Vec<u64>,
}

impl Column {
    pub(crate) fn new(n: usize) -> Result<Self> {
        Ok(Self { losses: filled(n, f32::NAN)?, observed: filled(n.div_ceil(64), 0)? })
    }

    /// A column from its two parts: losses, and a bit for each that was observed.
    pub(crate) fn from_parts(losses: Vec<f32>, observed: Vec<u64>, n: usize) -> Result<Self> {
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
        Ok(Self { losses, observed })
    }

    pub(crate) fn words(&self) -> &[u64] {
        &self.observed
    }

    pub(crate) fn losses(&self) -> &[f32] {
        &self.losses
    }

    pub(crate) fn set(&mut self, row: usize, loss: f32) {
        self.losses[row] = loss;
        self.observed[row / 64] |= 1 << (row % 64);
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
    simd::prefer_large_pages(&mut room);
    Ok(room)
}
