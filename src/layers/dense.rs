//! The dense layer `y = x W + b`, `[rows, k] -> [rows, n]`, with its gradients.
//!
//! Sums over rows run in row order: the same bits for any number of threads.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::kernels::{
    Dtype, Init, Isa, Lhs, LhsBuffer, PANEL, PackedMatrix, Panels, Real, axpy, full_precision_stride, matmul,
    prepare_lhs, prepare_transposed_lhs,
};
use crate::params::{GradientMatrix, Gradients, MatrixKey, Role, VectorKey, WeightList, Weights};
use crate::runtime::{ActivationPanels, Context, TransposedActivations};
use crate::sys::{Place, Work, at, timed};

/// Rows that a task of [`Dense::forward`] takes.
const ROWS: usize = 64;
/// Tasks per thread that share out the columns of few rows: one that is late holds the others up for half as long.
pub const FEW_ROWS_TASKS: usize = 2;
/// Columns that a task transposes, or sums up.
const COLUMNS: usize = 64;

/// Kernel and bias; or several of one size, as experts have them.
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    /// `[k, n]` each.
    pub kernel: MatrixKey,
    /// `[n]` each.
    pub bias: VectorKey,
    count: usize,
}

/// A right operand and what is added to products with it: a layer's kernel and bias, or a kernel's transpose alone.
#[derive(Clone, Copy)]
pub struct Product<'a, R> {
    right: Panels<'a, R>,
    bias: Option<&'a [R]>,
}

/// What a layer was applied to: its transpose is the left operand of the kernel's gradient.
#[derive(Clone, Copy, Debug)]
pub enum Inputs<'a, R: Real> {
    /// Rows below each other; each task turns the columns that it needs.
    Rows(&'a [R]),
    /// Turned already.
    Transposed(&'a TransposedActivations<R>),
}

impl Dense {
    /// Declares kernel and bias under `name`.
    pub fn new(list: &mut WeightList, name: &str, k: usize, n: usize) -> Self {
        Self::shaped(list, name, 1, (k, n), &[k, n], &[n])
    }

    /// Declares kernels and biases of `experts` layers under `name`.
    pub fn stacked(list: &mut WeightList, name: &str, experts: usize, k: usize, n: usize) -> Self {
        Self::shaped(list, name, experts, (k, n), &[experts, k, n], &[experts, 1, n])
    }

    /// Declares `count` kernels and biases, which Keras keeps in the shapes `kernel` and `bias`.
    pub fn shaped(
        list: &mut WeightList,
        name: &str,
        count: usize,
        (k, n): (usize, usize),
        kernel: &[usize],
        bias: &[usize],
    ) -> Self {
        Dense {
            kernel: list.matrices(format!("{name}/kernel"), kernel, count, k, n),
            bias: list.vector(format!("{name}/bias"), Role::Bias, bias),
            count,
        }
    }

    /// Kernel number `index`.
    pub fn kernel<R: Real>(self, weights: &Weights<R>, index: usize) -> &PackedMatrix<R> {
        &weights.matrices(self.kernel)[index]
    }

    /// Kernel and bias.
    pub fn product<R: Real>(self, weights: &Weights<R>) -> Product<'_, R> {
        self.product_of(weights, 0)
    }

    /// Kernel and bias number `index`.
    pub fn product_of<R: Real>(self, weights: &Weights<R>, index: usize) -> Product<'_, R> {
        let kernel = self.kernel(weights, index);
        let bias = &weights.vector(self.bias)[index * kernel.n()..][..kernel.n()];
        Product { right: kernel.view(), bias: Some(bias) }
    }

    /// `out = x W + b`, blocks of rows in parallel.
    pub fn forward<R: Real>(
        self,
        context: &Context<'_, R>,
        weights: &Weights<R>,
        x: &[R],
        out: &mut [R],
    ) -> Result<()> {
        self.product(weights).forward(context, x, out)
    }

    /// From `dy` (`[rows, n]`) adds to the gradients of kernel and bias number `index` and writes `dx` (`[rows, k]`).
    pub fn backward<R: Real>(
        self,
        context: &Context<'_, R>,
        weights: &Weights<R>,
        index: usize,
        x: &[R],
        dy: &[R],
        dx: &mut [R],
        gradients: &mut Gradients<R>,
    ) -> Result<()> {
        self.add_gradients(context, weights, index, x, dy, gradients)?;
        Product::transposed(&context.transposed(self.kernel(weights, index))?).forward(context, dy, dx)
    }

    /// Adds to those of the gradients of kernel and bias number `index` that are requested; `x` and `dy` have as many rows.
    pub fn add_gradients<R: Real>(
        self,
        context: &Context<'_, R>,
        weights: &Weights<R>,
        index: usize,
        x: &[R],
        dy: &[R],
        gradients: &mut Gradients<R>,
    ) -> Result<()> {
        if self.requests_kernel(gradients) {
            let kernel = self.kernel(weights, index);
            let dy = row_panels(context, kernel.dtype(), dy, kernel.n())?;
            self.add_kernel_gradient(context, index, Inputs::Rows(x), &dy, gradients)?;
        }
        self.add_bias_gradient(context, index, dy, gradients)
    }

    /// Whether the gradients of kernels are to be computed.
    pub fn requests_kernel<R: Real>(self, gradients: &Gradients<R>) -> bool {
        gradients.requests(self.kernel)
    }

    /// Whether the gradients of biases are to be computed.
    pub fn requests_bias<R: Real>(self, gradients: &Gradients<R>) -> bool {
        gradients.requests(self.bias)
    }

    /// Adds to the gradient of kernel number `index` if it is requested.
    pub fn add_kernel_gradient<R: Real>(
        self,
        context: &Context<'_, R>,
        index: usize,
        x: Inputs<'_, R>,
        dy: &ActivationPanels<R>,
        gradients: &mut Gradients<R>,
    ) -> Result<()> {
        let Some(GradientMatrix { values, is_stale }) = gradients.matrix_if_requested(self.kernel, index)
        else {
            return Ok(());
        };
        if dy.view(0).k == 0 {
            return Ok(());
        }
        let init = if *is_stale { Init::Zero } else { Init::Accumulate };
        product_with_transpose(context, x, dy, values, init)?;
        *is_stale = false;
        Ok(())
    }

    /// Adds the sum of the rows of `dy` to the gradient of bias number `index` if it is requested.
    pub fn add_bias_gradient<R: Real>(
        self,
        context: &Context<'_, R>,
        index: usize,
        dy: &[R],
        gradients: &mut Gradients<R>,
    ) -> Result<()> {
        match gradients.if_requested(self.bias) {
            Some(all) => {
                let all = all.row_major();
                let len = all.len() / self.count;
                bias_gradient(context, dy, &mut all[index * len..][..len])
            }
            None => Ok(()),
        }
    }
}

