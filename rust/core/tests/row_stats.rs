//! Row statistics against loops in `f64` that are right by looking at them.

use asepsis_core::{ColumnSums, Dtype, Error, Matrix, Options, Row, column_medians, row_stats};
use proptest::prelude::*;

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];
const PLAIN: Options = Options { round_to: None, columns: true, threads: 1 };

/// Bits of a value of 32 or 16 bits, and what they stand for.
fn decode(bits: u32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => f32::from_bits(bits),
        Dtype::Bf16 => f32::from_bits(bits << 16),
        Dtype::F16 => {
            let (exponent, fraction) = ((bits >> 10 & 31) as i32, (bits & 1023) as f32);
            let magnitude = match exponent {
                0 => fraction * 2f32.powi(-24),
                31 if fraction == 0.0 => f32::INFINITY,
                31 => f32::NAN,
                _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
            };
            if bits >> 15 == 1 { -magnitude } else { magnitude }
        }
    }
}

/// Bits of ordinary weights, of any values, and of what no weight should be.
fn bits(dtype: Dtype) -> BoxedStrategy<u32> {
    let (exponent_of_one, fraction, sign) = match dtype {
        Dtype::F32 => (127 << 23, 23, 31),
        Dtype::Bf16 => (127 << 7, 7, 15),
        Dtype::F16 => (15 << 10, 10, 15),
    };
    let weight = (0u32..2, 0u32..6, any::<u32>()).prop_map(move |(minus, scale, random)| {
        (minus << sign) | (exponent_of_one - (scale << fraction)) | (random % (1 << fraction))
    });
    let finite = any::<u32>()
        .prop_map(move |random| if dtype == Dtype::F32 { random } else { random & 0xffff })
        .prop_filter("finite", move |&bits| decode(bits, dtype).is_finite());
    prop_oneof![6 => weight, 1 => Just(0), 1 => finite].boxed()
}

#[derive(Debug, Clone)]
struct Case {
    dtypes: [Dtype; 2],
    columns: usize,
    rows: Vec<[Vec<u32>; 2]>,
    pad: usize,
}

fn case() -> impl Strategy<Value = Case> {
    let dtype = || prop::sample::select(DTYPES.to_vec());
    let columns = prop_oneof![1usize..40, Just(513)];
    (dtype(), dtype(), columns, 0usize..5).prop_flat_map(|(p, f, columns, pad)| {
        let row = move |dtype| prop::collection::vec(bits(dtype), columns);
        let rows = prop::collection::vec((row(p), row(f)).prop_map(|(p, f)| [p, f]), 0..10);
        rows.prop_map(move |rows| Case { dtypes: [p, f], columns, rows, pad })
    })
}

impl Case {
    fn bytes(&self, side: usize) -> Vec<u8> {
        let size = self.dtypes[side].size();
        let mut bytes = vec![];
        for row in &self.rows {
            row[side].iter().for_each(|bits| bytes.extend_from_slice(&bits.to_le_bytes()[..size]));
            bytes.extend(std::iter::repeat_n(0xff, self.pad)); // NaN, if it were read
        }
        bytes
    }

    fn with<R>(&self, of: impl FnOnce(&Matrix<'_>, &Matrix<'_>) -> R) -> R {
        let bytes = [self.bytes(0), self.bytes(1)];
        let matrix = |side: usize| {
            let stride = self.columns * self.dtypes[side].size() + self.pad;
            Matrix::strided(&bytes[side], self.rows.len(), self.columns, stride, self.dtypes[side]).unwrap()
        };
        of(&matrix(0), &matrix(1))
    }

    fn stats(&self, options: Options) -> (Vec<Row>, Option<ColumnSums>) {
        self.with(|p, f| row_stats(p, f, options).unwrap())
    }

    /// Reference and difference.
    fn values(&self, row: usize) -> Vec<(f64, f64)> {
        let [p, f] = &self.rows[row];
        let values = p.iter().zip(f).map(|(&p, &f)| (decode(p, self.dtypes[0]), decode(f, self.dtypes[1])));
        values.map(|(p, f)| (f64::from(p), f64::from(f - p))).collect()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n => f64::midpoint(values[(n - 1) / 2], values[n / 2]),
    }
}

fn same(a: f64, b: f64) -> bool {
    a == b || a.is_nan() && b.is_nan()
}

