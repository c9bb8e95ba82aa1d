//! What can go wrong, with the numbers that show it.

use std::fmt;
use std::path::PathBuf;

/// Every failure of this crate. Messages are lower-case and carry what was got and what was wanted.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// More values were asked for than may be picked.
    TooFew {
        /// How many were asked for.
        k: usize,
        /// How many the NaN policy leaves to pick from.
        available: usize,
    },
    /// One class has fewer rows to pick from than its share.
    ClassTooSmall {
        /// The first row of the class: a label may have been renumbered on the way here, a row has not.
        row: usize,
        /// Its share.
        k: usize,
        /// Its rows that are not NaN.
        available: usize,
    },
    /// A NaN was met under [`NanPolicy::Error`](crate::NanPolicy::Error).
    Nan {
        /// How many there are.
        count: usize,
        /// The index of the first.
        first: usize,
    },
    /// Two slices that go together differ in length.
    LengthMismatch {
        /// The name of the slice that is wrong.
        name: &'static str,
        /// Its length.
        got: usize,
        /// The length that was wanted.
        wanted: usize,
    },
    /// A position points outside the ledger.
    PositionOutOfRange {
        /// The position.
        position: i64,
        /// Where in the batch it stands.
        at: usize,
        /// The ledger's number of samples.
        n: usize,
    },
    /// A row that the matrix does not have.
    RowOutOfRange {
        /// The row.
        row: i64,
        /// Where in the selection it stands.
        at: usize,
        /// The number of rows.
        n: usize,
    },
    /// A label is not a class.
    LabelOutOfRange {
        /// The label.
        label: i64,
        /// The row that carries it.
        at: usize,
        /// The number of classes.
        n_classes: usize,
    },
    /// A setting lies outside its bounds.
    OutOfBounds {
        /// The setting.
        name: &'static str,
        /// What was given.
        got: f64,
        /// The bounds, in words.
        wanted: &'static str,
    },
    /// A name that stands for no option.
    UnknownName {
        /// What the name should have named.
        name: &'static str,
        /// The name.
        got: String,
        /// The names there are.
        wanted: &'static str,
    },
    /// A ledger's state contradicts itself.
    Inconsistent {
        /// The part that does not fit the columns.
        name: &'static str,
        /// The first sample where it does not.
        row: usize,
    },
    /// The allocator refused the memory for a vector.
    OutOfMemory {
        /// Its length.
        n: usize,
    },
    /// A column that should lie in a file has none.
    Storage {
        /// The folder that was to hold it.
        folder: PathBuf,
        /// How large it is.
        bytes: u64,
        /// What the system said.
        problem: String,
    },
    /// A forked process would write to a column that its parent maps too.
    ForkedMap,
    /// A forked process waits for a lock that a thread of its parent held.
    Forked,
    /// An epoch was closed without a single observation.
    NothingObserved,
    /// Scores were asked for before any epoch was closed.
    NoColumns {
        /// Samples observed in the column that is still open.
        pending: usize,
    },
    /// A column that does not exist.
    NoSuchColumn {
        /// The index that was asked for.
        index: usize,
        /// How many columns are closed.
        n_columns: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFew { k, available } => {
                write!(f, "{k} values were asked for, only {available} can be picked")
            }
            Self::ClassTooSmall { row, k, available } => write!(
                f,
                "the class of row {row} should give {k} rows, only {available} of its rows have a score"
            ),
            Self::Nan { count, first } => write!(
                f,
                "{count} values are NaN, the first at index {first}; the policies last and drop allow them"
            ),
            Self::LengthMismatch { name, got, wanted } => {
                write!(f, "{name} has length {got}, {wanted} was wanted")
            }
            Self::PositionOutOfRange { position, at, n } => write!(
                f,
                "position {position} (entry {at} of the batch) is outside 0..{n}; nothing was recorded"
            ),
            Self::RowOutOfRange { row, at, n } => {
                write!(f, "row {row} (entry {at} of the row map) is outside 0..{n}")
            }
            Self::LabelOutOfRange { label, at, n_classes } => {
                write!(f, "label {label} of row {at} is outside 0..{n_classes}")
            }
            Self::OutOfBounds { name, got, wanted } => {
                write!(f, "{name} must be {wanted}, got {got}")
            }
            Self::UnknownName { name, got, wanted } => {
                write!(f, "{name} must be one of {wanted}, got {got:?}")
            }
            Self::Inconsistent { name, row } => {
                write!(
                    f,
                    "{name} of sample {row} contradicts the columns; was the state put together by hand?"
                )
            }
            Self::OutOfMemory { n } => {
                write!(f, "there is no memory for {n} values")
            }
            Self::Storage { folder, bytes, problem } => write!(
                f,
                "a column of {bytes} bytes cannot be put into {}: {problem}; make room there, or give another folder \
                 or a higher memory_limit; nothing was recorded",
                folder.display()
            ),
            Self::ForkedMap => f.write_str(
                "this process was forked, and the ledger's open column lies in a file that it shares with its parent; \
                 record losses in the parent, or raise memory_limit",
            ),
            Self::Forked => f.write_str(
                "this process was forked while a thread of its parent worked on the ledger, which cannot be used here; \
                 use it in the parent, or fork between batches",
            ),
            Self::NothingObserved => f.write_str(
                "no sample was observed since the last epoch was closed; do the losses reach observe()?",
            ),
            Self::NoColumns { pending } => write!(
                f,
                "no epoch is closed yet ({pending} samples observed in the open one); call end_epoch() first"
            ),
            Self::NoSuchColumn { index, n_columns } => {
                write!(f, "column {index} does not exist, {n_columns} are closed")
            }
        }
    }
}

impl std::error::Error for Error {}
