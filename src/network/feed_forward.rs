//! Dense feed-forward: `activation(x W1 + b1) W2 + b2`, `[rows, H] -> [rows, H]`, inner width `F`.
//!
//! The inner activations are made and used up a slice of `F` at a time, so that they never leave the L2
//! cache. Source: `TransformerScaffold`'s intermediate and output layers; the experts of `FeedForwardExperts`.

use std::ops::Range;

use crate::error::Result;
use crate::kernels::{
    Elementwise, Isa, LhsBuffer, Real, activate_lhs, add_in_place, elementwise, prepare_lhs,
};
use crate::layers::{Activation, Dense, Inputs, Product, row_panels};
use crate::params::{Gradients, WeightList, Weights};
use crate::runtime::Context;
use crate::sys::{Work, at_second_product, timed};

use super::pass::{MAX_BLOCK, Pass, RowBlock, split_rows};

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

    /// Backward of the layer of expert number `index` for `rows` rows: writes `dx`, adds to the gradients.
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
        if activation.is_custom() {
            return self.backward_custom(pass, activation, index, x, pre, dy, dx, gradients);
        }
        let (context, isa, weights) = (pass.context, pass.context.isa, pass.weights);
        let products = self.products(weights, index);
        let (hidden, width) = (products.intermediate.k(), products.intermediate.n());
        let rows = x.len() / hidden;
        let blocks = Pass::<R>::fixed_blocks(rows);
        let output = context.transposed(self.output.kernel(weights, index))?;
        let output = Product::transposed(&output);
        let intermediate = context.transposed(self.intermediate.kernel(weights, index))?;
        let intermediate = Product::transposed(&intermediate);
        let dtype = intermediate.dtype();
        // What the gradients of the weights that are requested are made of, in the form that those products want: a task
        // writes its rows while they are in the L2 cache.
        let mut inner = self
            .output
            .requests_kernel(gradients)
            .then(|| context.transposed_activations(dtype, width, rows));
        let mut dpre =
            self.intermediate.requests_kernel(gradients).then(|| context.panels(dtype, 1, rows, width));
        let mut sums =
            self.intermediate.requests_bias(gradients).then(|| context.buffer(blocks.len() * width));
        let mut inners = inner.as_mut().map(|inner| inner.column_chunks_mut(MAX_BLOCK)).transpose()?;
        let mut dpres = dpre.as_mut().map(|dpre| dpre.row_chunks_mut(1, MAX_BLOCK)).transpose()?;
        let mut block_sums = sums.as_mut().map(|sums| sums.chunks_exact_mut(width));
        let pieces = split_rows(dx, blocks.iter().map(|block| block.rows * hidden));
        let tasks = blocks.iter().zip(pieces).map(move |(block, dx)| {
            let inner = inners.as_mut().and_then(Iterator::next);
            let dpre = dpres.as_mut().and_then(Iterator::next);
            let sums = block_sums.as_mut().and_then(Iterator::next);
            (block, dx, inner, dpre, sums)
        });
        let slice = products.slice_len(activation);
        context.each(tasks, |(block, dx, mut inner, mut dpre, mut sums), scratch| {
            let ([a, da], [lhs, inner_lhs]) = scratch.split([block.rows * slice; 2]);
            let pre = block.of(pre, rows, width);
            let dy = output.prepare(isa, block.of(dy, rows, hidden), block.rows, lhs);
            for first in (0..width).step_by(slice) {
                let cols = first..(first + slice).min(width);
                let len = cols.len();
                let (a, da) = (&mut a[..block.rows * len], &mut da[..block.rows * len]);
                // 3. out = inner W2 + b2: d inner = dy W2^T
                output.columns(isa, dy, block.rows, cols.clone(), da);
                // 2. inner = activation(pre), which cannot fail unless custom
                for ((a, da), pre) in
                    a.chunks_exact_mut(len).zip(da.chunks_exact_mut(len)).zip(pre.chunks_exact(width))
                {
                    let _ = activation.with_backward(isa, &pre[cols.clone()], a, da, len);
                }
                // 1. a = x W1 + b1: dx = d a W1^T
                let lhs = prepare_lhs(isa, da, block.rows, len, len, dtype, inner_lhs);
                intermediate.inner(isa, lhs, block.rows, cols.clone(), dx);
                if let Some(inner) = &mut inner {
                    inner.fill(isa, a, len, block.rows, cols.clone());
                }
                if let Some(dpre) = &mut dpre {
                    dpre.pack(isa, 0, da, len, block.rows, cols.clone());
                }
                if let Some(sums) = &mut sums {
                    add_up_rows(isa, da, &mut sums[cols]);
                }
            }
        })?;
        if let Some(inner) = &inner {
            let dy = row_panels(context, dtype, dy, hidden)?;
            self.output.add_kernel_gradient(context, index, Inputs::Transposed(inner), &dy, gradients)?;
        }
        self.output.add_bias_gradient(context, index, dy, gradients)?;
        if let Some(dpre) = &dpre {
            self.intermediate.add_kernel_gradient(context, index, Inputs::Rows(x), dpre, gradients)?;
        }
        match &sums {
            Some(sums) => self.intermediate.add_bias_gradient(context, index, sums, gradients),
            None => Ok(()),
        }
    }

    /// [`FeedForward::backward`] with an activation that gets whole arrays.
    fn backward_custom<R: Real>(
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
        let mut inner = context.buffer(pre.len());
        let mut dpre = context.buffer(pre.len());
        // 3. out = inner W2 + b2: d inner = dy W2^T
        let output = context.transposed(self.output.kernel(weights, index))?;
        Product::transposed(&output).forward(context, dy, &mut dpre)?;
        // 2. inner = activation(pre)
        let width = self.intermediate.kernel(weights, index).n();
        activation.backward(isa, pre, &mut dpre, width)?;
        inner.copy_from_slice(pre);
        activation.forward(isa, &mut inner, width)?;
        self.output.add_gradients(context, weights, index, &inner, dy, gradients)?;
        // 1. a = x W1 + b1: dx = d a W1^T
        self.intermediate.backward(context, weights, index, x, &dpre, dx, gradients)
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
            let _second = at_second_product();
            self.output.inner(isa, inner, rows, cols, out);
        }
    }

    /// [`FeedForwardProducts::forward`] for few rows, whose columns tasks share out; the activation is `function`.
    pub fn few_rows(
        &self,
        context: &Context<'_, R>,
        function: Elementwise,
        x: &[R],
        rows: usize,
        out: &mut [R],
    ) -> Result<()> {
        let (isa, width) = (context.isa, self.inner_width());
        let slice = SLICE.min(width);
        let (mut lhs, mut last_lhs) = (LhsBuffer::default(), LhsBuffer::default());
        // 1, 2. activation(x W1 + b1)
        let mut inner = context.buffer(rows * width);
        let x = self.intermediate.prepare(isa, x, rows, &mut lhs);
        self.intermediate.few_rows(context, x, rows, &mut inner, |part| {
            let _time = timed(Work::Activation);
            elementwise(isa, function, part);
        })?;
        let _second = at_second_product();
        // 3. out = activation(a) W2 + b2, from slices below each other
        let whole = width / slice * slice;
        let mut slices = context.buffer(rows * width);
        for (part, first) in slices.chunks_mut(rows * slice).zip((0..).step_by(slice)) {
            let own = part.len() / rows;
            copy_columns(&inner, width, first..first + own, part, own, 0..own);
        }
        let (slices, last) = slices.split_at(rows * whole);
        let dtype = self.output.dtype();
        let x = prepare_lhs(isa, slices, whole / slice * rows, slice, slice, dtype, &mut lhs);
        let (last_width, last_rows) = (width - whole, if width > whole { rows } else { 0 });
        let last = prepare_lhs(isa, last, last_rows, last_width, last_width, dtype, &mut last_lhs);
        self.output.few_rows_in_slices(context, [x, last], slice, rows, out)
    }

    /// `pre = x W1 + b1`, `[rows, F]`: the first half, for callers that apply the activation themselves.
    pub fn forward_intermediate(&self, isa: Isa, x: &[R], rows: usize, pre: &mut [R], lhs: &mut LhsBuffer) {
        self.intermediate.rows(isa, x, rows, pre, lhs);
    }

    /// `out = inner W2 + b2`: the second half. Sums in the same slices as [`FeedForwardProducts::forward`].
    pub fn forward_output(&self, isa: Isa, inner: &[R], rows: usize, out: &mut [R], lhs: &mut LhsBuffer) {
        let _second = at_second_product();
        let width = self.inner_width();
        for first in (0..width).step_by(SLICE) {
            let cols = first..(first + SLICE).min(width);
            let slice = prepare_lhs(isa, &inner[first..], rows, cols.len(), width, self.output.dtype(), lhs);
            self.output.inner(isa, slice, rows, cols, out);
        }
    }
}

