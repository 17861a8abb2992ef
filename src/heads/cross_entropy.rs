//! Softmax cross entropy of few classes: `loss = sum_r w_r (log sum_j exp(z_rj) - z_r,label) / norm`.

use crate::error::{Error, Result};
use crate::kernels::{Isa, Real, log_sum_exp};

/// Sums over rows; divide by `weight` for means.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Weighted cross entropies.
    pub loss: f64,
    /// Weights.
    pub weight: f64,
    /// Weights of the rows whose largest logit (the first of equals) is the label's.
    pub correct: f64,
}

/// Checks one label and weight per row: `0 <= label < classes` where the weight is not zero.
pub(super) fn check_labels<R: Real>(
    labels: &[i64],
    weights: &[R],
    rows: usize,
    classes: usize,
) -> Result<()> {
    for (argument, len) in [("labels", labels.len()), ("label_weights", weights.len())] {
        if len != rows {
            return Err(Error::value(argument, format!("got {len} values, expected {rows}")));
        }
    }
    for (row, (&label, &weight)) in labels.iter().zip(weights).enumerate() {
        if !weight.is_finite() || weight < R::ZERO {
            let message = format!("got {weight:?} in row {row}, expected finite values, at least 0");
            return Err(Error::value("label_weights", message));
        }
        if weight > R::ZERO && !(0..classes as i64).contains(&label) {
            let message = format!("got {label} in row {row}, expected 0 <= label < {classes}");
            return Err(Error::value("labels", message));
        }
    }
    Ok(())
}

/// Sums over the rows of `logits` (`[rows, classes]`), which become the gradient of `scale` times the loss sum.
///
/// Rows of weight 0 count for nothing, whatever their label.
pub fn cross_entropy<R: Real>(
    isa: Isa,
    logits: &mut [R],
    classes: usize,
    labels: &[i64],
    weights: &[R],
    scale: f64,
) -> Result<LossSums> {
    check_labels(labels, weights, logits.len() / classes, classes)?;
    let mut sums = LossSums::default();
    for ((row, &label), &weight) in logits.chunks_exact_mut(classes).zip(labels).zip(weights) {
        if weight == R::ZERO {
            row.fill(R::ZERO);
            continue;
        }
        let label = label as usize;
        let mut normaliser = [R::ZERO];
        log_sum_exp(isa, row, classes, &mut normaliser);
        let is_correct = first_largest(row) == label;
        let weight = weight.to_f64();
        sums.loss += weight * (normaliser[0] - row[label]).to_f64();
        sums.weight += weight;
        sums.correct += if is_correct { weight } else { 0.0 };
        let factor = R::from_f64(weight * scale);
        for z in row.iter_mut() {
            *z = (*z - normaliser[0]).exp() * factor;
        }
        row[label] -= factor;
    }
    Ok(sums)
}

/// Index of the largest value, the first of equals.
pub(super) fn first_largest<R: Real>(row: &[R]) -> usize {
    let mut best = 0;
    for (i, &x) in row.iter().enumerate() {
        if x > row[best] {
            best = i;
        }
    }
    best
}