fn sum(values: &[(f64, f64)], of: impl Fn(f64, f64) -> f64) -> f64 {
    values.iter().map(|&(p, e)| of(p, e)).sum()
}

fn close(got: f64, wanted: f64, scale: f64) -> bool {
    (got - wanted).abs() <= 1e-5 * scale
}

proptest! {
    #[test]
    fn medians_of_columns_are_those_of_the_finite_rows(case in case()) {
        let rows: Vec<Vec<(f64, f64)>> = (0..case.rows.len()).map(|row| case.values(row)).collect();
        let finite: Vec<_> = rows.iter().filter(|row| row.iter().all(|(_, e)| e.is_finite())).collect();
        let got = case.with(|p, f| column_medians(p, f, None).unwrap());
        prop_assert_eq!(got.rows, finite.len());
        prop_assert_eq!(got.median.len(), case.columns);
        for column in 0..case.columns {
            let deltas: Vec<f64> = finite.iter().map(|row| row[column].1).collect();
            let wanted = median(deltas.clone());
            let deviation = median(deltas.iter().map(|x| (x - wanted).abs()).collect());
            prop_assert!(same(got.median[column], wanted) && same(got.deviation[column], deviation));
        }
    }

    #[test]
    fn every_row_is_what_the_definitions_say(case in case()) {
        let (rows, columns) = case.stats(PLAIN);
        let columns = columns.unwrap();
        let mut deltas = vec![(0.0, 0.0, 0.0); case.columns];
        prop_assert_eq!(rows.len(), case.rows.len());
        for (at, row) in rows.iter().enumerate() {
            let values = case.values(at);
            let non_finite = values.iter().filter(|(_, e)| !e.is_finite()).count();
            prop_assert_eq!(row.non_finite as usize, non_finite);
            prop_assert_eq!(row.zeros as usize, values.iter().filter(|(_, e)| *e == 0.0).count());
            if non_finite > 0 {
                prop_assert!(row.delta_squared.is_nan() && row.delta_dot.is_nan());
                prop_assert!(row.reference_squared.is_nan() && row.delta_abs.is_nan() && row.delta_max.is_nan());
                let first = values.iter().position(|(_, e)| !e.is_finite());
                prop_assert_eq!(Some(row.delta_argmax as usize), first);
                continue;
            }
            let (a, c) = (sum(&values, |_, e| e * e), sum(&values, |p, _| p * p));
            prop_assert!(close(row.delta_squared, a, a), "{} {a}", row.delta_squared);
            prop_assert!(close(row.reference_squared, c, c), "{} {c}", row.reference_squared);
            prop_assert!(close(row.delta_dot, sum(&values, |p, e| p * e), a.sqrt() * c.sqrt()));
            let l1 = sum(&values, |_, e| e.abs());
            prop_assert!(close(row.delta_abs, l1, l1));
            let max = values.iter().fold(0.0f64, |max, (_, e)| max.max(e.abs()));
            prop_assert_eq!(f64::from(row.delta_max), max);
            let first = values.iter().position(|(_, e)| e.abs() == max);
            prop_assert_eq!(Some(row.delta_argmax as usize), first);
            for (total, (_, e)) in deltas.iter_mut().zip(values) {
                *total = (total.0 + e, total.1 + e.abs(), total.2 + e * e);
            }
        }
        for (column, (delta, size, square)) in deltas.into_iter().enumerate() {
            // an ordinary row is added in f32, whose smallest normal number the squares may fall below
            prop_assert!(close(columns.delta[column], delta, size));
            prop_assert!(close(columns.delta_squared[column], square, square + 1e-30));
        }
    }

    #[test]
    fn rounding_first_is_rounding_the_reference_bits(case in case()) {
        for to in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let mut rounded = case.clone();
            rounded.dtypes[0] = Dtype::F32;
            for [p, _] in &mut rounded.rows {
                p.iter_mut().for_each(|bits| *bits = round(decode(*bits, case.dtypes[0]), to).to_bits());
            }
            let (got, wanted) = (case.stats(Options { round_to: Some(to), ..PLAIN }), rounded.stats(PLAIN));
            prop_assert_eq!(format!("{got:?}"), format!("{wanted:?}")); // NaN equals NaN
        }
    }
}