impl<'a, R: Real> Product<'a, R> {
    /// Products with `right`, added to `bias` if there is one.
    pub fn new(right: Panels<'a, R>, bias: Option<&'a [R]>) -> Self {
        Product { right, bias }
    }

    /// Products with a kernel that [`Context::transposed`] has transposed: `dx = dy W^T`.
    pub fn transposed(kernel: &'a ActivationPanels<R>) -> Self {
        Product { right: kernel.view(0), bias: None }
    }

    /// Width of what is multiplied.
    pub fn k(&self) -> usize {
        self.right.k
    }

    /// Width of the result.
    pub fn n(&self) -> usize {
        self.right.n
    }

    /// How left operands are to be prepared.
    pub fn dtype(&self) -> Dtype {
        self.right.dtype()
    }

    /// `rows` rows of `x`, `[rows, k]`, as a left operand.
    pub fn prepare<'x>(&self, isa: Isa, x: &'x [R], rows: usize, lhs: &'x mut LhsBuffer) -> Lhs<'x, R> {
        prepare_lhs(isa, x, rows, self.k(), self.k(), self.dtype(), lhs)
    }

    /// `out = x W + b` for `rows` rows.
    pub fn rows(&self, isa: Isa, x: &[R], rows: usize, out: &mut [R], lhs: &mut LhsBuffer) {
        let x = self.prepare(isa, x, rows, lhs);
        self.columns(isa, x, rows, 0..self.n(), out);
    }

