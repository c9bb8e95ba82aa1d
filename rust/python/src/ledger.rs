//! The `Ledger` class.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};
use std::{process, thread};

use asepsis_core as core;
use numpy::{Element, IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping};

use crate::errors::LedgerError;
use crate::{borrow, ledger_error};

/// One loss per sample and epoch. Threads may share it: calls wait for each other without holding the GIL.
#[pyclass(frozen, module = "asepsis._native")]
pub(crate) struct Ledger {
    inner: Mutex<core::Ledger>,
    /// The process that made it.
    process: u32,
}

/// How long the child of a fork waits for a lock that may have been held by a thread it does not have.
const PATIENCE: Duration = Duration::from_secs(2);

impl From<core::Ledger> for Ledger {
    fn from(inner: core::Ledger) -> Self {
        Self { inner: Mutex::new(inner), process: process::id() }
    }
}

impl Ledger {
    /// Call only with the GIL released: a thread that waits here while holding it would stop the one it waits
    /// for.
    fn lock(&self) -> core::Result<MutexGuard<'_, core::Ledger>> {
        let start = Instant::now();
        while self.process != process::id() {
            match self.inner.try_lock() {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if start.elapsed() > PATIENCE => {
                    return Err(core::Error::Forked);
                }
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
            }
        }
        // every method of the core checks before it writes, so a panic leaves nothing half done
        Ok(self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn storage(memory_limit: Option<i64>, folder: Option<PathBuf>) -> PyResult<core::Storage> {
    let mut storage = core::Storage::default();
    if let Some(limit) = memory_limit {
        storage.memory_limit = borrow::count("memory_limit", limit)? as u64;
    }
    storage.folder = folder.unwrap_or(storage.folder);
    Ok(storage)
}

fn owned<T: Element + Copy>(name: &str, dtype: &str, arrays: &Bound<'_, PyMapping>) -> PyResult<Vec<T>> {
    if !arrays.contains(name)? {
        return Err(LedgerError::new_err(format!("the state has no {name}")));
    }
    Ok(borrow::array::<T>(name, dtype, &arrays.get_item(name)?)?.as_slice()?.to_vec())
}

fn stored_epoch(arrays: &Bound<'_, PyMapping>, name: &str) -> PyResult<Option<core::Epoch>> {
    let (losses, observed) = (format!("{name}.losses"), format!("{name}.observed"));
    if !arrays.contains(&losses)? {
        return Ok(None);
    }
    Ok(Some(core::Epoch {
        losses: owned(&losses, "float32", arrays)?,
        observed: owned(&observed, "uint64", arrays)?,
    }))
}

#[pymethods]
impl Ledger {
    /// A ledger of n samples. Columns beyond memory_limit bytes are mapped from temporary files in folder.
    #[new]
    #[pyo3(signature = (n, *, ema_decay=0.9, memory_limit=None, folder=None))]
    fn new(
        py: Python<'_>,
        n: i64,
        ema_decay: f64,
        memory_limit: Option<i64>,
        folder: Option<PathBuf>,
    ) -> PyResult<Self> {
        let n = borrow::count("n", n)?;
        let storage = storage(memory_limit, folder)?;
        let inner = py.detach(|| core::Ledger::stored(n, ema_decay, storage)).map_err(ledger_error)?;
        Ok(inner.into())
    }

    /// Number of samples.
    #[getter]
    fn n_samples(&self, py: Python<'_>) -> PyResult<usize> {
        py.detach(|| Ok(self.lock()?.n_samples())).map_err(ledger_error)
    }

    /// Number of closed epochs.
    #[getter]
    fn n_columns(&self, py: Python<'_>) -> PyResult<usize> {
        py.detach(|| Ok(self.lock()?.n_columns())).map_err(ledger_error)
    }

    /// Number of columns in files, the open one among them.
    #[getter]
    fn n_mapped(&self, py: Python<'_>) -> PyResult<usize> {
        py.detach(|| Ok(self.lock()?.n_mapped())).map_err(ledger_error)
    }

    /// Write the losses (float32[B]) of the samples at positions (int64[B]) into the open column; the last
    /// write wins.
    ///
    /// A position out of range is an error, and then nothing is written.
    #[pyo3(signature = (positions, losses))]
    fn observe(
        &self,
        py: Python<'_>,
        positions: &Bound<'_, PyAny>,
        losses: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let positions = borrow::i64s("positions", positions)?;
        let losses = borrow::f32s("losses", losses)?;
        let (positions, losses) = (positions.as_slice()?, losses.as_slice()?);
        py.detach(|| self.lock()?.observe(positions, losses)).map_err(ledger_error)
    }

    /// Close the open column. Returns {"observed", "nan", "inf", "n"}.
    fn end_epoch<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let coverage = py.detach(|| self.lock()?.end_epoch()).map_err(ledger_error)?;
        let counts = PyDict::new(py);
        counts.set_item("observed", coverage.observed)?;
        counts.set_item("nan", coverage.nan)?;
        counts.set_item("inf", coverage.inf)?;
        counts.set_item("n", coverage.n)?;
        Ok(counts)
    }

    /// Losses (float32[N], NaN where missing) and the mask of observed samples (bool[N]) of a closed epoch.
    #[pyo3(signature = (index))]
    #[allow(clippy::type_complexity)]
    fn column<'py>(
        &self,
        py: Python<'py>,
        index: i64,
    ) -> PyResult<(Bound<'py, PyArray1<f32>>, Bound<'py, PyArray1<bool>>)> {
        let index = borrow::count("index", index)?;
        let copy = || {
            let ledger = self.lock()?;
            Ok((ledger.column(index)?.to_vec(), ledger.observed(index)?))
        };
        let (losses, observed) = py.detach(copy).map_err(ledger_error)?;
        Ok((losses.into_pyarray(py), observed.into_pyarray(py)))
    }

