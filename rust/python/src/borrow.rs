//! Reading numpy arrays in place.

use numpy::{Element, PyReadonlyArray1, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::errors::LedgerError;

/// Borrows a contiguous 1-D array of exactly this dtype; `wanted` is the dtype's name for the error.
pub(crate) fn array<'py, T: Element>(
    name: &str,
    wanted: &str,
    object: &Bound<'py, PyAny>,
) -> PyResult<PyReadonlyArray1<'py, T>> {
    match object.extract::<PyReadonlyArray1<'py, T>>() {
        Ok(array) if array.is_contiguous() => Ok(array),
        _ => Err(refuse(name, wanted, object)),
    }
}

pub(crate) fn f32s<'py>(name: &str, object: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray1<'py, f32>> {
    array(name, "float32", object)
}

pub(crate) fn i64s<'py>(name: &str, object: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray1<'py, i64>> {
    array(name, "int64", object)
}

/// A count that Python may hand over as any integer.
pub(crate) fn count(name: &str, value: i64) -> PyResult<usize> {
    usize::try_from(value)
        .map_err(|_| LedgerError::new_err(format!("{name} must not be negative, got {value}")))
}

fn refuse(name: &str, wanted: &str, object: &Bound<'_, PyAny>) -> PyErr {
    let got = match object.cast::<PyUntypedArray>() {
        Ok(array) => format!(
            "{} array of {} with shape {:?}",
            if array.is_contiguous() { "an" } else { "a strided" },
            array.dtype(),
            array.shape()
        ),
        Err(_) => match object.get_type().name() {
            Ok(kind) => kind.to_string(),
            Err(error) => return error,
        },
    };
    LedgerError::new_err(format!(
        "{name} must be a contiguous 1-D numpy array of {wanted}, got {got}; use numpy.ascontiguousarray({name}, \
         dtype=\"{wanted}\")"
    ))
}