/// `sums = sum over rows of values`, in order.
fn add_up_rows<R: Real>(isa: Isa, values: &[R], sums: &mut [R]) {
    let _time = timed(Work::BiasSum);
    sums.fill(R::ZERO);
    for row in values.chunks_exact(sums.len()) {
        add_in_place(isa, sums, row);
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
    let _time = timed(Work::Copy);
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
        let mut inner = pass.context.buffer(out.len() / hidden * width);
        pass.each_block(self.segments, &mut inner, width, |segment, inner, scratch| {
            let ([x], [lhs, _]) = scratch.split([segment.rows * hidden]);
            gather(segment, x);
            layer(segment).forward_intermediate(isa, x, segment.rows, inner, lhs);
        })?;
        if let Some(pre) = pre {
            pre.copy_from_slice(&inner);
        }
        pass.context
            .outside(activation.copied_bytes(inner.len()), || activation.forward(isa, &mut inner, width))?;
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

#[cfg(test)]
mod tests {
    use super::super::testing::values;
    use super::*;
    use crate::kernels::Dtype;
    use crate::params::Spec;

    const HIDDEN: usize = 5;
    const ROWS: usize = 3;

    /// Two experts of an inner width that takes more than one slice.
    fn experts(inner: usize) -> (FeedForward, Weights<f64>) {
        let mut list = WeightList::new();
        let layers = FeedForward::stacked(&mut list, "experts", 2, HIDDEN, inner);
        let mut source = |index, spec: &Spec| Ok(values(index as u64, spec.len()).into());
        (layers, Weights::load(list, &mut source, Dtype::Float32).expect("fitting weights"))
    }

    /// `activation(x W1 + b1) W2 + b2` of expert number `index`, from the weights as Keras has them.
    fn reference(weights: &Weights<f64>, activation: &Activation<f64>, index: usize, x: &[f64]) -> Vec<f64> {
        let expert = |weight: usize| {
            let all = weights.get(weight).to_vec();
            all[index * all.len() / 2..(index + 1) * all.len() / 2].to_vec()
        };
        let affine = |x: &[f64], kernel: &[f64], bias: &[f64]| -> Vec<f64> {
            let n = bias.len();
            let product = |j| x.iter().enumerate().map(|(i, x)| x * kernel[i * n + j]).sum::<f64>();
            (0..n).map(|j| bias[j] + product(j)).collect()
        };
        let rows = x.chunks_exact(HIDDEN).flat_map(|x| {
            let mut inner = affine(x, &expert(0), &expert(1));
            let width = inner.len();
            activation.forward(Isa::PORTABLE, &mut inner, width).expect("not custom");
            affine(&inner, &expert(2), &expert(3))
        });
        rows.collect()
    }

    fn assert_close(got: &[f64], expected: &[f64], what: &str) {
        assert_eq!(got.len(), expected.len(), "{what}");
        for (a, b) in got.iter().zip(expected) {
            assert!((a - b).abs() <= 1e-12 * (1.0 + b.abs()), "{what}: {a} against {b}");
        }
    }

    #[test]
    fn every_expert_is_the_formula_with_its_own_weights() {
        let inner = SLICE + 37;
        let (layers, weights) = experts(inner);
        let x = values(9, ROWS * HIDDEN);
        for activation in [Activation::Elementwise(Elementwise::GeluErf), Activation::Softmax] {
            for index in 0..2 {
                let products = layers.products(&weights, index);
                let (mut out, mut pre) = (vec![0.0; x.len()], vec![0.0; ROWS * inner]);
                let mut scratch = vec![0.0; products.scratch_len(&activation, ROWS)];
                let mut lhs = Default::default();
                products.forward(
                    Isa::PORTABLE,
                    &activation,
                    &x,
                    ROWS,
                    &mut out,
                    &mut scratch,
                    &mut lhs,
                    Some(&mut pre),
                );
                let expected = reference(&weights, &activation, index, &x);
                assert_close(&out, &expected, &format!("expert {index}, {activation:?}"));
                // What is kept for backward gives the same result, with the activation applied in between.
                activation.forward(Isa::PORTABLE, &mut pre, inner).expect("not custom");
                let mut again = vec![0.0; x.len()];
                products.forward_output(Isa::PORTABLE, &pre, ROWS, &mut again, &mut lhs[0]);
                assert_close(&again, &expected, "in two halves");
            }
        }
    }

    #[test]
    fn backward_adds_to_the_gradients_of_its_expert_alone() {
        use super::super::testing::{config, encoder, with_context};
        use crate::network::attention_mask::AttentionMask;
        let (layers, weights) = experts(7);
        let network = encoder::<f64>(config());
        let activation = Activation::Elementwise(Elementwise::Tanh);
        let (x, dy) = (values::<f64>(9, ROWS * HIDDEN), values::<f64>(10, ROWS * HIDDEN));
        let mut gradients = Gradients::zeros(weights.specs());
        let dx = with_context(|context| {
            let mask = AttentionMask::by_query(None, None);
            let pass = Pass { weights: &weights, ..network.pass(context, (1, ROWS), None, true, &mask) };
            let mut pre = vec![0.0; ROWS * 7];
            let products = layers.products(&weights, 1);
            products.forward_intermediate(Isa::PORTABLE, &x, ROWS, &mut pre, &mut LhsBuffer::default());
            let mut dx = vec![0.0; x.len()];
            layers.backward(&pass, &activation, 1, &x, &pre, &dy, &mut dx, &mut gradients)?;
            Ok(dx)
        });
        let loss = |weights: &Weights<f64>, x: &[f64]| -> f64 {
            reference(weights, &activation, 1, x).iter().zip(&dy).map(|(y, d)| y * d).sum()
        };
        let slope = |above: f64, below: f64| (above - below) / 2e-5;
        for weight in 0..4 {
            let gradient = gradients.view(weight).row_major();
            for (at, &got) in gradient.iter().enumerate() {
                let moved = |by: f64| {
                    let (mut weights, mut values) = (weights.clone(), weights.get(weight).to_vec());
                    values[at] += by;
                    let value = crate::params::Weight::store(
                        &weights.specs()[weight],
                        values.into(),
                        weights.dtype(),
                    );
                    weights.set(weight, value.expect("as many values"));
                    loss(&weights, &x)
                };
                let expected = slope(moved(1e-5), moved(-1e-5));
                assert!((got - expected).abs() < 1e-6, "weight {weight}[{at}]: {got}, expected {expected}");
            }
            assert!(gradient[..gradient.len() / 2].iter().all(|&d| d == 0.0), "the other expert has none");
        }
        for (at, &got) in dx.iter().enumerate() {
            let moved = |by: f64| {
                let mut x = x.clone();
                x[at] += by;
                loss(&weights, &x)
            };
            let expected = slope(moved(1e-5), moved(-1e-5));
            assert!((got - expected).abs() < 1e-6, "dx[{at}]: {got}, expected {expected}");
        }
    }
}
