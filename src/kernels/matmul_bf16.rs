//! Products of bfloat16 operands with `f32` sums.

use half::bf16;

use super::matmul::Block;
use super::packed::offset_in_panel;
use super::{Isa, PANEL, Real, WeightDtype};

/// `out = init + a x b` for the block, sums in ascending order of `k`.
pub fn matmul<R: Real>(
    _isa: Isa,
    block: &Block<'_, R>,
    a: &[bf16],
    a_stride: usize,
    b: &[bf16],
    out: &mut [R],
) {
    block.for_each_output(out, |start, r, j| {
        let panel = &b[block.panel_start(j)..];
        let at = |i| offset_in_panel(i, j % PANEL, WeightDtype::Bfloat16);
        let product = |i: usize| a[r * a_stride + i].to_f32() * panel[at(i)].to_f32();
        (0..block.k).fold(start, |sum, i| sum + R::from_f32(product(i)))
    });
}
