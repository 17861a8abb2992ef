//! What several test files share: a small set of parameters in every layout, and data from a formula.

mod against_keras;
mod low_precision;
mod properties;

use super::*;
use crate::kernels::Real;

/// Numbers in `[-1, 1)` from integer arithmetic; `tests/reference/make_optimizers.py` has the same.
pub(super) fn values<R: Real>(seed: u64, len: usize) -> Vec<R> {
    (0..len as u64)
        .map(|i| {
            let state = (i + 1 + 1000 * seed).wrapping_mul(2_654_435_761);
            R::from_f64((state % 65536) as f64 / 32768.0 - 1.0)
        })
        .collect()
}

pub(super) fn adamw() -> AdamW {
    AdamW {
        beta_1: 0.875,
        beta_2: 0.984375,
        epsilon: 2f64.powi(-22),
        epsilon_rule: EpsilonRule::Uncorrected,
        weight_decay: 0.25,
    }
}

pub(super) fn lamb() -> Lamb {
    Lamb { beta_1: 0.875, beta_2: 0.984375, epsilon: 2f64.powi(-22), weight_decay: 0.25 }
}

pub(super) fn sgd(momentum: f64, nesterov: bool) -> Sgd {
    Sgd { momentum, nesterov, weight_decay: 0.25 }
}

pub(super) fn adafactor() -> Adafactor {
    Adafactor {
        beta_2_decay: -0.8,
        epsilon_1: 1e-30,
        epsilon_2: 1e-3,
        clip_threshold: 1.0,
        relative_step: true,
        weight_decay: 0.25,
    }
}

pub(super) fn all_rules() -> Vec<Rule> {
    vec![
        Rule::Adamw(adamw()),
        Rule::Lamb(lamb()),
        Rule::Sgd(sgd(0.0, false)),
        Rule::Sgd(sgd(0.75, true)),
        Rule::Adafactor(adafactor()),
    ]
}

/// Parameters in their storage, and an optimiser for them.
pub(super) struct Model<R> {
    pub optimizer: Optimizer<R>,
    pub storage: Vec<Vec<R>>,
}

impl<R: Real> Model<R> {
    pub fn new(rule: Rule, specs: Vec<ParameterSpec>) -> Self {
        let storage = specs
            .iter()
            .enumerate()
            .map(|(i, spec)| spec.layout.pack(&spec.shape, &values(i as u64, spec.len())))
            .collect();
        Model { optimizer: Optimizer::new(rule, specs).expect("valid settings"), storage }
    }

    pub fn apply(&mut self, gradients: &[Gradient<'_, R>], how: Step) -> crate::Result<Option<f64>> {
        let mut updates: Vec<_> = self
            .storage
            .iter_mut()
            .zip(gradients)
            .map(|(values, &gradient)| Update {
                values: vec![values],
                low_precision: Vec::new(),
                gradient,
                versions: None,
            })
            .collect();
        self.optimizer.apply(&mut updates, how)
    }

    /// Parameter `i`, row-major.
    pub fn parameter(&self, i: usize) -> Vec<R> {
        let mut values = Vec::new();
        let collect = |piece: &[R]| {
            values.extend_from_slice(piece);
            Ok(())
        };
        self.optimizer.specs()[i].layout.try_for_each_piece(&self.storage[i], collect).unwrap();
        values
    }
}

pub(super) fn spec(name: &str, shape: &[usize], layout: Layout) -> ParameterSpec {
    let plain = ["layer_norm", "bias"].iter().all(|part| !name.contains(part));
    ParameterSpec {
        name: name.into(),
        shape: shape.to_vec(),
        layout,
        decay: plain,
        adapt: plain,
        low_precision: false,
    }
}

pub(super) fn step(learning_rate: f64) -> Step {
    Step { learning_rate, clip_norm: None, gradient_scale: 1.0 }
}
