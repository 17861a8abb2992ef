//! Gradient descent with momentum, as Keras's `SGD`.
//!
//! ```text
//! p <- p - lr decay p
//! m <- momentum m - lr g
//! p <- p + m                       plain
//! p <- p + momentum m - lr g       Nesterov
//! ```

use serde::{Deserialize, Serialize};

use super::blocks::{Block, for_each_block};
use super::checks::{check_fraction, check_non_negative};
use super::layout::ParameterSpec;
use crate::error::Result;
use crate::kernels::{Isa, Real};

/// Settings of gradient descent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sgd {
    /// Share of the last step that is kept, in `[0, 1)`; with 0 no moment is stored.
    pub momentum: f64,
    /// Whether the gradient is taken where the momentum leads.
    pub nesterov: bool,
    /// Factor of the parameter in its own step, for parameters that decay.
    pub weight_decay: f64,
}

impl Sgd {
    pub(super) fn validate(&self) -> Result<()> {
        check_fraction("momentum", self.momentum)?;
        check_non_negative("weight_decay", self.weight_decay)
    }

    /// `1 - lr decay` for each block's parameter.
    fn keep<R: Real>(&self, spec: &ParameterSpec, learning_rate: f64) -> R {
        R::from_f64(if spec.decay { 1.0 - learning_rate * self.weight_decay } else { 1.0 })
    }

    /// One step without momentum.
    pub(super) fn apply_plain<'a, R: Real>(
        &self,
        specs: &[ParameterSpec],
        blocks: impl Iterator<Item = Block<'a, R, 0>> + Send,
        learning_rate: f64,
        scale: f64,
    ) {
        let (rate, isa) = (R::from_f64(learning_rate * scale), Isa::fastest());
        for_each_block(blocks, |block| {
            let keep = self.keep::<R>(&specs[block.parameter], learning_rate);
            block.update(
                isa,
                #[inline(always)]
                |p, [], g| (p * keep - g * rate, []),
            );
        });
    }

    /// One step with momentum; the moment is `[m]`.
    pub(super) fn apply_momentum<'a, R: Real>(
        &self,
        specs: &[ParameterSpec],
        blocks: impl Iterator<Item = Block<'a, R, 1>> + Send,
        learning_rate: f64,
        scale: f64,
    ) {
        let rate = R::from_f64(learning_rate * scale);
        let (momentum, nesterov, isa) = (R::from_f64(self.momentum), self.nesterov, Isa::fastest());
        for_each_block(blocks, |block| {
            let keep = self.keep::<R>(&specs[block.parameter], learning_rate);
            block.update(
                isa,
                #[inline(always)]
                |p, [m], g| {
                    let move_down = g * rate;
                    let m = momentum * m - move_down;
                    let change = if nesterov { momentum * m - move_down } else { m };
                    (p * keep + change, [m])
                },
            );
        });
    }
}
