//! Layer normalisation over the last axis: `(x - mean) / sqrt(var + epsilon) * gamma + beta`.
//!
//! Source: `tf_keras.layers.LayerNormalization` as the reference network configures it.

use crate::kernels::{Isa, Real, layer_norm, layer_norm_backward};
use crate::params::{Gradients, Role, VectorKey, WeightList, Weights};
use crate::sys::{Work, timed};

/// The reference network's epsilon, not the Keras default.
pub const EPSILON: f64 = 1e-12;

/// Gamma and beta, `[H]` each.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    gamma: VectorKey,
    beta: VectorKey,
    size: usize,
    epsilon: f64,
}

impl LayerNorm {
    /// Declares gamma and beta of `size` under `name`; `epsilon` is added to the variance.
    pub fn new(list: &mut WeightList, name: &str, size: usize, epsilon: f64) -> Self {
        LayerNorm {
            gamma: list.vector(format!("{name}/gamma"), Role::Scale, &[size]),
            beta: list.vector(format!("{name}/beta"), Role::Bias, &[size]),
            size,
            epsilon,
        }
    }

    /// Whether `gradients` are to have those of gamma or beta.
    pub fn is_requested<R: Real>(self, gradients: &Gradients<R>) -> bool {
        gradients.requests(self.gamma) || gradients.requests(self.beta)
    }

    /// `H`
    pub fn size(self) -> usize {
        self.size
    }

    /// Normalises rows of `x` into `out`; `stats` (`[rows, 2]`) receives what backward needs.
    pub fn forward<R: Real>(
        self,
        isa: Isa,
        weights: &Weights<R>,
        x: &[R],
        out: &mut [R],
        stats: Option<&mut [R]>,
    ) {
        let _time = timed(Work::Norm);
        layer_norm(isa, x, weights.vector(self.gamma), weights.vector(self.beta), self.epsilon, out, stats);
    }

    /// Backward of [`LayerNorm::forward`] for rows of `x`, whose `stats` it left: writes `dx`, adds to the gradients.
    pub fn backward<R: Real>(
        self,
        isa: Isa,
        weights: &Weights<R>,
        x: &[R],
        stats: &[R],
        dy: &[R],
        dx: &mut [R],
        gradients: &mut Gradients<R>,
    ) {
        let _time = timed(Work::Norm);
        let mut sums = vec![R::ZERO; 2 * self.size];
        let (dgamma, dbeta) = sums.split_at_mut(self.size);
        layer_norm_backward(isa, dy, x, stats, weights.vector(self.gamma), dx, dgamma, dbeta);
        self.add_partials(&sums, gradients);
    }

    /// The same for a block of rows: adds `[dgamma | dbeta]` to `partial` (`2 H`) instead. `scratch` holds
    /// `x.len() + 2 * rows` values, the first of which become the normalised rows.
    pub fn backward_rows<R: Real>(
        self,
        isa: Isa,
        weights: &Weights<R>,
        x: &[R],
        dy: &[R],
        dx: &mut [R],
        partial: &mut [R],
        scratch: &mut [R],
    ) {
        let _time = timed(Work::Norm);
        let (normal, stats) = scratch.split_at_mut(x.len());
        let stats = &mut stats[..2 * x.len() / self.size];
        self.forward(isa, weights, x, normal, Some(stats));
        let (dgamma, dbeta) = partial.split_at_mut(self.size);
        layer_norm_backward(isa, dy, x, stats, weights.vector(self.gamma), dx, dgamma, dbeta);
    }

    /// Adds the partial sums of row blocks, in order, to the gradients.
    pub fn add_partials<R: Real>(self, partials: &[R], gradients: &mut Gradients<R>) {
        let _time = timed(Work::Norm);
        for (key, first) in [(self.gamma, 0), (self.beta, self.size)] {
            let Some(gradient) = gradients.if_requested(key) else { continue };
            let sums = gradient.row_major();
            for partial in partials.chunks_exact(2 * self.size) {
                sums.iter_mut().zip(&partial[first..]).for_each(|(sum, &part)| *sum += part);
            }
        }
    }
}
