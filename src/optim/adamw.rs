//! Adam with decoupled weight decay (Loshchilov & Hutter 2019, <https://arxiv.org/abs/1711.05101>).
//!
//! With step `t = 1, 2, ...`, gradient `g`, parameter `p`:
//! ```text
//! m <- m + (1 - b1) (g - m)
//! v <- v + (1 - b2) (g^2 - v)
//! p <- p - lr (u + decay p)
//! u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon)     EpsilonRule::Corrected: optax, the paper
//! u = m sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v) + epsilon)   EpsilonRule::Uncorrected: Keras, TensorFlow
//! ```

use serde::{Deserialize, Serialize};

use super::blocks::{Block, for_each_block};
use super::checks::{check_fraction, check_non_negative, check_positive};
use super::layout::ParameterSpec;
use crate::error::Result;
use crate::kernels::{Isa, Real};

/// Which root epsilon is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EpsilonRule {
    /// The root of the second moment as stored: Keras, TensorFlow, the original BERT's `AdamWeightDecay`.
    Uncorrected,
    /// The root of the bias-corrected second moment: optax, PyTorch, the Sparse Mixer paper's code.
    Corrected,
}

/// Settings of AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamW {
    /// Decay of the first moment, in `[0, 1)`.
    pub beta_1: f64,
    /// Decay of the second moment, in `[0, 1)`.
    pub beta_2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Which root that is.
    pub epsilon_rule: EpsilonRule,
    /// Factor of the parameter in its own step, for parameters that decay.
    pub weight_decay: f64,
}

/// The constants of one step of Adam's moments and direction.
#[derive(Clone, Copy)]
pub(super) struct Moments<R> {
    /// Factor of the gradient (clipping, averaging).
    scale: R,
    one_minus_beta_1: R,
    one_minus_beta_2: R,
    first_factor: R,
    second_factor: R,
    epsilon: R,
}

impl<R: Real> Moments<R> {
    pub fn new(beta_1: f64, beta_2: f64, epsilon: f64, rule: EpsilonRule, step: u64, scale: f64) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let (first, second) = (correction(beta_1), correction(beta_2));
        let (first_factor, second_factor) = match rule {
            EpsilonRule::Uncorrected => (second.sqrt() / first, 1.0),
            EpsilonRule::Corrected => (1.0 / first, 1.0 / second),
        };
        Moments {
            scale: R::from_f64(scale),
            one_minus_beta_1: R::from_f64(1.0 - beta_1),
            one_minus_beta_2: R::from_f64(1.0 - beta_2),
            first_factor: R::from_f64(first_factor),
            second_factor: R::from_f64(second_factor),
            epsilon: R::from_f64(epsilon),
        }
    }

    /// Both moments, moved towards the gradient.
    #[inline(always)]
    pub fn advance(&self, m: R, v: R, gradient: R) -> (R, R) {
        let g = gradient * self.scale;
        (m + (g - m) * self.one_minus_beta_1, v + (g * g - v) * self.one_minus_beta_2)
    }

    /// The direction `u`.
    #[inline(always)]
    pub fn direction(&self, m: R, v: R) -> R {
        m * self.first_factor / ((v * self.second_factor).sqrt() + self.epsilon)
    }
}

impl AdamW {
    pub(super) fn validate(&self) -> Result<()> {
        check_fraction("beta_1", self.beta_1)?;
        check_fraction("beta_2", self.beta_2)?;
        // At 0, values whose gradient has always been 0, such as words that never occurred, would become 0 / 0.
        check_positive("epsilon", self.epsilon)?;
        check_non_negative("weight_decay", self.weight_decay)
    }

    /// One step over all blocks; moments are `[m, v]`.
    pub(super) fn apply<'a, R: Real>(
        &self,
        specs: &[ParameterSpec],
        blocks: impl Iterator<Item = Block<'a, R, 2>> + Send,
        step: u64,
        learning_rate: f64,
        scale: f64,
    ) {
        let moments =
            Moments::<R>::new(self.beta_1, self.beta_2, self.epsilon, self.epsilon_rule, step, scale);
        let (rate, isa) = (R::from_f64(learning_rate), Isa::fastest());
        for_each_block(blocks, |block| {
            let decay = if specs[block.parameter].decay { self.weight_decay } else { 0.0 };
            let keep = R::from_f64(1.0 - learning_rate * decay);
            block.update(
                isa,
                #[inline(always)]
                |p, [m, v], g| {
                    let (m, v) = moments.advance(m, v, g);
                    (p * keep - moments.direction(m, v) * rate, [m, v])
                },
            );
        });
    }
}
