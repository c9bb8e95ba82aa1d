//! PyO3 glue: the `asepsis._native` extension module.
//!
//! Nothing is computed here. Buffers are borrowed from numpy without a copy, the work runs with the GIL
//! released, and every [`asepsis_core::Error`] becomes a class of `asepsis.errors`: `LedgerError`, for
//! weights `DataError`.

mod borrow;
mod ledger;
mod mixing;
mod order;
mod row_stats;

use pyo3::prelude::*;

mod errors {
    pyo3::import_exception!(asepsis.errors, DataError);
    pyo3::import_exception!(asepsis.errors, LedgerError);
}

/// The Python exception of a core error about weights.
fn data_error(error: asepsis_core::Error) -> PyErr {
    errors::DataError::new_err(error.to_string())
}

/// The Python exception of a core error about losses.
fn ledger_error(error: asepsis_core::Error) -> PyErr {
    errors::LedgerError::new_err(error.to_string())
}

/// The Rust core of asepsis: a total order of float32 values, the per-sample loss ledger, statistics of rows, mixing.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(order::argsort, module)?)?;
    module.add_function(wrap_pyfunction!(order::bottom_k, module)?)?;
    module.add_function(wrap_pyfunction!(order::bottom_k_per_class, module)?)?;
    module.add_function(wrap_pyfunction!(row_stats::column_medians, module)?)?;
    module.add_function(wrap_pyfunction!(order::jaccard, module)?)?;
    module.add_function(wrap_pyfunction!(mixing::mix, module)?)?;
    module.add_function(wrap_pyfunction!(order::ranks, module)?)?;
    module.add_function(wrap_pyfunction!(row_stats::row_stats, module)?)?;
    module.add_class::<ledger::Ledger>()
}
