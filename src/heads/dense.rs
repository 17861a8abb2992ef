//! A dense layer on its own: `y = x W + b`, `[rows, k] -> [rows, n]`, with its gradient.

use crate::error::{Error, Result};
use crate::kernels::{Dtype, Init, PackedMatrix, Panels, Real, matmul, prepare_lhs};
use crate::layers::{bias_gradient, kernel_gradient};
use crate::params::{Loader, Param, ParamMut, Spec};
use crate::runtime::Context;

/// Rows that a task takes.
const ROWS: usize = 64;

/// Kernel and bias.
#[derive(Clone, Debug)]
pub struct Dense<R> {
    /// `[k, n]`
    pub kernel: PackedMatrix<R>,
    /// `[n]`
    pub bias: Vec<R>,
}

/// Gradients of a [`Dense`], row-major.
#[derive(Debug)]
pub struct DenseGradients<'a, R> {
    /// `[k, n]`
    pub kernel: &'a mut [R],
    /// `[n]`
    pub bias: &'a mut [R],
}

/// The weights of a dense layer called `prefix`.
pub fn specs(prefix: &str, k: usize, n: usize) -> [Spec; 2] {
    [Spec::kernel(format!("{prefix}/kernel"), &[k, n]), Spec::bias(format!("{prefix}/bias"), &[n])]
}

impl<R: Real> Dense<R> {
    /// Takes the weights in the order of `specs`.
    pub fn load(loader: &mut Loader<'_, R>, k: usize, n: usize) -> Result<Self> {
        Ok(Dense { kernel: loader.matrix_as(k, n, Dtype::Float32)?, bias: loader.vector(n)? })
    }

    /// The weights in the order of `specs`.
    pub fn params(&self) -> [Param<'_, R>; 2] {
        [Param::matrix(&self.kernel), Param::vector(&self.bias)]
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> [ParamMut<'_, R>; 2] {
        [ParamMut::matrix(&mut self.kernel), ParamMut::vector(&mut self.bias)]
    }

    /// `out = x W + b`
    pub fn forward(&self, context: &Context<'_, R>, x: &[R], out: &mut [R]) -> Result<()> {
        product(context, x, self.kernel.view(), Init::Bias(&self.bias), out)
    }

    /// From `dy` (`[rows, n]`) adds to the gradients and writes `dx` (`[rows, k]`).
    pub fn backward(
        &self,
        context: &Context<'_, R>,
        x: &[R],
        dy: &[R],
        gradients: DenseGradients<'_, R>,
        dx: &mut [R],
    ) -> Result<()> {
        let rows = x.len() / self.kernel.k();
        bias_gradient(context, dy, gradients.bias)?;
        kernel_gradient(context, Dtype::Float32, rows, x, dy, gradients.kernel)?;
        product(context, dy, context.transposed(&self.kernel)?.view(0), Init::Zero, dx)
    }
}

/// `out = init + x W`, blocks of rows in parallel.
fn product<R: Real>(
    context: &Context<'_, R>,
    x: &[R],
    kernel: Panels<'_, R>,
    init: Init<'_, R>,
    out: &mut [R],
) -> Result<()> {
    let (k, n) = (kernel.k, kernel.n);
    if x.len() / k * n != out.len() {
        return Err(Error::Internal(format!("{} values for rows of {k} and {} of {n}", x.len(), out.len())));
    }
    let tasks: Vec<_> = x.chunks(ROWS * k).zip(out.chunks_mut(ROWS * n)).collect();
    context.each(tasks.into_iter(), |(x, out), scratch| {
        let ([], [lhs, _]) = scratch.split([]);
        let rows = x.len() / k;
        let lhs = prepare_lhs(context.isa, x, rows, k, k, kernel.dtype(), lhs);
        matmul(context.isa, rows, lhs, kernel, 0..n, out, n, init);
    })
}
