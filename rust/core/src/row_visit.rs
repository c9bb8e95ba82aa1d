//! What is looked at in `LANES` values of two rows at a time.

use crate::load::{LANES, Load, as_bf16, as_f16};
use crate::row_stats::Row;

/// What is done with `LANES` values of both rows. A trait and no closure: a closure is compiled apart, without the
/// vector instructions of its surroundings.
pub(crate) trait Visitor {
    /// `at` is the column of the first. False when no more is wanted.
    fn visit(&mut self, at: usize, p: &[f32; LANES], f: &[f32; LANES]) -> bool;
}

/// Shows both rows, the end filled up with zeros.
#[inline(always)]
pub(crate) fn visit<R: Load, T: Load>(reference: &[u8], tuned: &[u8], visitor: &mut impl Visitor) {
    let references = reference.chunks_exact(LANES * R::SIZE);
    let tuneds = tuned.chunks_exact(LANES * T::SIZE);
    let (p_end, f_end) = (references.remainder(), tuneds.remainder());
    let mut at = 0;
    for (p, f) in references.zip(tuneds) {
        if !visitor.visit(at, &R::lanes(p), &T::lanes(f)) {
            return;
        }
        at += LANES;
    }
    if !f_end.is_empty() {
        let (mut p, mut f) = ([0; LANES * 4], [0; LANES * 4]);
        p[..p_end.len()].copy_from_slice(p_end);
        f[..f_end.len()].copy_from_slice(f_end);
        visitor.visit(at, &R::lanes(&p[..LANES * R::SIZE]), &T::lanes(&f[..LANES * T::SIZE]));
    }
}

/// How the lanes of a row are brought together.
pub(crate) trait Fold {
    /// The sum of the lanes, by halves.
    fn sum(lanes: &[f32; LANES]) -> f64;
    /// The largest of lanes that are zero or above.
    fn largest(lanes: &[f32; LANES]) -> f32;
    /// The sum of counts.
    fn count(lanes: &[u32; LANES]) -> u32;
}

/// For any processor.
pub(crate) struct Portable;

impl Fold for Portable {
    #[inline(always)]
    fn sum(lanes: &[f32; LANES]) -> f64 {
        let mut sums = lanes.map(f64::from);
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                sums[l] += sums[l + half];
            }
        }
        sums[0]
    }

    #[inline(always)]
    fn largest(lanes: &[f32; LANES]) -> f32 {
        lanes.iter().fold(0.0, |a, &b| if b > a { b } else { a })
    }

    #[inline(always)]
    fn count(lanes: &[u32; LANES]) -> u32 {
        lanes.iter().sum()
    }
}

#[derive(Default)]
pub(crate) struct Sums {
    delta_squared: [f32; LANES],
    delta_dot: [f32; LANES],
    reference_squared: [f32; LANES],
    delta_abs: [f32; LANES],
    delta_max: [f32; LANES],
    zeros: [u32; LANES],
}

impl Visitor for Sums {
    #[inline(always)]
    fn visit(&mut self, _: usize, p: &[f32; LANES], f: &[f32; LANES]) -> bool {
        for l in 0..LANES {
            let delta = f[l] - p[l];
            let size = delta.abs();
            // no mul_add: without FMA it is a call into libm, and with it other bits
            self.delta_squared[l] += delta * delta;
            self.delta_dot[l] += delta * p[l];
            self.reference_squared[l] += p[l] * p[l];
            self.delta_abs[l] += size;
            self.delta_max[l] = if size > self.delta_max[l] { size } else { self.delta_max[l] };
            self.zeros[l] += u32::from(delta == 0.0);
        }
        true
    }
}

impl Sums {
    /// Whether the largest difference of the row so far is in here.
    #[inline(always)]
    pub(crate) fn fold_into<F: Fold>(&self, row: &mut Row) -> bool {
        row.delta_squared += F::sum(&self.delta_squared);
        row.delta_dot += F::sum(&self.delta_dot);
        row.reference_squared += F::sum(&self.reference_squared);
        row.delta_abs += F::sum(&self.delta_abs);
        row.zeros += F::count(&self.zeros);
        let max = F::largest(&self.delta_max);
        let higher = max > row.delta_max;
        if higher {
            row.delta_max = max;
        }
        higher
    }
}

/// Looks for the first difference of a size.
pub(crate) struct Position {
    pub(crate) size: f32,
    pub(crate) found: usize,
}

impl Visitor for Position {
    #[inline(always)]
    fn visit(&mut self, at: usize, p: &[f32; LANES], f: &[f32; LANES]) -> bool {
        let mut hit = 0;
        for l in 0..LANES {
            hit |= u32::from((f[l] - p[l]).abs() == self.size);
        }
        if hit == 0 {
            return true;
        }
        self.found = at + (0..LANES).find(|&l| (f[l] - p[l]).abs() == self.size).unwrap_or_default();
        false
    }
}

/// Sums of `LANES` columns, in one line of the cache: a vector across two of them is read and written twice.
#[derive(Clone, Default)]
#[repr(align(64))]
pub(crate) struct Line(pub(crate) [f32; LANES]);

/// Adds a row to the columns.
pub(crate) struct Columns<'a> {
    pub(crate) sums: &'a mut [Line],
    pub(crate) squares: &'a mut [Line],
}

impl Visitor for Columns<'_> {
    #[inline(always)]
    fn visit(&mut self, at: usize, p: &[f32; LANES], f: &[f32; LANES]) -> bool {
        let (mut deltas, mut squares) = ([0.0; LANES], [0.0; LANES]);
        for l in 0..LANES {
            deltas[l] = f[l] - p[l];
            squares[l] = deltas[l] * deltas[l];
        }
        add(&mut self.sums[at / LANES].0, &deltas);
        add(&mut self.squares[at / LANES].0, &squares);
        true
    }
}

#[inline(always)]
fn add(sums: &mut [f32; LANES], lanes: &[f32; LANES]) {
    // by way of a copy: the compiler cannot see that the two sums of a column are apart
    let mut copy = *sums;
    for l in 0..LANES {
        copy[l] += lanes[l];
    }
    *sums = copy;
}

/// Rounds a row.
pub(crate) struct Rounded<'a, const HALF: bool> {
    pub(crate) to: &'a mut [u8],
}

impl<const HALF: bool> Visitor for Rounded<'_, HALF> {
    #[inline(always)]
    fn visit(&mut self, at: usize, p: &[f32; LANES], _: &[f32; LANES]) -> bool {
        let mut values = [0.0; LANES];
        for l in 0..LANES {
            values[l] = if HALF { as_f16(p[l]) } else { as_bf16(p[l]) };
        }
        let mut bytes = [0; LANES * 4];
        for l in 0..LANES {
            bytes[4 * l..4 * l + 4].copy_from_slice(&values[l].to_le_bytes());
        }
        self.to[4 * at..4 * (at + LANES)].copy_from_slice(&bytes);
        true
    }
}

/// Every value, for [`odd`].
#[derive(Default)]
pub(crate) struct Pairs(pub(crate) Vec<(f32, f32)>);

impl Visitor for Pairs {
    #[inline(always)]
    fn visit(&mut self, _: usize, p: &[f32; LANES], f: &[f32; LANES]) -> bool {
        for l in 0..LANES {
            self.0.push((p[l], f[l] - p[l]));
        }
        true
    }
}