/// The nearest value of the format by trying its neighbors; ties to the even one.
fn round(value: f32, to: Dtype) -> f32 {
    if to == Dtype::F32 || !value.is_finite() {
        return value;
    }
    let (infinity, step_over) = if to == Dtype::F16 { (0x7c00, 65536.0) } else { (0x7f80, 2f64.powi(128)) };
    let magnitude = |bits: u32| if bits == infinity { step_over } else { f64::from(decode(bits, to)) };
    let size = f64::from(value.abs());
    let (mut low, mut high) = (0, infinity);
    while high - low > 1 {
        let middle = (low + high) / 2;
        *(if magnitude(middle) <= size { &mut low } else { &mut high }) = middle;
    }
    let (below, above) = (size - magnitude(low), magnitude(high) - size);
    let nearest = if below < above || below == above && low % 2 == 0 { low } else { high };
    decode(nearest, to).copysign(value)
}

fn noise(n: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).flat_map(|_| next().to_le_bytes()).collect()
}

#[test]
fn no_bit_depends_on_the_number_of_threads() {
    let (rows, columns) = (2000, 33);
    let (p, f) = (noise(rows * columns, 1), noise(rows * columns, 2));
    let matrix = |bytes| Matrix::strided(bytes, rows, columns, 4 * columns, Dtype::F32).unwrap();
    let stats = |threads| row_stats(&matrix(&p), &matrix(&f), Options { threads, ..PLAIN }).unwrap();
    let one = stats(1);
    for threads in [0, 2, 3, 8, 1000] {
        assert_eq!(stats(threads), one);
    }
}

#[test]
fn picked_rows_are_those_of_the_map() {
    let (p, f) = (noise(12, 1), noise(12, 2));
    let matrix = |bytes| Matrix::strided(bytes, 4, 3, 12, Dtype::F32).unwrap();
    let (all, _) = row_stats(&matrix(&p), &matrix(&f).pick([2, 0, 3, 1]).unwrap(), PLAIN).unwrap();
    let pairs = (matrix(&p).pick([3, 0]).unwrap(), matrix(&f).pick([1, 2]).unwrap());
    assert_eq!(pairs.0.n_rows(), 2);
    let (two, _) = row_stats(&pairs.0, &pairs.1, PLAIN).unwrap();
    assert_eq!(two, [all[3], all[0]]);
    for row in [-1, 4, i64::MIN] {
        let refused = matrix(&p).pick([0, row]).map(|_| ());
        assert_eq!(refused, Err(Error::RowOutOfRange { row, at: 1, n: 4 }));
    }
}

#[test]
fn bytes_that_end_early_are_refused_and_not_read() {
    let bytes = noise(12, 1);
    let strided = |rows, columns, stride| {
        Matrix::strided(&bytes, rows, columns, stride, Dtype::F32).map(|matrix| matrix.n_rows())
    };
    assert_eq!(strided(4, 3, 12), Ok(4));
    assert_eq!(strided(3, 2, 20), Ok(3), "the last row ends with its values, not with its stride");
    assert_eq!(strided(0, 3, 12), Ok(0));
    let name = "the matrix in bytes";
    assert_eq!(strided(5, 3, 12), Err(Error::LengthMismatch { name, got: 48, wanted: 60 }));
    let wanted = usize::MAX;
    assert_eq!(strided(usize::MAX, 3, 12), Err(Error::LengthMismatch { name, got: 48, wanted }));
    for refused in [strided(4, 0, 12), strided(4, 3, 11), strided(1, usize::MAX, usize::MAX)] {
        assert!(matches!(refused, Err(Error::OutOfBounds { .. })));
    }
    let short = Matrix::from_rows(vec![&bytes[..12], &bytes[..8]], 3, Dtype::F32).map(|_| ());
    assert_eq!(short, Err(Error::LengthMismatch { name: "a row", got: 8, wanted: 12 }));
}

#[test]
fn matrices_of_two_shapes_are_refused() {
    let bytes = noise(12, 1);
    let matrix = |rows, columns| Matrix::strided(&bytes, rows, columns, 4 * columns, Dtype::F32).unwrap();
    for (rows, columns) in [(3, 3), (4, 2)] {
        let refused = row_stats(&matrix(4, 3), &matrix(rows, columns), PLAIN);
        assert!(matches!(refused, Err(Error::LengthMismatch { .. })));
    }
}
