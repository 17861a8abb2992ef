//! LAMB: Adam's direction, scaled per tensor by a trust ratio (You et al. 2020, <https://arxiv.org/abs/1904.00962>),
//! as `official.modeling.optimization.lamb.LAMB`.
//!
//! ```text
//! u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon) + decay p
//! p <- p - lr ratio u      ratio = |p| / |u|, 1 if either norm is 0 or the tensor does not adapt
//! ```

use serde::{Deserialize, Serialize};

use super::adamw::{EpsilonRule, Moments};
use super::blocks::{BlockSums, for_each_block, split_blocks};
use super::checks::{check_fraction, check_non_negative, check_positive};
use super::clip::sum_of_squares;
use super::layout::{ParameterSpec, Update};
use crate::error::Result;
use crate::kernels::{GradientRows, Isa, PANEL, Real, update_weights};

/// Directions that are computed at a time: they stay in the L1 cache until they are added up.
const AT_ONCE: usize = 32 * PANEL;

/// Settings of LAMB.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lamb {
    /// Decay of the first moment, in `[0, 1)`.
    pub beta_1: f64,
    /// Decay of the second moment, in `[0, 1)`.
    pub beta_2: f64,
    /// Added to the root of the corrected second moment.
    pub epsilon: f64,
    /// Factor of the parameter in its own direction, for parameters that decay.
    pub weight_decay: f64,
}

impl Lamb {
    pub(super) fn validate(&self) -> Result<()> {
        check_fraction("beta_1", self.beta_1)?;
        check_fraction("beta_2", self.beta_2)?;
        // At 0, values whose gradient has always been 0, such as words that never occurred, would become 0 / 0.
        check_positive("epsilon", self.epsilon)?;
        check_non_negative("weight_decay", self.weight_decay)
    }

    /// One step; moments are `[m, v]`.
    ///
    /// The ratio needs the norm of the whole tensor's direction first. The direction is computed twice rather than
    /// kept, which would take a third moment's memory.
    pub(super) fn apply<R: Real>(
        &self,
        specs: &[ParameterSpec],
        updates: &mut [Update<'_, R>],
        slots: &mut [Vec<Vec<R>>],
        sums: &mut BlockSums,
        step: u64,
        learning_rate: f64,
        scale: f64,
    ) {
        let moments =
            Moments::<R>::new(self.beta_1, self.beta_2, self.epsilon, EpsilonRule::Corrected, step, scale);
        let decay_of =
            |parameter: usize| R::from_f64(if specs[parameter].decay { self.weight_decay } else { 0.0 });
        let isa = Isa::fastest();
        let squares = sums.of(split_blocks(specs, updates, slots), |block| {
            let decay = decay_of(block.parameter);
            let mut sums = [0.0; 2];
            block.for_each_run(|values, [m, v], gradient| {
                sums[0] += sum_of_squares(values);
                let (mut directions, mut buffer) = (0.0, [R::ZERO; AT_ONCE]);
                let pieces = values.chunks(AT_ONCE).zip(gradient.chunks(AT_ONCE));
                for ((p, g), (m, v)) in pieces.zip(m.chunks_mut(AT_ONCE).zip(v.chunks_mut(AT_ONCE))) {
                    let u = &mut buffer[..p.len()];
                    u.copy_from_slice(p);
                    let gradient = GradientRows { values: g, stride: PANEL, width: PANEL };
                    update_weights(
                        isa,
                        u,
                        [m, v],
                        Some(gradient),
                        None,
                        #[inline(always)]
                        |p, [m, v], g| {
                            let (m, v) = moments.advance(m, v, g);
                            (moments.direction(m, v) + decay * p, [m, v])
                        },
                    );
                    for u in u {
                        directions += u.to_f64() * u.to_f64();
                    }
                }
                sums[1] += directions;
            });
            sums
        });
        for_each_block(split_blocks(specs, updates, slots), |block| {
            let decay = decay_of(block.parameter);
            let [values_squared, direction_squared] = squares[block.parameter];
            let adapts = specs[block.parameter].adapt && values_squared > 0.0 && direction_squared > 0.0;
            let ratio = if adapts { (values_squared / direction_squared).sqrt() } else { 1.0 };
            let rate = R::from_f64(learning_rate * ratio);
            block.update_without_gradient(
                isa,
                #[inline(always)]
                |p, [m, v], _| (p - (moments.direction(m, v) + decay * p) * rate, [m, v]),
            );
        });
    }
}
