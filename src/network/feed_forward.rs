//! Dense feed-forward: `activation(x W1 + b1) W2 + b2`, `[rows, H] -> [rows, H]`, inner width `F`.
//!
//! The inner activations are made and used up a slice of `F` at a time, so that they never leave the second-level
//! cache. Source: `TransformerScaffold`'s intermediate and output layers; the experts of `FeedForwardExperts`.

use std::ops::Range;

use crate::error::Result;
use crate::kernels::{Init, Isa, LhsBuffer, PackedMatrix, Real, activate_lhs, matmul, prepare_lhs};
use crate::layers::{Activation, bias_gradient, kernel_gradient};
use crate::params::{Loader, Param, ParamMut, Spec};

use super::pass::{Pass, RowBlock};

/// Inner columns made at a time; a multiple of every storage type's row granularity.
pub(super) const SLICE: usize = 512;

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

    /// `out = feed-forward of x`, both `[rows, H]`; `inner` is scratch of [`FeedForward::scratch_len`]. `pre`, when given
    /// (`[rows, F]`), receives what the activation is applied to.
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
        mut pre: Option<&mut [R]>,
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
            if let Some(pre) = pre.as_deref_mut() {
                copy_columns(inner, len, 0..len, pre, width, cols.clone());
            }
            // 2. activation, which cannot fail unless custom
            let dtype = self.output.dtype();
            let inner = if let Activation::Elementwise(function) = activation {
                activate_lhs(isa, *function, inner, len, dtype, inner_lhs)
            } else {
                let _ = activation.forward(isa, inner, len);
                prepare_lhs(isa, inner, rows, len, len, dtype, inner_lhs)
            };
            // 3. out += activation(a) W2
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

    /// Undoes the layer for `rows` rows: writes `dx`, adds to the gradients of kernel and bias of both products.
    ///
    /// `x` is what `forward` read, `pre` what it kept, `dy` the gradient of its result.
    pub fn backward(
        &self,
        pass: &Pass<'_, R>,
        activation: &Activation<R>,
        rows: usize,
        x: &[R],
        pre: &[R],
        dy: &[R],
        dx: &mut [R],
        grads: [&mut [R]; 4],
    ) -> Result<()> {
        let (context, isa) = (pass.context, pass.context.isa);
        let (hidden, width) = (self.intermediate.k(), self.intermediate.n());
        let dtype = self.intermediate.dtype();
        let [kernel, bias, output_kernel, output_bias] = grads;
        let blocks = Pass::<R>::fixed_blocks(rows);
        let mut inner = context.buffer(rows * width);
        let mut dpre = context.buffer(rows * width);
        let turned_output = context.transposed(&self.output)?;
        let transposed = context.transposed(&self.intermediate)?;
        let dx_of = |dpre: &[R], stride, rows, cols: Range<usize>, dx: &mut [R], lhs: &mut LhsBuffer| {
            let init = if cols.start == 0 { Init::Zero } else { Init::Accumulate };
            let dpre = prepare_lhs(isa, dpre, rows, cols.len(), stride, dtype, lhs);
            matmul(isa, rows, dpre, transposed.view(0).k_range(cols), 0..hidden, dx, hidden, init);
        };
        let slice = self.slice_len(activation);
        pass.each_block_of(
            &blocks,
            [(&mut inner, width), (&mut dpre, width), (&mut *dx, hidden)],
            |block, [inner, dpre, dx], scratch| {
                let ([a, da], [lhs, inner_lhs]) = scratch.split([block.rows * slice; 2]);
                let dy = prepare_lhs(isa, block.of(dy, rows, hidden), block.rows, hidden, hidden, dtype, lhs);
                for first in (0..width).step_by(slice) {
                    let cols = first..(first + slice).min(width);
                    let len = cols.len();
                    let (a, da) = (&mut a[..block.rows * len], &mut da[..block.rows * len]);
                    // 3. out = inner W2 + b2: d inner = dy W2^T
                    matmul(isa, block.rows, dy, turned_output.view(0), cols.clone(), da, len, Init::Zero);
                    copy_columns(block.of(pre, rows, width), width, cols.clone(), a, len, 0..len);
                    if !activation.is_custom() {
                        // 2. inner = activation(a), which cannot fail unless custom
                        let _ = activation.backward(isa, a, da, len);
                        let _ = activation.forward(isa, a, len);
                        // 1. a = x W1 + b1: dx = d a W1^T
                        dx_of(da, len, block.rows, cols.clone(), dx, inner_lhs);
                    }
                    copy_columns(a, len, 0..len, inner, width, cols.clone());
                    copy_columns(da, len, 0..len, dpre, width, cols);
                }
            },
        )?;
        if activation.is_custom() {
            activation.backward(isa, &inner, &mut dpre, width)?;
            activation.forward(isa, &mut inner, width)?;
            pass.each_block(&blocks, dx, hidden, |block, dx, scratch| {
                let (_, [lhs, _]) = scratch.split([]);
                dx_of(block.of(&dpre, rows, width), width, block.rows, 0..width, dx, lhs);
            })?;
        }
        kernel_gradient(context, dtype, rows, &inner, dy, output_kernel)?;
        bias_gradient(context, dy, output_bias)?;
        kernel_gradient(context, dtype, rows, x, &dpre, kernel)?;
        bias_gradient(context, &dpre, bias)
    }
}

