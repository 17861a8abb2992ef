//! The backward pass of a layer norm over the rows of a pass.

use crate::error::Result;
use crate::kernels::Real;
use crate::layers::LayerNorm;
use crate::params::Gradients;
use crate::sys::{Work, timed};

use super::pass::{Pass, split_rows};

/// Backward of `norm` for all rows of `x`: writes `dx`, adds to the gradients of gamma and beta.
pub fn norm_backward<R: Real>(
    pass: &Pass<'_, R>,
    norm: LayerNorm,
    x: &[R],
    dy: &[R],
    dx: &mut [R],
    gradients: &mut Gradients<R>,
) -> Result<()> {
    let _time = timed(Work::Norm);
    let hidden = norm.size();
    let rows = x.len() / hidden;
    let blocks = Pass::<R>::fixed_blocks(rows);
    let mut partials = pass.context.buffer(blocks.len() * 2 * hidden);
    partials.fill(R::ZERO);
    let tasks = blocks.iter().zip(split_rows(dx, blocks.iter().map(|block| block.rows * hidden)));
    let tasks: Vec<_> = tasks.zip(partials.chunks_exact_mut(2 * hidden)).collect();
    pass.context.each(tasks.into_iter(), |((block, dx), partial), scratch| {
        let ([own], _) = scratch.split([dx.len() + 2 * block.rows]);
        norm.backward_rows(
            pass.context.isa,
            pass.weights,
            block.of(x, rows, hidden),
            block.of(dy, rows, hidden),
            dx,
            partial,
            own,
        );
    })?;
    norm.add_partials(&partials, gradients);
    Ok(())
}
