//! Pooler: `tanh(x[:, 0] W + b)`, `[B, H]`. Source: the reference's `pooler_transform` layer.

use crate::error::Result;
use crate::kernels::{Elementwise, Init, PackedMatrix, Real, elementwise, matmul, prepare_lhs};
use crate::layers::{bias_gradient, kernel_gradient};
use crate::params::{Loader, Param, ParamMut, Spec};

use super::pass::{Pass, split_rows};

/// Kernel `[H, H]` and bias `[H]`.
#[derive(Clone, Debug)]
pub struct Pooler<R> {
    /// `W`
    pub kernel: PackedMatrix<R>,
    /// `b`
    pub bias: Vec<R>,
}

/// The weights.
pub fn specs(hidden: usize) -> [Spec; 2] {
    [
        Spec::kernel("pooler_transform/kernel", &[hidden, hidden]),
        Spec::bias("pooler_transform/bias", &[hidden]),
    ]
}

/// Examples per task.
const EXAMPLES: usize = 32;

impl<R: Real> Pooler<R> {
    /// Takes the weights in the order of [`specs`].
    pub fn load(loader: &mut Loader<'_, R>, hidden: usize) -> Result<Self> {
        Ok(Pooler { kernel: loader.matrix(hidden, hidden)?, bias: loader.vector(hidden)? })
    }

    /// The weights in the order of [`specs`].
    pub fn params(&self) -> [Param<'_, R>; 2] {
        [Param::matrix(&self.kernel), Param::vector(&self.bias)]
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> [ParamMut<'_, R>; 2] {
        [ParamMut::matrix(&mut self.kernel), ParamMut::vector(&mut self.bias)]
    }

    /// Pools `x` (`rows_per_example` rows of `H` per example) into `out` (`[B, H]`).
    pub fn forward(&self, pass: &Pass<'_, R>, x: &[R], rows_per_example: usize, out: &mut [R]) -> Result<()> {
        let (isa, hidden) = (pass.context.isa, self.bias.len());
        let lengths = (0..pass.batch).step_by(EXAMPLES).map(|b| EXAMPLES.min(pass.batch - b) * hidden);
        let tasks: Vec<_> = split_rows(out, lengths).enumerate().collect();
        pass.context.each(tasks.into_iter(), |(task, out), scratch| {
            let rows = out.len() / hidden;
            let ([first], [lhs, _]) = scratch.split([rows * hidden]);
            for (example, row) in (task * EXAMPLES..).zip(first.chunks_exact_mut(hidden)) {
                row.copy_from_slice(&x[example * rows_per_example * hidden..][..hidden]);
            }
            let first = prepare_lhs(isa, first, rows, hidden, hidden, self.kernel.dtype(), lhs);
            matmul(isa, rows, first, self.kernel.view(), 0..hidden, out, hidden, Init::Bias(&self.bias));
            elementwise(isa, Elementwise::Tanh, out);
        })
    }

    /// Undoes the layer: adds to the first row of every example of `dx` (`[B*S, H]`) and to the gradients.
    ///
    /// `x` is what `forward` read, `pooled` its result, `dy` the gradient of that.
    pub fn backward(
        &self,
        pass: &Pass<'_, R>,
        x: &[R],
        pooled: &[R],
        dy: &[R],
        dx: &mut [R],
        grads: &mut [Vec<R>],
    ) -> Result<()> {
        let (isa, hidden, batch) = (pass.context.isa, self.bias.len(), pass.batch);
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
        kernel_gradient(pass.context, self.kernel.dtype(), batch, &first, &dpre, &mut grads[0])?;
        bias_gradient(pass.context, &dpre, &mut grads[1])?;
        let transposed = pass.context.transposed(&self.kernel)?;
        pass.context.each(
            dx.chunks_exact_mut(per_example).zip(dpre.chunks_exact(hidden)),
            |(dx, dpre), scratch| {
                let (_, [lhs, _]) = scratch.split([]);
                let dpre = prepare_lhs(isa, dpre, 1, hidden, hidden, self.kernel.dtype(), lhs);
                matmul(
                    isa,
                    1,
                    dpre,
                    transposed.view(0),
                    0..hidden,
                    &mut dx[..hidden],
                    hidden,
                    Init::Accumulate,
                );
            },
        )
    }
}
