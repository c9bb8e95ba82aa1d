//! `cargo bench --package asepsis-core`: what the core costs by itself, without Python.
//!
//! Small on purpose, for a look before and after a change; how it compares with other libraries is measured by
//! `make bench-native`.

use std::hint::black_box;
use std::time::Duration;

use asepsis_core::{
    Dtype, Ledger, Mask, Matrix, NanPolicy, Options, RankMethod, argsort, bottom_k, bottom_k_per_class, mix,
    ranks, row_stats,
};
use criterion::{BenchmarkId, Criterion, Throughput};

const N: usize = 1 << 20;

/// Losses as training leaves them: exponential.
fn losses(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        -(1.0 - (state >> 40) as f32 / (1u32 << 24) as f32).ln()
    };
    (0..n).map(|_| next()).collect()
}

/// The usual losses, and what a threshold by sample or a sort by digits could trip over.
fn inputs() -> [(&'static str, Vec<f32>); 4] {
    let usual = losses(N);
    let mut descending = usual.clone();
    descending.sort_by(|a, b| b.total_cmp(a));
    let zeros = usual.iter().enumerate().map(|(at, &x)| if at % 2 == 0 { 0.0 } else { x }).collect();
    [("exponential", usual), ("constant", vec![1.5; N]), ("half zeros", zeros), ("descending", descending)]
}

fn order(c: &mut Criterion) {
    let inputs = inputs();
    let mut group = c.benchmark_group("order");
    group.throughput(Throughput::Elements(N as u64));
    for (name, values) in &inputs {
        group.bench_with_input(BenchmarkId::new("bottom_k 1 %", name), values, |b, values| {
            b.iter(|| bottom_k(black_box(values), N / 100, NanPolicy::Last, 1));
        });
        group.bench_with_input(BenchmarkId::new("argsort", name), values, |b, values| {
            b.iter(|| argsort(black_box(values), NanPolicy::Last));
        });
    }
    let usual = &inputs[0].1;
    let labels: Vec<i64> = (0..N as i64).map(|row| row * 7919 % 100).collect();
    group.bench_function("bottom_k_per_class 1 % of 100", |b| {
        b.iter(|| bottom_k_per_class(black_box(usual), &labels, 0.01, 100, NanPolicy::Last));
    });
    group.bench_function("ranks, histogram", |b| {
        b.iter(|| ranks(black_box(usual), RankMethod::Histogram, NanPolicy::Last));
    });
    group.finish();
}

fn ledger(c: &mut Criterion) {
    let (batch, losses) = (8192, losses(N));
    let positions: Vec<i64> = (0..batch).map(|at| (at as i64 * 104_729) % N as i64).collect();
    let mut ledger = match Ledger::new(N, 0.9) {
        Ok(ledger) => ledger,
        Err(error) => panic!("{error}"),
    };
    let mut group = c.benchmark_group("ledger");
    group.throughput(Throughput::Elements(batch as u64));
    group.bench_function("observe a batch", |b| {
        b.iter(|| ledger.observe(black_box(&positions), &losses[..batch]));
    });
    group.finish();
}

fn weights(c: &mut Criterion) {
    let (rows, columns) = (2048, 768);
    let bytes = |of: &[f32]| of.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let p = bytes(&losses(rows * columns));
    let f = bytes(&losses(rows * columns + 1)[1..]);
    let matrix = |bytes| match Matrix::strided(bytes, rows, columns, columns * 4, Dtype::F32) {
        Ok(matrix) => matrix,
        Err(error) => panic!("{error}"),
    };
    let (reference, tuned) = (matrix(&p), matrix(&f));
    let mut group = c.benchmark_group("weights");
    group.throughput(Throughput::Bytes((p.len() + f.len()) as u64));
    for columns in [false, true] {
        let options = Options { round_to: None, columns, threads: 1 };
        group.bench_function(format!("row_stats, columns {columns}"), |b| {
            b.iter(|| row_stats(black_box(&reference), &tuned, options));
        });
    }
    let mask = match Mask::new(1, 2, 1 << 15) {
        Ok(mask) => mask,
        Err(error) => panic!("{error}"),
    };
    let mut out = vec![0; p.len()];
    group.bench_function("mix", |b| b.iter(|| mix(black_box(&p), &f, &mut out, 4, mask, 0, 1)));
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    for group in [order, ledger, weights] {
        group(&mut criterion);
    }
    criterion.final_summary();
}
