//! Pooler: `tanh(x[:, 0] W + b)`, `[B, H]`. Source: the reference's `pooler_transform` layer.

use crate::error::Result;
use crate::kernels::{Elementwise, LhsBuffer, Real, elementwise};
use crate::layers::{Dense, Product};
use crate::params::{Gradients, WeightList};

use super::pass::{Pass, split_rows};
use crate::sys::{Place, Work, at, timed};

/// The dense layer, `[H, H]`.
#[derive(Clone, Copy, Debug)]
pub struct Pooler {
    dense: Dense,
}

/// Examples per task.
const EXAMPLES: usize = 32;

/// Copies the first row of every example of `x` to `out`.
fn gather_first<R: Copy>(x: &[R], rows_per_example: usize, hidden: usize, out: &mut [R]) {
    for (row, example) in out.chunks_exact_mut(hidden).zip(x.chunks_exact(rows_per_example * hidden)) {
        row.copy_from_slice(&example[..hidden]);
    }
}

impl Pooler {
    /// Declares the pooler.
    pub fn new(list: &mut WeightList, hidden: usize) -> Self {
        Pooler { dense: Dense::new(list, "pooler_transform", hidden, hidden) }
    }

    /// Pools `x` (`rows_per_example` rows of `H` per example) into `out` (`[B, H]`).
    pub fn forward<R: Real>(
        self,
        pass: &Pass<'_, R>,
        x: &[R],
        rows_per_example: usize,
        out: &mut [R],
    ) -> Result<()> {
        let (isa, hidden) = (pass.context.isa, pass.config.hidden_size);
        let _place = at(Place::Pooler);
        let product = self.dense.product(pass.weights);
        if pass.are_few(pass.batch) {
            let (mut lhs, mut first) = (LhsBuffer::default(), pass.context.buffer(out.len()));
            gather_first(x, rows_per_example, hidden, &mut first);
            let left = product.prepare(isa, &first, pass.batch, &mut lhs);
            return product.few_rows(pass.context, left, pass.batch, out, |part| {
                let _time = timed(Work::Activation);
                elementwise(isa, Elementwise::Tanh, part);
            });
        }
        let lengths = (0..pass.batch).step_by(EXAMPLES).map(|b| EXAMPLES.min(pass.batch - b) * hidden);
        let tasks = split_rows(out, lengths).enumerate();
        pass.context.each(tasks, |(task, out), scratch| {
            let rows = out.len() / hidden;
            let ([first], [lhs, _]) = scratch.split([rows * hidden]);
            let x = &x[task * EXAMPLES * rows_per_example * hidden..];
            gather_first(x, rows_per_example, hidden, first);
            product.rows(isa, first, rows, out, lhs);
            let _time = timed(Work::Activation);
            elementwise(isa, Elementwise::Tanh, out);
        })
    }

    /// Backward of the layer: adds to the first row of every example of `dx` (`[B*S, H]`) and to the gradients.
    ///
    /// `x` is what `forward` read, `pooled` its result, `dy` the gradient of that.
    pub fn backward<R: Real>(
        self,
        pass: &Pass<'_, R>,
        x: &[R],
        pooled: &[R],
        dy: &[R],
        dx: &mut [R],
        gradients: &mut Gradients<R>,
    ) -> Result<()> {
        let (isa, hidden, batch) = (pass.context.isa, pass.config.hidden_size, pass.batch);
        let _place = at(Place::Pooler);
        let per_example = pass.seq * hidden;
        // tanh: its derivative from its value
        let mut dpre = pass.context.buffer(batch * hidden);
        for ((d, &dy), &y) in dpre.iter_mut().zip(dy).zip(pooled) {
            *d = dy * (R::ONE - y * y);
        }
        let mut first = pass.context.buffer(batch * hidden);
        for (row, x) in first.chunks_exact_mut(hidden).zip(x.chunks_exact(per_example)) {
            row.copy_from_slice(&x[..hidden]);
        }
        self.dense.add_gradients(pass.context, pass.weights, 0, &first, &dpre, gradients)?;
        let transposed = pass.context.transposed(self.dense.kernel(pass.weights, 0))?;
        let transposed = Product::transposed(&transposed);
        let examples = dx.chunks_exact_mut(per_example).zip(dpre.chunks_exact(hidden));
        pass.context.each(examples, |(dx, dpre), scratch| {
            let (_, [lhs, _]) = scratch.split([]);
            transposed.add_rows(isa, dpre, 1, &mut dx[..hidden], lhs);
        })
    }
}
