//! Stable ranking of floats, a ledger of per-sample training losses, and how far the rows of a matrix moved.
//!
//! Anti-Backdoor Learning finds poisoned rows by their losses: a backdoor is learned first, so the rows that
//! carry it have the lowest losses early in training. That needs two things, and this crate has the two:
//!
//! * one **total order** of `f32`, the same on every machine, and what follows from it: the `k` lowest
//!   ([`bottom_k`]), the lowest share of every class ([`bottom_k_per_class`]), and [`ranks`];
//! * [`Ledger`]: one loss per sample and epoch, scattered in batch by batch, and [`Reducer`]s that turn a
//!   sample's trajectory into one score.
//!
//! Backdoors in weights leave traces in the rows of an embedding: [`row_stats`] compares two versions of a
//! matrix row by row, in one pass, [`column_medians`] column by column. [`mix`] puts a random share of clean weights in place of tuned ones.
//!
//! # The order
//!
//! Values ascend, `-0.0` equals `+0.0`, every NaN (of either sign) comes after `+inf`, and **ties go to the
//! lower index**. So `bottom_k(x, k)` is `argsort(x, stable)[..k]` and never depends on the vector unit of
//! the CPU.
//!
//! # Complexity
//!
//! `N` values, `k` picked, `E` closed epochs, `b` the batch:
//!
//! | routine | time | extra memory |
//! |---|---|---|
//! | [`bottom_k`] | one read, and `O(k)` | 20 B per value picked, 8 B of these returned; 10 B more per further thread |
//! | [`bottom_k_per_class`] | two reads of the labels, one of the values, and `O(k)` | 18 B per value picked; 16 B per value when the classes are too many to sample |
//! | [`argsort`] | at most nine reads | 16 B per value, 8 B of these returned |
//! | [`ranks`] | at most ten reads, by histogram two | 16 B per value, 8 B returned; by histogram none |
//! | [`Ledger::observe`] | `O(b)` | 4.125 B per sample, once per epoch, in memory or past [`Storage::memory_limit`] in a file |
//! | [`Ledger::end_epoch`] | `O(N)` | 28 B per sample, freed on return |
//! | [`Ledger::scores`] | `O(N E)` | 4 B returned |
//! | [`row_stats`] | one read of both matrices | 16 B per row of each, 24 B per column and thread, 48 B per row returned |
//! | [`column_medians`] | two reads of both matrices, and a selection in every column | 64 MiB, or 64 B a row where that is more |
//! | [`mix`] | one read of both tensors, one write | none |
//!
//! # Example
//!
//! ```
//! use asepsis_core::{Ledger, NanPolicy, Reducer, bottom_k};
//!
//! let mut ledger = Ledger::new(4, 0.9)?;
//! ledger.observe(&[2, 0, 3], &[0.1, 0.7, 0.9])?; // sample 1 was not in an epoch cut short
//! ledger.observe(&[0], &[0.5])?; // the last write wins
//! assert_eq!(ledger.end_epoch()?.observed, 3);
//!
//! let scores = ledger.scores(Reducer::Last)?;
//! assert!(scores[1].is_nan());
//! assert_eq!(bottom_k(&scores, 2, NanPolicy::Drop, 1)?, [2, 0]);
//! # Ok::<(), asepsis_core::Error>(())
//! ```
#![deny(missing_docs)]

mod bound;
mod column;
mod error;
mod histogram;
mod ledger;
mod load;
mod machine;
mod medians;
mod mixing;
mod order;
mod pair;
mod per_class;
mod radix;
mod reduce;
mod row_block;
mod row_stats;
mod row_visit;
mod select;
mod state;

pub use column::Storage;
pub use error::Error;
pub use ledger::{Coverage, Ledger};
pub use medians::{ColumnMedians, column_medians};
pub use mixing::{Mask, mix};
pub use order::{NanPolicy, PerClass, RankMethod, argsort, bottom_k, bottom_k_halves, jaccard, ranks};
pub use pair::key;
pub use per_class::bottom_k_per_class;
pub use reduce::Reducer;
pub use row_stats::{ColumnSums, Dtype, Matrix, Options, Row, row_stats};
pub use state::{Epoch, Restore, State};

/// What every routine of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;
