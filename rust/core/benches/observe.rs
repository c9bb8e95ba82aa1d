//! `cargo bench --package asepsis-core --bench observe -- [SAMPLES ...]`: a write for each loss as it comes, as the
//! ledger does it, beside writes that are held back and then made block by block.
//!
//! Positions are a random permutation, which is what a shuffled epoch is. All ways take turns, and are compared bit by
//! bit after the last; times are nanoseconds a loss of this thread on a processor (Linux; elsewhere of the clock), the
//! median of the turns.

use std::time::Instant;

use asepsis_core::Ledger;

/// Losses of a turn, of as many epochs as that takes.
const TURN: usize = 10_000_000;
const TURNS: usize = 5;
const BATCHES: [usize; 3] = [32, 1024, 65_536];
/// Losses held back, and the block they are sorted by: 2 MiB of them in blocks of 64 KiB of column, 8 MiB in blocks of
/// 512 KiB, 32 MiB in the same.
const WAYS: [(usize, u32); 3] = [(1 << 18, 14), (1 << 20, 17), (1 << 22, 17)];

/// A column that holds losses back until there are `most`, sorts them by `position >> shift` and writes them.
struct Blocked {
    losses: Vec<f32>,
    observed: Vec<u64>,
    /// Position and bits of a loss, in one word.
    held: Vec<u64>,
    sorted: Vec<u64>,
    most: usize,
    shift: u32,
}

impl Blocked {
    fn new(n: usize, (most, shift): (usize, u32)) -> Self {
        let (losses, observed) = (vec![f32::NAN; n], vec![0; n.div_ceil(64)]);
        Self { losses, observed, held: Vec::with_capacity(most), sorted: vec![0; most], most, shift }
    }

    fn observe(&mut self, positions: &[i64], losses: &[f32]) {
        let n = self.losses.len();
        assert!(positions.iter().all(|&position| usize::try_from(position).is_ok_and(|row| row < n)));
        if self.held.len() + positions.len() > self.most {
            self.write();
        }
        let words = positions.iter().zip(losses).map(|(&at, x)| (at as u64) << 32 | u64::from(x.to_bits()));
        self.held.extend(words);
    }

    fn write(&mut self) {
        let block = |word: u64| (word >> (32 + self.shift)) as usize;
        let mut starts = vec![0; (self.losses.len() >> self.shift) + 2];
        self.held.iter().for_each(|&word| starts[block(word) + 1] += 1);
        (1..starts.len()).for_each(|at| starts[at] += starts[at - 1]);
        // stable, so that the last write to a position stays the last
        for &word in &self.held {
            let start = &mut starts[block(word)];
            self.sorted[*start] = word;
            *start += 1;
        }
        for &word in &self.sorted[..self.held.len()] {
            let row = (word >> 32) as usize;
            self.losses[row] = f32::from_bits(word as u32);
            self.observed[row / 64] |= 1 << (row % 64);
        }
        self.held.clear();
    }
}

/// Nanoseconds that this thread had a processor.
fn clock(start: Instant) -> f64 {
    let on_processor = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = on_processor.and_then(|line| line.split(' ').next()?.parse().ok());
    nanoseconds.unwrap_or_else(|| start.elapsed().as_nanos() as f64)
}

fn permutation(n: usize) -> Vec<i64> {
    let mut state = 88_172_645_463_325_252u64;
    let mut positions: Vec<i64> = (0..n as i64).collect();
    for at in (1..n).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        positions.swap(at, (state % (at as u64 + 1)) as usize);
    }
    positions
}

fn same(ledger: &Ledger, blocked: &Blocked) {
    let open = ledger.state().expect("the column was just written").open.expect("and is open");
    let bits = |losses: &[f32]| losses.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(&open.losses) == bits(&blocked.losses) && open.observed == blocked.observed);
}

fn measure(n: usize) {
    let positions = permutation(n);
    let part = n.min(TURN);
    let losses: Vec<f32> = (0..part).map(|at| at as f32).collect();
    for batch in BATCHES {
        let start = Instant::now();
        let mut ledger = Ledger::new(n, 0.9).expect("room for the averages");
        let mut columns: Vec<Blocked> = WAYS.iter().map(|&way| Blocked::new(n, way)).collect();
        let mut times = vec![vec![]; 1 + WAYS.len()];
        for turn in 0..=TURNS {
            let from = turn * part % (n - part + 1);
            let epochs = || (0..TURN / part).map(|_| &positions[from..from + part]);
            let batches = || epochs().flat_map(|epoch| epoch.chunks(batch).zip(losses.chunks(batch)));
            for (way, times) in times.iter_mut().enumerate() {
                let before = clock(start);
                if way == 0 {
                    batches().for_each(|(positions, losses)| {
                        ledger.observe(positions, losses).expect("positions in range");
                    });
                } else {
                    let column = &mut columns[way - 1];
                    batches().for_each(|(positions, losses)| column.observe(positions, losses));
                    column.write();
                }
                // the first turn touches the memory
                if turn > 0 {
                    times.push((clock(start) - before) / (TURN / part * part) as f64);
                }
            }
        }
        columns.iter().for_each(|column| same(&ledger, column));
        let medians = times.iter_mut().map(|times| {
            times.sort_by(f64::total_cmp);
            format!("{:.1}", times[times.len() / 2])
        });
        println!("| {n} | {batch} | {} |", medians.collect::<Vec<_>>().join(" | "));
    }
}

fn main() {
    // cargo hands over `--bench`
    let mut sizes: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![1_000_000, 10_000_000, 50_000_000];
    }
    println!("| samples | batch | each | 2 MiB held | 8 MiB held | 32 MiB held |\n{}|", "|---".repeat(6));
    sizes.into_iter().for_each(measure);
}
