//! `row_stats`, `column_medians`.

use asepsis_core as core;
use numpy::ndarray::{ArrayView1, ArrayView2};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray2, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::data_error;
use crate::errors::DataError;

/// How far every row of tuned is from its row of reference, in one pass over the bytes of both.
///
/// Both are uint8[V, D * itemsize], the values of a row side by side, rows any stride apart; a dtype is
/// "float32", "float16" or "bfloat16". pairs, int64[N, 2], names the rows to compare, (reference, tuned);
/// None pairs row i with row i. round_to is a dtype that the reference is rounded to first. Returns a dict of
/// float64[N] "delta_squared", "delta_dot", "reference_squared", "delta_abs", float32[N] "delta_max",
/// int64[N] "delta_argmax", "zeros", "non_finite" and, with columns, float64[D] "column_delta" and
/// "column_delta_squared".
#[pyfunction]
#[pyo3(signature = (
    reference, tuned, *, reference_dtype, tuned_dtype, pairs=None, columns=false, round_to=None, threads=1
))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn row_stats<'py>(
    py: Python<'py>,
    reference: &Bound<'py, PyAny>,
    tuned: &Bound<'py, PyAny>,
    reference_dtype: &str,
    tuned_dtype: &str,
    pairs: Option<&Bound<'py, PyAny>>,
    columns: bool,
    round_to: Option<&str>,
    threads: i64,
) -> PyResult<Bound<'py, PyDict>> {
    let borrowed = Borrowed::new([reference, tuned], [reference_dtype, tuned_dtype], pairs)?;
    let round_to = round_to.map(dtype).transpose()?;
    let threads = usize::try_from(threads)
        .map_err(|_| DataError::new_err(format!("threads must not be negative, got {threads}")))?;
    let views = borrowed.views();
    let work = || {
        let (reference, tuned) = views.matrices()?;
        core::row_stats(&reference, &tuned, core::Options { round_to, columns, threads })
    };
    let (rows, columns) = py.detach(work).map_err(data_error)?;

    let stats = PyDict::new(py);
    let doubles = |name, of: fn(&core::Row) -> f64| {
        stats.set_item(name, rows.iter().map(of).collect::<Vec<_>>().into_pyarray(py))
    };
    doubles("delta_squared", |row| row.delta_squared)?;
    doubles("delta_dot", |row| row.delta_dot)?;
    doubles("reference_squared", |row| row.reference_squared)?;
    doubles("delta_abs", |row| row.delta_abs)?;
    let max: Vec<f32> = rows.iter().map(|row| row.delta_max).collect();
    stats.set_item("delta_max", max.into_pyarray(py))?;
    let counts = |name, of: fn(&core::Row) -> u32| {
        stats.set_item(name, rows.iter().map(|row| i64::from(of(row))).collect::<Vec<_>>().into_pyarray(py))
    };
    counts("delta_argmax", |row| row.delta_argmax)?;
    counts("zeros", |row| row.zeros)?;
    counts("non_finite", |row| row.non_finite)?;
    if let Some(sums) = columns {
        stats.set_item("column_delta", sums.delta.into_pyarray(py))?;
        stats.set_item("column_delta_squared", sums.delta_squared.into_pyarray(py))?;
    }
    Ok(stats)
}

/// Exact medians of tuned - reference by column, and of the distances from them, over the rows that are finite.
///
/// Arguments are as for row_stats. Returns (median float64[D], deviation float64[D], number of rows).
#[pyfunction]
#[pyo3(signature = (reference, tuned, *, reference_dtype, tuned_dtype, pairs=None, round_to=None))]
#[allow(clippy::type_complexity)]
pub(crate) fn column_medians<'py>(
    py: Python<'py>,
    reference: &Bound<'py, PyAny>,
    tuned: &Bound<'py, PyAny>,
    reference_dtype: &str,
    tuned_dtype: &str,
    pairs: Option<&Bound<'py, PyAny>>,
    round_to: Option<&str>,
) -> PyResult<(Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<f64>>, usize)> {
    let borrowed = Borrowed::new([reference, tuned], [reference_dtype, tuned_dtype], pairs)?;
    let round_to = round_to.map(dtype).transpose()?;
    let views = borrowed.views();
    let work = || {
        let (reference, tuned) = views.matrices()?;
        core::column_medians(&reference, &tuned, round_to)
    };
    let found = py.detach(work).map_err(data_error)?;
    Ok((found.median.into_pyarray(py), found.deviation.into_pyarray(py), found.rows))
}

