//! Dense feed-forward: `activation(x W1 + b1) W2 + b2`, `[rows, H] -> [rows, H]`, inner width `F`.
//!
//! The inner activations are made and used up a slice of `F` at a time, so that they never leave the second-level
//! cache. Source: `TransformerScaffold`'s intermediate and output layers; the experts of `FeedForwardExperts`.

use crate::error::Result;
use crate::kernels::{Init, Isa, LhsBuffer, PackedMatrix, Real, matmul, prepare_lhs};
use crate::layers::Activation;
use crate::params::{Loader, Param, ParamMut, Spec};

/// Inner columns made at a time; a multiple of every storage type's row granularity.
const SLICE: usize = 512;

/// Both kernels and biases.
#[derive(Clone, Debug)]
pub struct FeedForward<R> {
    /// `[H, F]`
    pub intermediate: PackedMatrix<R>,
    /// `[F]`
    pub intermediate_bias: Vec<R>,
    /// `[F, H]`
    pub output: PackedMatrix<R>,
    /// `[H]`
    pub output_bias: Vec<R>,
}

/// The weights of the dense layer of a block.
pub fn specs(prefix: &str, hidden: usize, inner: usize) -> [Spec; 4] {
    [
        Spec::kernel(format!("{prefix}/intermediate/kernel"), &[hidden, inner]),
        Spec::bias(format!("{prefix}/intermediate/bias"), &[inner]),
        Spec::kernel(format!("{prefix}/output/kernel"), &[inner, hidden]),
        Spec::bias(format!("{prefix}/output/bias"), &[hidden]),
    ]
}

impl<R: Real> FeedForward<R> {
    /// Takes the weights in the order of [`specs`].
    pub fn load(loader: &mut Loader<'_, R>, hidden: usize, inner: usize) -> Result<Self> {
        Ok(FeedForward {
            intermediate: loader.matrix(hidden, inner)?,
            intermediate_bias: loader.vector(inner)?,
            output: loader.matrix(inner, hidden)?,
            output_bias: loader.vector(hidden)?,
        })
    }

    /// The weights in the order of [`specs`].
    pub fn params(&self) -> [Param<'_, R>; 4] {
        [
            Param::matrix(&self.intermediate),
            Param::vector(&self.intermediate_bias),
            Param::matrix(&self.output),
            Param::vector(&self.output_bias),
        ]
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> [ParamMut<'_, R>; 4] {
        [
            ParamMut::matrix(&mut self.intermediate),
            ParamMut::vector(&mut self.intermediate_bias),
            ParamMut::matrix(&mut self.output),
            ParamMut::vector(&mut self.output_bias),
        ]
    }

    /// Inner columns made at a time: all for an activation that needs whole rows.
    fn slice_len(&self, activation: &Activation<R>) -> usize {
        if activation.is_elementwise() { SLICE.min(self.intermediate.n()) } else { self.intermediate.n() }
    }

    /// Scratch values that [`FeedForward::forward`] needs for `rows` rows.
    pub fn scratch_len(&self, activation: &Activation<R>, rows: usize) -> usize {
        rows * self.slice_len(activation)
    }

    /// `out = feed-forward of x`, both `[rows, H]`; `inner` is scratch of [`FeedForward::scratch_len`].
    ///
    /// `activation` must not be a custom one; see [`FeedForward::forward_intermediate`].
    pub fn forward(
        &self,
        isa: Isa,
        activation: &Activation<R>,
        x: &[R],
        rows: usize,
        out: &mut [R],
        inner: &mut [R],
        lhs: &mut [LhsBuffer; 2],
    ) {
        let (hidden, width) = (self.intermediate.k(), self.intermediate.n());
        let slice = self.slice_len(activation);
        let [lhs, inner_lhs] = lhs;
        let x = prepare_lhs(isa, x, rows, hidden, hidden, self.intermediate.dtype(), lhs);
        for first in (0..width).step_by(slice) {
            let cols = first..(first + slice).min(width);
            let len = cols.len();
            let inner = &mut inner[..rows * len];
            // 1. a = x W1 + b1
            let bias = Init::Bias(&self.intermediate_bias);
            matmul(isa, rows, x, self.intermediate.view(), cols.clone(), inner, len, bias);
            // 2. activation, which cannot fail unless custom
            let _ = activation.forward(isa, inner, len);
            // 3. out += activation(a) W2
            let inner = prepare_lhs(isa, inner, rows, len, len, self.output.dtype(), inner_lhs);
            let init = if first == 0 { Init::Bias(&self.output_bias) } else { Init::Accumulate };
            let kernel = self.output.view().k_range(cols);
            matmul(isa, rows, inner, kernel, 0..hidden, out, hidden, init);
        }
    }

    /// `pre = x W1 + b1`, `[rows, F]`: the first half, for callers that apply the activation themselves.
    pub fn forward_intermediate(&self, isa: Isa, x: &[R], rows: usize, pre: &mut [R], lhs: &mut LhsBuffer) {
        let (hidden, width) = (self.intermediate.k(), self.intermediate.n());
        let x = prepare_lhs(isa, x, rows, hidden, hidden, self.intermediate.dtype(), lhs);
        let bias = Init::Bias(&self.intermediate_bias);
        matmul(isa, rows, x, self.intermediate.view(), 0..width, pre, width, bias);
    }

    /// `out = inner W2 + b2`: the second half. Sums in the same slices as [`FeedForward::forward`].
    pub fn forward_output(&self, isa: Isa, inner: &[R], rows: usize, out: &mut [R], lhs: &mut LhsBuffer) {
        let (hidden, width) = (self.output.n(), self.output.k());
        for first in (0..width).step_by(SLICE) {
            let cols = first..(first + SLICE).min(width);
            let slice = prepare_lhs(isa, &inner[first..], rows, cols.len(), width, self.output.dtype(), lhs);
            let init = if first == 0 { Init::Bias(&self.output_bias) } else { Init::Accumulate };
            matmul(isa, rows, slice, self.output.view().k_range(cols), 0..hidden, out, hidden, init);
        }
    }
}
