//! The `Ledger` class.

use std::sync::{Mutex, MutexGuard, PoisonError};

use asepsis_core as core;
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::{borrow, ledger_error};

/// One loss per sample and epoch. Threads may share it: calls wait for each other without holding the GIL.
#[pyclass(frozen, module = "asepsis._native")]
pub(crate) struct Ledger {
    inner: Mutex<core::Ledger>,
}

impl Ledger {
    /// Call only with the GIL released: a thread that waits here while holding it would stop the one it waits for.
    fn lock(&self) -> MutexGuard<'_, core::Ledger> {
        // every method of the core checks before it writes, so a panic leaves nothing half done
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Ledger {
    /// A ledger of n samples.
    #[new]
    #[pyo3(signature = (n, *, ema_decay=0.9))]
    fn new(py: Python<'_>, n: i64, ema_decay: f64) -> PyResult<Self> {
        let n = borrow::count("n", n)?;
        let inner = py.detach(|| core::Ledger::new(n, ema_decay)).map_err(ledger_error)?;
        Ok(Self { inner: Mutex::new(inner) })
    }

    /// Number of samples.
    #[getter]
    fn n_samples(&self, py: Python<'_>) -> usize {
        py.detach(|| self.lock().n_samples())
    }

    /// Number of closed epochs.
    #[getter]
    fn n_columns(&self, py: Python<'_>) -> usize {
        py.detach(|| self.lock().n_columns())
    }

    /// Write the losses (float32[B]) of the samples at positions (int64[B]) into the open column; the last write wins.
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
        py.detach(|| self.lock().observe(positions, losses)).map_err(ledger_error)
    }

    /// Close the open column. Returns {"observed", "nan", "inf", "n"}.
    fn end_epoch<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let coverage = py.detach(|| self.lock().end_epoch()).map_err(ledger_error)?;
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
            let ledger = self.lock();
            Ok((ledger.column(index)?.to_vec(), ledger.observed(index)?))
        };
        let (losses, observed) = py.detach(copy).map_err(ledger_error)?;
        Ok((losses.into_pyarray(py), observed.into_pyarray(py)))
    }

    /// One score per sample as float32[N], lower is more suspicious, NaN for samples never observed.
    ///
    /// by is "last", "ema", "mean", "mean_rank", "rank_ema", "auc_loss", "first_below" (with a threshold), "drop" or
    /// "seep".
    #[pyo3(signature = (by, *, threshold=None))]
    fn scores<'py>(
        &self,
        py: Python<'py>,
        by: &str,
        threshold: Option<f32>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let by = core::Reducer::from_name(by, threshold).map_err(ledger_error)?;
        let scores = py.detach(|| self.lock().scores(by)).map_err(ledger_error)?;
        Ok(scores.into_pyarray(py))
    }
}