/// Two versions of a matrix as Python hands them over, and which of their rows belong together.
struct Borrowed<'py> {
    bytes: [PyReadonlyArray2<'py, u8>; 2],
    dtypes: [core::Dtype; 2],
    pairs: Option<PyReadonlyArray2<'py, i64>>,
}

impl<'py> Borrowed<'py> {
    fn new(
        [reference, tuned]: [&Bound<'py, PyAny>; 2],
        dtypes: [&str; 2],
        pairs: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let dtypes = [dtype(dtypes[0])?, dtype(dtypes[1])?];
        let bytes = [bytes("reference", reference)?, bytes("tuned", tuned)?];
        Ok(Self { bytes, dtypes, pairs: pairs.map(as_pairs).transpose()? })
    }

    fn views(&self) -> Views<'_> {
        Views {
            bytes: self.bytes.each_ref().map(PyReadonlyArray2::as_array),
            dtypes: self.dtypes,
            pairs: self.pairs.as_ref().map(PyReadonlyArray2::as_array),
        }
    }
}

/// [`Borrowed`] without what is Python's, to work on while the GIL is released.
struct Views<'a> {
    bytes: [ArrayView2<'a, u8>; 2],
    dtypes: [core::Dtype; 2],
    pairs: Option<ArrayView2<'a, i64>>,
}

impl Views<'_> {
    /// Both matrices, or the rows of them that belong together.
    fn matrices(&self) -> core::Result<(core::Matrix<'_>, core::Matrix<'_>)> {
        let [reference, tuned] = &self.bytes;
        let (reference, tuned) = (matrix(reference, self.dtypes[0])?, matrix(tuned, self.dtypes[1])?);
        Ok(match self.pairs {
            None => (reference, tuned),
            Some(pairs) => (
                reference.pick(pairs.column(0).iter().copied())?,
                tuned.pick(pairs.column(1).iter().copied())?,
            ),
        })
    }
}

fn dtype(name: &str) -> PyResult<core::Dtype> {
    name.parse().map_err(data_error)
}

fn matrix<'a>(view: &'a ArrayView2<'_, u8>, dtype: core::Dtype) -> core::Result<core::Matrix<'a>> {
    let rows = view.outer_iter().map(|row: ArrayView1<'a, u8>| row.to_slice().unwrap_or_default());
    core::Matrix::from_rows(rows.collect(), view.ncols() / dtype.size(), dtype)
}

fn bytes<'py>(name: &str, object: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray2<'py, u8>> {
    match object.extract::<PyReadonlyArray2<'py, u8>>() {
        // numpy gives strides of 0 to what is empty
        Ok(array) if array.is_empty() || array.shape()[1] < 2 || array.strides()[1] == 1 => Ok(array),
        _ => Err(DataError::new_err(format!(
            "{name} must be the bytes of a matrix, uint8[V, D * itemsize] with unit stride inside a row, got {}",
            kind(object)?
        ))),
    }
}

fn as_pairs<'py>(object: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray2<'py, i64>> {
    match object.extract::<PyReadonlyArray2<'py, i64>>() {
        Ok(array) if array.shape()[1] == 2 => Ok(array),
        _ => Err(DataError::new_err(format!("pairs must be int64[N, 2], got {}", kind(object)?))),
    }
}

fn kind(object: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(match object.cast::<PyUntypedArray>() {
        Ok(array) => format!("{} of shape {:?}", array.dtype(), array.shape()),
        Err(_) => object.get_type().name()?.to_string(),
    })
}