    /// What may still change, for from_state: ema_decay, and a dict of epochs_seen uint32[N], loss_ema and rank_ema
    /// float32[N], rank_sum float64[N], and of the open epoch, if there is one, "open.losses" and "open.observed", as
    /// epoch() gives them.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<(f64, Bound<'py, PyDict>)> {
        let parts = || {
            let ledger = self.lock()?;
            Ok((ledger.ema_decay(), ledger.state()?))
        };
        let (ema_decay, state) = py.detach(parts).map_err(ledger_error)?;
        let arrays = PyDict::new(py);
        arrays.set_item("epochs_seen", state.epochs_seen.into_pyarray(py))?;
        arrays.set_item("loss_ema", state.loss_ema.into_pyarray(py))?;
        arrays.set_item("rank_ema", state.rank_ema.into_pyarray(py))?;
        arrays.set_item("rank_sum", state.rank_sum.into_pyarray(py))?;
        if let Some(epoch) = state.open {
            arrays.set_item("open.losses", epoch.losses.into_pyarray(py))?;
            arrays.set_item("open.observed", epoch.observed.into_pyarray(py))?;
        }
        Ok((ema_decay, arrays))
    }

    /// A closed epoch: losses float32[N] and observed uint64[ceil(N / 64)], a bit for each sample.
    #[pyo3(signature = (index))]
    #[allow(clippy::type_complexity)]
    fn epoch<'py>(
        &self,
        py: Python<'py>,
        index: i64,
    ) -> PyResult<(Bound<'py, PyArray1<f32>>, Bound<'py, PyArray1<u64>>)> {
        let index = borrow::count("index", index)?;
        let epoch = py.detach(|| self.lock()?.epoch(index)).map_err(ledger_error)?;
        Ok((epoch.losses.into_pyarray(py), epoch.observed.into_pyarray(py)))
    }

    /// The ledger of n samples with the arrays of state() and, by name, those of every closed epoch: "0.losses",
    /// "0.observed" and so on.
    ///
    /// arrays is asked for one at a time. One that is missing, of another dtype or length, or that contradicts the
    /// others is an error.
    #[staticmethod]
    #[pyo3(signature = (n, ema_decay, arrays, *, memory_limit=None, folder=None))]
    fn from_state(
        py: Python<'_>,
        n: i64,
        ema_decay: f64,
        arrays: &Bound<'_, PyMapping>,
        memory_limit: Option<i64>,
        folder: Option<PathBuf>,
    ) -> PyResult<Self> {
        let n = borrow::count("n", n)?;
        let storage = storage(memory_limit, folder)?;
        let mut parts = py.detach(|| core::Restore::new(n, ema_decay, storage)).map_err(ledger_error)?;
        let mut n_columns = 0;
        while let Some(epoch) = stored_epoch(arrays, &n_columns.to_string())? {
            py.detach(|| parts.epoch(epoch)).map_err(ledger_error)?;
            n_columns += 1;
        }
        let state = core::State {
            epochs_seen: owned("epochs_seen", "uint32", arrays)?,
            loss_ema: owned("loss_ema", "float32", arrays)?,
            rank_ema: owned("rank_ema", "float32", arrays)?,
            rank_sum: owned("rank_sum", "float64", arrays)?,
            open: stored_epoch(arrays, "open")?,
            n_columns,
        };
        let known = 4 + 2 * (n_columns + usize::from(state.open.is_some()));
        if arrays.len()? != known {
            let left = arrays.len()?.abs_diff(known);
            return Err(LedgerError::new_err(format!("the state has {left} arrays that belong to no epoch")));
        }
        let inner = py.detach(|| parts.finish(state)).map_err(ledger_error)?;
        Ok(inner.into())
    }

    /// One score per sample as float32[N], lower is more suspicious, NaN for samples never observed.
    ///
    /// by is "last", "ema", "mean", "mean_rank", "rank_ema", "auc_loss", "first_below" (with a threshold),
    /// "drop" or "seep".
    #[pyo3(signature = (by, *, threshold=None))]
    fn scores<'py>(
        &self,
        py: Python<'py>,
        by: &str,
        threshold: Option<f32>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let by = core::Reducer::from_name(by, threshold).map_err(ledger_error)?;
        let scores = py.detach(|| self.lock()?.scores(by)).map_err(ledger_error)?;
        Ok(scores.into_pyarray(py))
    }
}