    /// `out += x W` for `rows` rows.
    pub fn add_rows(&self, isa: Isa, x: &[R], rows: usize, out: &mut [R], lhs: &mut LhsBuffer) {
        let x = self.prepare(isa, x, rows, lhs);
        matmul(isa, rows, x, self.right, 0..self.n(), out, self.n(), Init::Accumulate);
    }

    /// Columns `columns` of `x W + b`, `[rows, columns.len()]`.
    pub fn columns(&self, isa: Isa, x: Lhs<'_, R>, rows: usize, columns: Range<usize>, out: &mut [R]) {
        let width = columns.len();
        self.columns_apart(isa, x, rows, columns, out, width);
    }

    /// [`Product::columns`] in rows of `out` that are `stride` values apart.
    pub fn columns_apart(
        &self,
        isa: Isa,
        x: Lhs<'_, R>,
        rows: usize,
        columns: Range<usize>,
        out: &mut [R],
        stride: usize,
    ) {
        matmul(isa, rows, x, self.right, columns, out, stride, self.init());
    }

    /// The part of `out = x W + b` that columns `inner` of `x` give, which is all that `x` holds: the first part sets
    /// `out`, the others add to it.
    pub fn inner(&self, isa: Isa, x: Lhs<'_, R>, rows: usize, inner: Range<usize>, out: &mut [R]) {
        let init = if inner.start == 0 { self.init() } else { Init::Accumulate };
        matmul(isa, rows, x, self.right.k_range(inner), 0..self.n(), out, self.n(), init);
    }

    /// `out = x W + b`, blocks of rows in parallel.
    pub fn forward(&self, context: &Context<'_, R>, x: &[R], out: &mut [R]) -> Result<()> {
        let (k, n) = (self.k(), self.n());
        if x.len() / k * n != out.len() {
            let (values, results) = (x.len(), out.len());
            return Err(Error::Internal(format!("{values} values for rows of {k} and {results} of {n}")));
        }
        let tasks = x.chunks(ROWS * k).zip(out.chunks_mut(ROWS * n));
        context.each(tasks, |(x, out), scratch| {
            let ([], [lhs, _]) = scratch.split([]);
            self.rows(context.isa, x, x.len() / k, out, lhs);
        })
    }

    /// `out = x W + b` for few rows, whose columns tasks share out. `finish` is called on each task's part of the result,
    /// some columns of all rows.
    pub fn few_rows(
        &self,
        context: &Context<'_, R>,
        x: Lhs<'_, R>,
        rows: usize,
        out: &mut [R],
        finish: impl Fn(&mut [R]) + Sync,
    ) -> Result<()> {
        self.few_rows_of(context, rows, out, |columns, out| {
            self.columns(context.isa, x, rows, columns, out);
            finish(out);
        })
    }

    /// `out = x W + b` for few rows as [`Product::few_rows`] computes it, from slices of `x`: `x` has `rows` rows of
    /// `slice` values for the first slice, as many for the second and so on; `last` has the rows of the last slice if
    /// that is shorter. Sums as [`Product::inner`] does, slice after slice.
    pub fn few_rows_in_slices(
        &self,
        context: &Context<'_, R>,
        [x, last]: [Lhs<'_, R>; 2],
        slice: usize,
        rows: usize,
        out: &mut [R],
    ) -> Result<()> {
        self.few_rows_of(context, rows, out, |columns, out| {
            for first in (0..self.k()).step_by(slice) {
                let inner = first..(first + slice).min(self.k());
                let x = if inner.len() < slice { last } else { x.skip_rows(first / slice * rows) };
                let init = if first == 0 { self.init() } else { Init::Accumulate };
                let (right, width) = (self.right.k_range(inner), columns.len());
                matmul(context.isa, rows, x, right, columns.clone(), out, width, init);
            }
        })
    }

    /// Shares out the columns of `out`: `work` gets some and the memory for them, `[rows, columns.len()]`.
    fn few_rows_of(
        &self,
        context: &Context<'_, R>,
        rows: usize,
        out: &mut [R],
        work: impl Fn(Range<usize>, &mut [R]) + Sync,
    ) -> Result<()> {
        let n = self.n();
        let width = PANEL * n.div_ceil(PANEL).div_ceil(FEW_ROWS_TASKS * context.threads());
        let mut parts = context.buffer(rows * n);
        context.each(parts.chunks_mut(rows * width).enumerate(), |(task, part), _| {
            work(task * width..task * width + part.len() / rows, part);
        })?;
        join_columns(&parts, rows, width, out, n);
        Ok(())
    }

    fn init(&self) -> Init<'a, R> {
        self.bias.map_or(Init::Zero, Init::Bias)
    }
}

