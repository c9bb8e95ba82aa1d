//! How far every row of a matrix moved, in one pass over both versions of it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::column::filled;
use crate::load::{Bf16, F16, F32, Load};
use crate::machine;
use crate::row_block::{Block, Scratch};
use crate::{Error, Result};

/// Rows that one thread works on at a time. The results hang on it, through the column sums.
const BLOCK: usize = 256;

/// How a value is stored: little-endian, side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl Dtype {
    /// Bytes per value.
    #[must_use]
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

impl std::str::FromStr for Dtype {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "float32" => Ok(Self::F32),
            "float16" => Ok(Self::F16),
            "bfloat16" => Ok(Self::Bf16),
            _ => Err(Error::UnknownName {
                name: "dtype",
                got: name.to_owned(),
                wanted: "float32, float16, bfloat16",
            }),
        }
    }
}

/// The rows of a matrix, wherever their bytes lie: in memory, or in a file that is mapped.
#[derive(Debug, Clone)]
pub struct Matrix<'a> {
    rows: Vec<&'a [u8]>,
    columns: usize,
    dtype: Dtype,
}

impl<'a> Matrix<'a> {
    /// Rows of `columns` values each.
    ///
    /// # Errors
    ///
    /// [`Error::LengthMismatch`] when a row has other than `columns` values, [`Error::OutOfBounds`] when
    /// `columns` is 0.
    pub fn from_rows(rows: Vec<&'a [u8]>, columns: usize, dtype: Dtype) -> Result<Self> {
        let wanted = row_bytes(columns, dtype)?;
        match rows.iter().find(|row| row.len() != wanted) {
            Some(row) => Err(Error::LengthMismatch { name: "a row", got: row.len(), wanted }),
            None => Ok(Self { rows, columns, dtype }),
        }
    }

    /// `rows` rows of `columns` values, a new one every `stride` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::LengthMismatch`] when `bytes` ends before the last row does, [`Error::OutOfBounds`] when
    /// `columns` is 0 or the rows overlap.
    pub fn strided(
        bytes: &'a [u8],
        rows: usize,
        columns: usize,
        stride: usize,
        dtype: Dtype,
    ) -> Result<Self> {
        let width = row_bytes(columns, dtype)?;
        if stride < width {
            let wanted = "at least the bytes of a row";
            return Err(Error::OutOfBounds { name: "stride", got: stride as f64, wanted });
        }
        let wanted = rows.checked_sub(1).map_or(Some(0), |last| last.checked_mul(stride)?.checked_add(width));
        match wanted {
            Some(wanted) if wanted <= bytes.len() => {
                let row = |at: usize| &bytes[at * stride..at * stride + width];
                Ok(Self { rows: (0..rows).map(row).collect(), columns, dtype })
            }
            _ => {
                let wanted = wanted.unwrap_or(usize::MAX);
                Err(Error::LengthMismatch { name: "the matrix in bytes", got: bytes.len(), wanted })
            }
        }
    }

    /// These rows of it, in this order.
    ///
    /// # Errors
    ///
    /// [`Error::RowOutOfRange`].
    pub fn pick(&self, rows: impl IntoIterator<Item = i64>) -> Result<Self> {
        let n = self.rows.len();
        let find = |(at, row): (usize, i64)| {
            let found = usize::try_from(row).ok().and_then(|row| self.rows.get(row));
            found.copied().ok_or(Error::RowOutOfRange { row, at, n })
        };
        let rows = rows.into_iter().enumerate().map(find).collect::<Result<_>>()?;
        Ok(Self { rows, columns: self.columns, dtype: self.dtype })
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.rows.iter().copied()
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// An error unless the other one has as many rows and columns.
    pub(crate) fn same_shape(&self, tuned: &Self) -> Result<()> {
        for (name, got, wanted) in
            [("a row of tuned", tuned.columns, self.columns), ("tuned", tuned.rows.len(), self.rows.len())]
        {
            if got != wanted {
                return Err(Error::LengthMismatch { name, got, wanted });
            }
        }
        Ok(())
    }

    /// The number of rows.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.rows.len()
    }
}

fn row_bytes(columns: usize, dtype: Dtype) -> Result<usize> {
    match columns.checked_mul(dtype.size()) {
        Some(bytes) if bytes > 0 && u32::try_from(columns).is_ok() => Ok(bytes),
        _ => {
            let wanted = "at least 1 and below 2^32";
            Err(Error::OutOfBounds { name: "columns", got: columns as f64, wanted })
        }
    }
}

