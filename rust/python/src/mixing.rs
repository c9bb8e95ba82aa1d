//! `mix`.

use asepsis_core as core;
use numpy::{
    PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadwriteArray1, PyUntypedArray, PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::data_error;
use crate::errors::DataError;

/// Fill out with the elements of tuned that the mask keeps, and with those of reference elsewhere.
///
/// All three are the bytes of a tensor, contiguous uint8[N * item_size]; out must share no memory with the others. The
/// mask is that of the tensor `key` under `seed` and keeps kept_of_65536 / 65536 of the elements; start is
/// the index in its tensor of the first element here. Returns how many were kept.
#[pyfunction]
#[pyo3(signature = (reference, tuned, out, *, item_size, seed, key, kept_of_65536, start=0, threads=1))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn mix(
    py: Python<'_>,
    reference: &Bound<'_, PyAny>,
    tuned: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    item_size: usize,
    seed: u64,
    key: u64,
    kept_of_65536: u32,
    start: u64,
    threads: usize,
) -> PyResult<usize> {
    let mask = core::Mask::new(seed, key, kept_of_65536).map_err(data_error)?;
    let (reference, tuned) = (bytes("reference", reference)?, bytes("tuned", tuned)?);
    let mut filled = writable(out)?;
    let (reference, tuned) = (reference.as_slice()?, tuned.as_slice()?);
    let out = filled.as_slice_mut()?;
    py.detach(|| core::mix(reference, tuned, out, item_size, mask, start, threads)).map_err(data_error)
}

fn bytes<'py>(name: &str, object: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray1<'py, u8>> {
    match object.extract::<PyReadonlyArray1<'py, u8>>() {
        Ok(array) if array.is_contiguous() => Ok(array),
        _ => Err(refuse(name, object)?),
    }
}

fn writable<'py>(object: &Bound<'py, PyAny>) -> PyResult<PyReadwriteArray1<'py, u8>> {
    match object.cast::<PyArray1<u8>>() {
        Ok(array) if array.is_contiguous() => array.try_readwrite().map_err(|error| {
            DataError::new_err(format!("out must be writable and share no memory with the others: {error}"))
        }),
        _ => Err(refuse("out", object)?),
    }
}

fn refuse(name: &str, object: &Bound<'_, PyAny>) -> PyResult<PyErr> {
    let got = match object.cast::<PyUntypedArray>() {
        Ok(array) => format!("{} of shape {:?}", array.dtype(), array.shape()),
        Err(_) => object.get_type().name()?.to_string(),
    };
    Ok(DataError::new_err(format!(
        "{name} must be the bytes of a tensor, contiguous uint8[N * item_size], got {got}"
    )))
}