/// Puts runs of `width` columns (the last may be shorter) side by side: `parts` holds `rows` rows of the first run, then
/// those of the second and so on; rows of `out` are `stride` apart.
pub fn join_columns<R: Copy>(parts: &[R], rows: usize, width: usize, out: &mut [R], stride: usize) {
    let _time = timed(Work::Copy);
    for (part, first) in parts.chunks((rows * width).max(1)).zip((0..).step_by(width.max(1))) {
        let own = part.len() / rows;
        for (row, out) in part.chunks_exact(own).zip(out.chunks_mut(stride)) {
            out[first..first + own].copy_from_slice(row);
        }
    }
}

/// `dw += x^T dy`, `[k, n]`: the sum runs over rows in order.
///
/// `x` and `dy` have as many rows; both are rounded to `dtype` first (full precision: not at all).
pub fn kernel_gradient<R: Real>(
    context: &Context<'_, R>,
    dtype: Dtype,
    x: &[R],
    dy: &[R],
    (dw, n): (&mut [R], usize),
) -> Result<()> {
    product_with_transpose(
        context,
        Inputs::Rows(x),
        &row_panels(context, dtype, dy, n)?,
        dw,
        Init::Accumulate,
    )
}

/// Rows of `n` values as a right operand.
pub fn row_panels<R: Real>(
    context: &Context<'_, R>,
    dtype: Dtype,
    values: &[R],
    n: usize,
) -> Result<ActivationPanels<R>> {
    let _place = at(Place::KernelGradient);
    let rows = values.len() / n;
    let mut panels = context.panels(dtype, 1, rows, n);
    const PER_TASK: usize = COLUMNS / PANEL;
    if rows > 0 {
        context.each(panels.chunks_mut(PER_TASK).enumerate(), |(task, mut out), _| {
            let first = task * COLUMNS;
            out.pack(context.isa, &values[first..], n, false, rows, COLUMNS.min(n - first));
        })?;
    }
    Ok(panels)
}

/// `dw = init + x^T dy`: some rows of `dw` per task.
fn product_with_transpose<R: Real>(
    context: &Context<'_, R>,
    x: Inputs<'_, R>,
    dy: &ActivationPanels<R>,
    dw: &mut [R],
    init: Init<'_, R>,
) -> Result<()> {
    let _place = at(Place::KernelGradient);
    let (isa, dy) = (context.isa, dy.view(0));
    let (rows, n) = (dy.k, dy.n);
    let k = dw.len() / n;
    let turned = match x {
        Inputs::Rows(_) if dy.dtype() != Dtype::Bfloat16 => COLUMNS * full_precision_stride::<R>(rows),
        _ => 0,
    };
    context.each(dw.chunks_mut(COLUMNS * n).enumerate(), |(task, dw), scratch| {
        let ([turned], [lhs, _]) = scratch.split([turned]);
        let own = dw.len() / n;
        let x = match x {
            Inputs::Rows(x) => {
                prepare_transposed_lhs(isa, &x[task * COLUMNS..], (own, rows), k, dy.dtype(), turned, lhs)
            }
            Inputs::Transposed(x) => x.view().skip_rows(task * COLUMNS),
        };
        matmul(isa, own, x, dy, 0..n, dw, n, init);
    })
}

/// `db += sum over rows of dy`, in order.
fn bias_gradient<R: Real>(context: &Context<'_, R>, dy: &[R], db: &mut [R]) -> Result<()> {
    let _time = timed(Work::BiasSum);
    let n = db.len();
    context.each(db.chunks_mut(4 * COLUMNS).enumerate(), |(task, db), _| {
        for row in dy.chunks_exact(n) {
            axpy(context.isa, db, R::ONE, &row[task * 4 * COLUMNS..][..db.len()]);
        }
    })
}