/// What is known of a row after the pass, with `delta = tuned - reference` in `f32`.
///
/// A row with a difference that is not finite has NaN in every float, and the index of the first such
/// difference.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Row {
    /// Sum of `delta^2`.
    pub delta_squared: f64,
    /// Sum of `delta * reference`.
    pub delta_dot: f64,
    /// Sum of `reference^2`.
    pub reference_squared: f64,
    /// Sum of `|delta|`.
    pub delta_abs: f64,
    /// Largest `|delta|`.
    pub delta_max: f32,
    /// The first column that has it.
    pub delta_argmax: u32,
    /// Differences that are zero.
    pub zeros: u32,
    /// Differences that are NaN or infinite.
    pub non_finite: u32,
}

/// Sums over the rows whose differences are all finite.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnSums {
    /// Sum of `delta`.
    pub delta: Vec<f64>,
    /// Sum of `delta^2`.
    pub delta_squared: Vec<f64>,
}

/// Settings of [`row_stats`].
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Round the reference to this first.
    pub round_to: Option<Dtype>,
    /// Sum up columns too.
    pub columns: bool,
    /// How many threads may work, this one among them. No result depends on it.
    pub threads: usize,
}

/// Every row, and the column sums if they were asked for.
///
/// Sums of squares and of sizes have a relative error below 1e-5 whatever finite values they are taken of;
/// that of `delta_dot` is relative to the product of the two norms. The bits are the same for any number of
/// threads and on any processor.
///
/// # Errors
///
/// [`Error::LengthMismatch`] when the matrices differ in shape, [`Error::OutOfMemory`].
pub fn row_stats(
    reference: &Matrix<'_>,
    tuned: &Matrix<'_>,
    options: Options,
) -> Result<(Vec<Row>, Option<ColumnSums>)> {
    reference.same_shape(tuned)?;
    let columns = if options.columns { tuned.columns } else { 0 };
    let mut rows = filled(tuned.rows.len(), Row::default())?;
    let totals = InOrder::new([filled(columns, 0.0)?, filled(columns, 0.0)?]);
    let run = kernel(reference.dtype, tuned.dtype);
    let threads = options.threads.clamp(1, rows.len().div_ceil(BLOCK).max(1));

    let blocks = rows.chunks_mut(BLOCK).zip(reference.rows.chunks(BLOCK)).zip(tuned.rows.chunks(BLOCK));
    let blocks = Mutex::new(blocks.enumerate());
    let work = || {
        let mut scratch = Scratch::new(columns);
        loop {
            let Some((at, ((rows, reference), tuned))) = lock(&blocks).next() else { return };
            run(Block { reference, tuned, round_to: options.round_to, rows, scratch: &mut scratch });
            if columns > 0 {
                totals.add(at, &scratch.columns);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // a thread that cannot be had is only time lost
            let _ = thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    let [delta, delta_squared] = totals.into_inner();
    Ok((rows, options.columns.then_some(ColumnSums { delta, delta_squared })))
}

fn kernel(reference: Dtype, tuned: Dtype) -> fn(Block<'_>) {
    fn of<R: Load>(tuned: Dtype) -> fn(Block<'_>) {
        match tuned {
            Dtype::F32 => machine::rows::run::<R, F32>,
            Dtype::F16 => machine::rows::run::<R, F16>,
            Dtype::Bf16 => machine::rows::run::<R, Bf16>,
        }
    }
    match reference {
        Dtype::F32 => of::<F32>(tuned),
        Dtype::F16 => of::<F16>(tuned),
        Dtype::Bf16 => of::<Bf16>(tuned),
    }
}

/// Sums to which blocks add in their own order, whichever is done first.
struct InOrder {
    state: Mutex<(usize, [Vec<f64>; 2])>,
    turn: Condvar,
}

impl InOrder {
    fn new(sums: [Vec<f64>; 2]) -> Self {
        Self { state: Mutex::new((0, sums)), turn: Condvar::new() }
    }

    /// Waits for the blocks before this one. They are all in work: blocks are handed out in order.
    fn add(&self, at: usize, parts: &[Vec<f64>; 2]) {
        let earlier = |state: &mut (usize, [Vec<f64>; 2])| state.0 != at;
        let waited = self.turn.wait_while(lock(&self.state), earlier);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        for (sums, parts) in state.1.iter_mut().zip(parts) {
            sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
        }
        state.0 += 1;
        self.turn.notify_all();
    }

    fn into_inner(self) -> [Vec<f64>; 2] {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).1
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
