//! Products with right operands stored in the type of the activations.

use super::matmul::Block;
use super::packed::offset_in_panel;
use super::{Isa, PANEL, Real, WeightDtype};

/// `out = init + a x b` for the block, sums in ascending order of `k`.
pub fn matmul<R: Real>(_isa: Isa, block: &Block<'_, R>, a: &[R], a_stride: usize, b: &[R], out: &mut [R]) {
    block.for_each_output(out, |start, r, j| {
        let panel = &b[block.panel_start(j)..];
        let at = |i| offset_in_panel(i, j % PANEL, WeightDtype::Native);
        (0..block.k).fold(start, |sum, i| sum + a[r * a_stride + i] * panel[at(i)])
    });
}
