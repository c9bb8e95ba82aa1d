//! `bottom_k`, `bottom_k_per_class`, `argsort`, `ranks`, `jaccard`.

use asepsis_core as core;
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use crate::{borrow, ledger_error};

/// Indices of the k lowest values, ascending; ties go to the lower index.
///
/// values is float32[N], contiguous, or with dtype "float16" or "bfloat16" uint16[N], the bits of such values, ranked as
/// they are. nan is "last" (after +inf), "error" or "drop" (never picked). At most threads threads work; no result
/// depends on it. Returns int64[k].
#[pyfunction]
#[pyo3(signature = (values, k, *, dtype="float32", nan="last", threads=1))]
pub(crate) fn bottom_k<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    k: i64,
    dtype: &str,
    nan: &str,
    threads: usize,
) -> PyResult<Bound<'py, PyArray1<i64>>> {
    let k = borrow::count("k", k)?;
    let nan = nan.parse().map_err(ledger_error)?;
    let dtype = dtype.parse().map_err(ledger_error)?;
    let picked = if dtype == core::Dtype::F32 {
        let values = borrow::f32s("values", values)?;
        let values = values.as_slice()?;
        py.detach(|| core::bottom_k(values, k, nan, threads))
    } else {
        let values = borrow::array::<u16>("values", "uint16", values)?;
        let values = values.as_slice()?;
        py.detach(|| core::bottom_k_halves(values, dtype, k, nan, threads))
    };
    let picked = picked.map_err(ledger_error)?;
    Ok(picked.into_pyarray(py))
}

/// The lowest max(1, floor(ratio * n_c)) rows of every class c of n_c rows, none of an empty class.
///
/// values is float32[N] and labels int64[N], both contiguous. Returns (indices, offsets), both int64: class c
/// owns indices[offsets[c]:offsets[c + 1]], ascending by value.
#[pyfunction]
#[pyo3(signature = (values, labels, ratio, n_classes, *, nan="last"))]
#[allow(clippy::type_complexity)]
pub(crate) fn bottom_k_per_class<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    labels: &Bound<'py, PyAny>,
    ratio: f64,
    n_classes: i64,
    nan: &str,
) -> PyResult<(Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>)> {
    let n_classes = borrow::count("n_classes", n_classes)?;
    let nan = nan.parse().map_err(ledger_error)?;
    let values = borrow::f32s("values", values)?;
    let labels = borrow::i64s("labels", labels)?;
    let (values, labels) = (values.as_slice()?, labels.as_slice()?);
    let picked = py
        .detach(|| core::bottom_k_per_class(values, labels, ratio, n_classes, nan))
        .map_err(ledger_error)?;
    Ok((picked.indices.into_pyarray(py), picked.offsets.into_pyarray(py)))
}

/// Indices that sort values, ascending; ties go to the lower index.
///
/// values is float32[N], contiguous. nan is "last" (after +inf), "error" or "drop" (left out). Returns int64[N], without
/// the dropped.
#[pyfunction]
#[pyo3(signature = (values, *, nan="last"))]
pub(crate) fn argsort<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    nan: &str,
) -> PyResult<Bound<'py, PyArray1<i64>>> {
    let nan = nan.parse().map_err(ledger_error)?;
    let values = borrow::f32s("values", values)?;
    let values = values.as_slice()?;
    let sorted = py.detach(|| core::argsort(values, nan)).map_err(ledger_error)?;
    Ok(sorted.into_pyarray(py))
}

/// Rank of every value from 0, as float64[N].
///
/// method is "ordinal" (ties by index), "average", "min", or "histogram": average, with the lower 16 bits of every
/// value taken as equal. With nan="drop" a NaN has rank NaN.
#[pyfunction]
#[pyo3(signature = (values, *, method="ordinal", nan="last"))]
pub(crate) fn ranks<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    method: &str,
    nan: &str,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let method = method.parse().map_err(ledger_error)?;
    let nan = nan.parse().map_err(ledger_error)?;
    let values = borrow::f32s("values", values)?;
    let values = values.as_slice()?;
    let ranks = py.detach(|| core::ranks(values, method, nan)).map_err(ledger_error)?;
    Ok(ranks.into_pyarray(py))
}

/// Share of indices two int64 sets have in common, 1 for two empty sets.
#[pyfunction]
#[pyo3(signature = (a, b))]
pub(crate) fn jaccard(py: Python<'_>, a: &Bound<'_, PyAny>, b: &Bound<'_, PyAny>) -> PyResult<f64> {
    let (a, b) = (borrow::i64s("a", a)?, borrow::i64s("b", b)?);
    let (a, b) = (a.as_slice()?, b.as_slice()?);
    Ok(py.detach(|| core::jaccard(a, b)))
}
