//! From a sample's losses over the epochs to one score.

use crate::column::Column;
use crate::{Error, Result};

/// How a trajectory becomes a score. For every reducer **lower is more suspicious**.
///
/// A score is taken over the epochs in which the sample was observed, in `f64`, and is NaN for a sample that never was.
/// A NaN loss makes the score NaN, except that it ranks last for `MeanRank` and `RankEma` and is not below any threshold.
/// Infinite losses follow IEEE arithmetic: they carry into the score, opposite ones cancel to NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reducer {
    /// The most recent loss.
    Last,
    /// Exponential moving average of the loss, started at the first one.
    Ema,
    /// Mean loss.
    Mean,
    /// Mean of the normalized average rank among the samples observed in the same epoch, in `(0, 1)`.
    MeanRank,
    /// Exponential moving average of that rank.
    RankEma,
    /// Area under the loss curve over the epoch index (trapezoids between observed epochs) divided by its width, so
    /// that samples seen over fewer epochs compare; the loss itself when there is one.
    AucLoss,
    /// Index of the first epoch whose loss is below the threshold, the number of epochs if there is none.
    FirstBelow(f32),
    /// Last loss minus first: how far it rose. What was learned fast is far below zero.
    Drop,
    /// Minus the mean of `1 / (1 - exp(-loss))`, with losses below 1e-6 taken as 1e-6: SEEP's training dynamics.
    Seep,
}

const NAMES: &str = "last, ema, mean, mean_rank, rank_ema, auc_loss, first_below, drop, seep";

impl Reducer {
    /// The reducer of a name; `first_below` needs a threshold and no other takes one.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownName`], and [`Error::OutOfBounds`] when the threshold is missing, NaN or superfluous.
    pub fn from_name(name: &str, threshold: Option<f32>) -> Result<Self> {
        let reducer = match name {
            "last" => Self::Last,
            "ema" => Self::Ema,
            "mean" => Self::Mean,
            "mean_rank" => Self::MeanRank,
            "rank_ema" => Self::RankEma,
            "auc_loss" => Self::AucLoss,
            "first_below" => Self::FirstBelow(threshold.unwrap_or(f32::NAN)),
            "drop" => Self::Drop,
            "seep" => Self::Seep,
            _ => {
                return Err(Error::UnknownName { name: "by", got: name.to_owned(), wanted: NAMES });
            }
        };
        match (reducer, threshold) {
            (Self::FirstBelow(below), _) if below.is_nan() => Err(Error::OutOfBounds {
                name: "threshold",
                got: f64::NAN,
                wanted: "a number for first_below",
            }),
            (Self::FirstBelow(_), _) | (_, None) => Ok(reducer),
            (_, Some(got)) => Err(Error::OutOfBounds {
                name: "threshold",
                got: f64::from(got),
                wanted: "left out, only first_below takes one",
            }),
        }
    }
}

/// The losses of one sample over the closed epochs.
#[derive(Clone, Copy)]
pub(crate) struct Trajectory<'a> {
    pub(crate) columns: &'a [Column],
    pub(crate) row: usize,
}

impl<'a> Trajectory<'a> {
    /// `(epoch, loss)` of the epochs that observed the sample.
    fn points(self) -> impl DoubleEndedIterator<Item = (usize, f64)> + 'a {
        let columns = self.columns.iter().enumerate();
        columns.filter_map(move |(epoch, column)| Some((epoch, f64::from(column.get(self.row)?))))
    }

    fn losses(self) -> impl DoubleEndedIterator<Item = f64> + 'a {
        self.points().map(|(_, loss)| loss)
    }

    pub(crate) fn last(self) -> f64 {
        self.losses().next_back().unwrap_or(f64::NAN)
    }

    pub(crate) fn mean(self) -> f64 {
        mean(self.losses())
    }

    pub(crate) fn mean_height(self) -> f64 {
        let mut points = self.points();
        let Some(start) = points.next() else { return f64::NAN };
        let (mut left, mut area) = (start, 0.0);
        for right in points {
            area += (right.0 - left.0) as f64 * (left.1 + right.1) / 2.0;
            left = right;
        }
        if left.0 == start.0 { start.1 } else { area / (left.0 - start.0) as f64 }
    }

    pub(crate) fn first_below(self, threshold: f32) -> f64 {
        let mut points = self.points().peekable();
        if points.peek().is_none() {
            return f64::NAN;
        }
        let found = points.find(|&(_, loss)| loss < f64::from(threshold));
        found.map_or(self.columns.len(), |(epoch, _)| epoch) as f64
    }

    pub(crate) fn rise(self) -> f64 {
        self.last() - self.losses().next().unwrap_or(f64::NAN)
    }

    pub(crate) fn seep(self) -> f64 {
        -mean(self.losses().map(inverse_error))
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
    sum / n
}

/// `1 / (1 - p)` of the probability `p = exp(-loss)`.
fn inverse_error(loss: f64) -> f64 {
    // not f64::max, which would turn NaN into the clip
    let loss = if loss < 1e-6 { 1e-6 } else { loss };
    -1.0 / (-loss).exp_m1()
}
