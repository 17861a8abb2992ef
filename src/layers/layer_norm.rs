//! Layer normalisation over the last axis: `(x - mean) / sqrt(var + 1e-12) * gamma + beta`.
//!
//! Source: `tf_keras.layers.LayerNormalization` as the reference network configures it. `docs/derivations` has the
//! gradient.

use crate::error::Result;
use crate::kernels::{Isa, Real, layer_norm, layer_norm_backward};
use crate::params::{Loader, Param, ParamMut};

/// The reference network's, not the Keras default.
pub(crate) const EPSILON: f64 = 1e-12;

/// Gamma and beta, `[H]` each.
#[derive(Clone, Debug)]
pub struct LayerNorm<R> {
    /// Scale.
    pub gamma: Vec<R>,
    /// Offset.
    pub beta: Vec<R>,
}

impl<R: Real> LayerNorm<R> {
    /// Takes gamma and beta of `size`.
    pub fn load(loader: &mut Loader<'_, R>, size: usize) -> Result<Self> {
        Ok(LayerNorm { gamma: loader.vector(size)?, beta: loader.vector(size)? })
    }

    /// The weights.
    pub fn params(&self) -> [Param<'_, R>; 2] {
        [Param::vector(&self.gamma), Param::vector(&self.beta)]
    }

    /// The weights, to be changed.
    pub fn params_mut(&mut self) -> [ParamMut<'_, R>; 2] {
        [ParamMut::vector(&mut self.gamma), ParamMut::vector(&mut self.beta)]
    }

    /// Normalises rows of `x` into `out`; `stats` (`[rows, 2]`) receives what backward needs.
    pub fn forward(&self, isa: Isa, x: &[R], out: &mut [R], stats: Option<&mut [R]>) {
        layer_norm(isa, x, &self.gamma, &self.beta, EPSILON, out, stats);
    }

    /// Undoes [`LayerNorm::forward`] for rows of `x`: writes `dx`, adds `[dgamma | dbeta]` to `partial` (`2 H`).
    /// `scratch` holds `x.len() + 2 * rows` values, the first of which become the normalised rows.
    pub fn backward_rows(
        &self,
        isa: Isa,
        x: &[R],
        dy: &[R],
        dx: &mut [R],
        partial: &mut [R],
        scratch: &mut [R],
    ) {
        let (normal, stats) = scratch.split_at_mut(x.len());
        let stats = &mut stats[..2 * x.len() / self.gamma.len()];
        self.forward(isa, x, normal, Some(stats));
        let (dgamma, dbeta) = partial.split_at_mut(self.gamma.len());
        layer_norm_backward(isa, dy, x, stats, &self.gamma, dx, dgamma, dbeta);
    }

    /// Adds the partial sums of row blocks, in order, to the gradients of gamma and beta.
    pub fn add_partials(&self, partials: &[R], grads: &mut [Vec<R>]) {
        let n = self.gamma.len();
        for partial in partials.chunks_exact(2 * n) {
            for (grad, partial) in grads.iter_mut().zip(partial.chunks_exact(n)) {
                grad.iter_mut().zip(partial).for_each(|(g, p)| *g += *p);
            }
        }
    }
}
