//! Per-sample loss ledger and stable ranking.
