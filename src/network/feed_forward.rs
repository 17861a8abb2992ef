//! Dense feed-forward: `activation(x W1 + b1) W2 + b2`, `[rows, H] -> [rows, H]`, inner width `F`.
//!
//! The inner activations are made and used up a slice of `F` at a time, so that they never leave the second-level
//! cache. Source: `TransformerScaffold`'s intermediate and output layers; the experts of `FeedForwardExperts`.

use std::ops::Range;

use crate::error::Result;
use crate::kernels::{Isa, LhsBuffer, Real, activate_lhs, prepare_lhs};
use crate::layers::{Activation, Dense, Product};
use crate::params::{Gradients, WeightList, Weights};

use super::pass::{Pass, RowBlock};

/// Inner columns made at a time; a multiple of every storage type's row granularity.
pub(super) const SLICE: usize = 512;

/// The two dense layers; or those of several experts.
#[derive(Clone, Copy, Debug)]
pub struct FeedForward {
    /// `[H, F]`
    intermediate: Dense,
    /// `[F, H]`
    output: Dense,
}

/// One feed-forward layer with its values.
#[derive(Clone, Copy)]
pub struct FeedForwardProducts<'w, R> {
    intermediate: Product<'w, R>,
    output: Product<'w, R>,
}

impl FeedForward {
    /// Declares the feed-forward layer of a block.
    pub fn new(list: &mut WeightList, prefix: &str, hidden: usize, inner: usize) -> Self {
        FeedForward {
            intermediate: Dense::new(list, &format!("{prefix}/intermediate"), hidden, inner),
            output: Dense::new(list, &format!("{prefix}/output"), inner, hidden),
        }
    }

    /// Declares the feed-forward layers of `experts` experts.
    pub fn stacked(list: &mut WeightList, prefix: &str, experts: usize, hidden: usize, inner: usize) -> Self {
        FeedForward {
            intermediate: Dense::stacked(list, &format!("{prefix}/intermediate"), experts, hidden, inner),
            output: Dense::stacked(list, &format!("{prefix}/output"), experts, inner, hidden),
        }
    }