/// Copies columns `from_cols` of rows `from_width` apart to columns `to_cols`, as many, of rows `to_width` apart.
fn copy_columns<R: Copy>(
    from: &[R],
    from_width: usize,
    from_cols: Range<usize>,
    to: &mut [R],
    to_width: usize,
    to_cols: Range<usize>,
) {
    for (from, to) in from.chunks_exact(from_width).zip(to.chunks_exact_mut(to_width)) {
        to[to_cols.clone()].copy_from_slice(&from[from_cols.clone()]);
    }
}

/// FeedForwardKind-forward layers on segments of rows: `layers[segment.example]` on each segment.
pub struct Run<'a, R> {
    /// Between the products.
    pub activation: &'a Activation<R>,
    /// All of one size.
    pub layers: &'a [FeedForward<R>],
    /// In the order of the rows of the result.
    pub segments: &'a [RowBlock],
}

impl<R: Real> Run<'_, R> {
    /// Computes the rows that `gather` fetches into the segments' rows of `out`, then calls `finish` on those. `pre`,
    /// when given (`[rows, F]`), receives what the activation is applied to.
    ///
    /// A custom activation is called on the coordinating thread, between two passes over the segments.
    pub fn forward(
        &self,
        pass: &Pass<'_, R>,
        gather: impl Fn(RowBlock, &mut [R]) + Sync,
        out: &mut [R],
        pre: Option<&mut [R]>,
        finish: impl Fn(RowBlock, &mut [R]) + Sync,
    ) -> Result<()> {
        let (isa, hidden) = (pass.context.isa, pass.config.hidden_size);
        let width = self.layers.first().map_or(0, |layer| layer.intermediate.n());
        let activation = self.activation;
        if !activation.is_custom() {
            let (pre, kept) = pre.map_or((&mut [][..], 0), |pre| (pre, width));
            return pass.each_block_of(
                self.segments,
                [(out, hidden), (pre, kept)],
                |segment, [out, pre], scratch| {
                    let layer = &self.layers[segment.example];
                    let lengths = [segment.rows * hidden, layer.scratch_len(activation, segment.rows)];
                    let ([x, slice], lhs) = scratch.split(lengths);
                    gather(segment, x);
                    let pre = (!pre.is_empty()).then_some(pre);
                    layer.forward(isa, activation, x, segment.rows, out, slice, lhs, pre);
                    finish(segment, out);
                },
            );
        }
        let mut inner = pass.context.buffer(self.segments.iter().map(|s| s.rows).sum::<usize>() * width);
        pass.each_block(self.segments, &mut inner, width, |segment, inner, scratch| {
            let ([x], [lhs, _]) = scratch.split([segment.rows * hidden]);
            gather(segment, x);
            self.layers[segment.example].forward_intermediate(isa, x, segment.rows, inner, lhs);
        })?;
        if let Some(pre) = pre {
            pre.copy_from_slice(&inner);
        }
        activation.forward(isa, &mut inner, width)?;
        pass.each_block_of(
            self.segments,
            [(out, hidden), (&mut inner, width)],
            |segment, [out, inner], scratch| {
                let (_, [lhs, _]) = scratch.split([]);
                self.layers[segment.example].forward_output(isa, inner, segment.rows, out, lhs);
                finish(segment, out);
            },
        )
    }
}
