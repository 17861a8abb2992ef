//! Gradients of `y = x W + b` that many layers share, summed over all rows of a batch in row order: the same bits for
//! any number of threads.

use crate::error::Result;
use crate::kernels::{Dtype, Init, PANEL, Real, axpy, full_precision_stride, matmul, prepare_lhs, transpose};
use crate::runtime::Context;

/// Columns that a task turns, or sums up.
const COLUMNS: usize = 64;

/// `dw += x^T dy`, `[k, n]`: the sum runs over rows `0..rows` in order.
///
/// `x` has `rows` rows of `k`, `dy` rows of `n`; both are rounded to `dtype` first (`Native`: not at all).
pub fn kernel_gradient<R: Real>(
    context: &Context<'_, R>,
    dtype: Dtype,
    rows: usize,
    x: &[R],
    dy: &[R],
    dw: &mut [R],
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let (isa, k, n) = (context.isa, x.len() / rows, dy.len() / rows);
    // 1. x^T, [k, rows]
    let stride = full_precision_stride::<R>(rows);
    let mut transposed = context.buffer(k * stride);
    context.each(transposed.chunks_mut(COLUMNS * stride).enumerate(), |(task, out), _| {
        transpose(isa, &x[task * COLUMNS..], rows, out.len() / stride, k, out, stride);
    })?;
    // 2. dy in panels
    let mut panels = context.panels(dtype, 1, rows, n);
    const PER_TASK: usize = COLUMNS / PANEL;
    context.each(panels.chunks_mut(PER_TASK).into_iter().enumerate(), |(task, mut out), _| {
        let first = task * COLUMNS;
        out.pack(isa, &dy[first..], n, false, rows, COLUMNS.min(n - first));
    })?;
    // 3. products, some rows of dw per task
    let panels = panels.view(0);
    context.each(dw.chunks_mut(COLUMNS * n).enumerate(), |(task, dw), scratch| {
        let (_, [lhs, _]) = scratch.split([]);
        let own = dw.len() / n;
        let x = &transposed[task * COLUMNS * stride..];
        let x = prepare_lhs(isa, x, own, rows, stride, panels.dtype(), lhs);
        matmul(isa, own, x, panels, 0..n, dw, n, Init::Accumulate);
    })
}

/// `db += sum over rows of dy`, rows of `db.len()`.
pub fn bias_gradient<R: Real>(context: &Context<'_, R>, dy: &[R], db: &mut [R]) -> Result<()> {
    let n = db.len();
    context.each(db.chunks_mut(4 * COLUMNS).enumerate(), |(task, db), _| {
        for row in dy.chunks_exact(n) {
            axpy(context.isa, db, R::ONE, &row[task * 4 * COLUMNS..][..db.len()]);
        }
    })
}