    /// The layer of expert number `index`; 0 where there are no experts.
    pub fn products<R: Real>(self, weights: &Weights<R>, index: usize) -> FeedForwardProducts<'_, R> {
        FeedForwardProducts {
            intermediate: self.intermediate.product_of(weights, index),
            output: self.output.product_of(weights, index),
        }
    }

    /// Undoes the layer of expert number `index` for `rows` rows: writes `dx`, adds to the gradients.
    ///
    /// `x` is what `forward` read, `pre` what it kept, `dy` the gradient of its result.
    pub fn backward<R: Real>(
        self,
        pass: &Pass<'_, R>,
        activation: &Activation<R>,
        index: usize,
        x: &[R],
        pre: &[R],
        dy: &[R],
        dx: &mut [R],
        gradients: &mut Gradients<R>,
    ) -> Result<()> {
        let (context, isa, weights) = (pass.context, pass.context.isa, pass.weights);
        let products = self.products(weights, index);
        let (hidden, width) = (products.intermediate.k(), products.intermediate.n());
        let rows = x.len() / hidden;
        let blocks = Pass::<R>::fixed_blocks(rows);
        let mut inner = context.buffer(rows * width);
        let mut dpre = context.buffer(rows * width);
        let output = context.transposed(self.output.kernel(weights, index))?;
        let output = Product::transposed(&output);
        let intermediate = context.transposed(self.intermediate.kernel(weights, index))?;
        let intermediate = Product::transposed(&intermediate);
        let dx_of = |dpre: &[R], stride, rows, cols: Range<usize>, dx: &mut [R], lhs: &mut LhsBuffer| {
            let dpre = prepare_lhs(isa, dpre, rows, cols.len(), stride, intermediate.dtype(), lhs);
            intermediate.inner(isa, dpre, rows, cols, dx);
        };
        let slice = products.slice_len(activation);
        pass.each_block_of(
            &blocks,
            [(&mut inner, width), (&mut dpre, width), (&mut *dx, hidden)],
            |block, [inner, dpre, dx], scratch| {
                let ([a, da], [lhs, inner_lhs]) = scratch.split([block.rows * slice; 2]);
                let dy = output.prepare(isa, block.of(dy, rows, hidden), block.rows, lhs);
                for first in (0..width).step_by(slice) {
                    let cols = first..(first + slice).min(width);
                    let len = cols.len();
                    let (a, da) = (&mut a[..block.rows * len], &mut da[..block.rows * len]);
                    // 3. out = inner W2 + b2: d inner = dy W2^T
                    output.columns(isa, dy, block.rows, cols.clone(), da);
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
        self.output.add_gradients(context, weights, index, &inner, dy, gradients)?;
        self.intermediate.add_gradients(context, weights, index, x, &dpre, gradients)
    }
}

impl<R: Real> FeedForwardProducts<'_, R> {
    /// `F`
    pub fn inner_width(&self) -> usize {
        self.intermediate.n()
    }

    /// Inner columns made at a time: all for an activation that needs whole rows.
    fn slice_len(&self, activation: &Activation<R>) -> usize {
        if activation.is_elementwise() { SLICE.min(self.inner_width()) } else { self.inner_width() }
    }

    /// Scratch values that [`FeedForwardProducts::forward`] needs for `rows` rows.
    pub fn scratch_len(&self, activation: &Activation<R>, rows: usize) -> usize {
        rows * self.slice_len(activation)
    }

    /// `out = feed-forward of x`, both `[rows, H]`; `inner` is scratch of [`FeedForwardProducts::scratch_len`]. `pre`, when given
    /// (`[rows, F]`), receives what the activation is applied to.
    ///
    /// `activation` must not be a custom one; see [`FeedForwardProducts::forward_intermediate`].
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
        let width = self.inner_width();
        let slice = self.slice_len(activation);
        let [lhs, inner_lhs] = lhs;
        let x = self.intermediate.prepare(isa, x, rows, lhs);
        for first in (0..width).step_by(slice) {
            let cols = first..(first + slice).min(width);
            let len = cols.len();
            let inner = &mut inner[..rows * len];
            // 1. a = x W1 + b1
            self.intermediate.columns(isa, x, rows, cols.clone(), inner);
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
            self.output.inner(isa, inner, rows, cols, out);
        }
    }

    /// `pre = x W1 + b1`, `[rows, F]`: the first half, for callers that apply the activation themselves.
    pub fn forward_intermediate(&self, isa: Isa, x: &[R], rows: usize, pre: &mut [R], lhs: &mut LhsBuffer) {
        self.intermediate.rows(isa, x, rows, pre, lhs);
    }

    /// `out = inner W2 + b2`: the second half. Sums in the same slices as [`FeedForwardProducts::forward`].
    pub fn forward_output(&self, isa: Isa, inner: &[R], rows: usize, out: &mut [R], lhs: &mut LhsBuffer) {
        let width = self.inner_width();
        for first in (0..width).step_by(SLICE) {
            let cols = first..(first + SLICE).min(width);
            let slice = prepare_lhs(isa, &inner[first..], rows, cols.len(), width, self.output.dtype(), lhs);
            self.output.inner(isa, slice, rows, cols, out);
        }
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

/// Feed-forward layers on segments of rows: that of expert `segment.example` on each segment.
pub struct Run<'a, R> {
    /// Between the products.
    pub activation: &'a Activation<R>,
    /// One layer, or those of all experts.
    pub layers: FeedForward,
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
        let layer = |segment: RowBlock| self.layers.products(pass.weights, segment.example);
        let width = self.layers.products(pass.weights, 0).inner_width();
        let activation = self.activation;
        if !activation.is_custom() {
            let (pre, kept) = pre.map_or((&mut [][..], 0), |pre| (pre, width));
            return pass.each_block_of(
                self.segments,
                [(out, hidden), (pre, kept)],
                |segment, [out, pre], scratch| {
                    let layer = layer(segment);
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
            layer(segment).forward_intermediate(isa, x, segment.rows, inner, lhs);
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
                layer(segment).forward_output(isa, inner, segment.rows, out, lhs);
                finish(segment, out);
            },
        )
    }
}
