//! Products of 8-bit operands with 32-bit integer sums.

use super::matmul::Block;
use super::packed::offset_in_panel;
use super::{INT8_K_BLOCK, Isa, PANEL, Real, WeightDtype};

/// Rows `scales[r] * (values[r * stride + i] - 128)`.
#[derive(Clone, Copy)]
pub struct QuantisedRows<'a> {
    /// Bytes.
    pub values: &'a [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
    /// One per row.
    pub scales: &'a [f32],
}

/// Columns `scales[j] * values[i][j]`, with the sums of each column's bytes over blocks of [`INT8_K_BLOCK`] rows.
#[derive(Clone, Copy)]
pub struct QuantisedPanels<'a> {
    /// Bytes, in panels.
    pub values: &'a [i8],
    /// One per column.
    pub scales: &'a [f32],
    /// One per block of rows and column.
    pub block_sums: &'a [i32],
}

/// `out = init + a x b` for the block; the integer sums are exact.
pub fn matmul<R: Real>(
    _isa: Isa,
    block: &Block<'_, R>,
    a: QuantisedRows<'_>,
    b: QuantisedPanels<'_>,
    out: &mut [R],
) {
    block.for_each_output(out, |start, r, j| {
        let panel = &b.values[block.panel_start(j)..];
        let at = |i| offset_in_panel(i, j % PANEL, WeightDtype::Int8);
        let product = |i: usize| i32::from(a.values[r * a.stride + i]) * i32::from(panel[at(i)]);
        let dot: i32 = (0..block.k).map(product).sum();
        let sum_b: i32 = (0..block.k.div_ceil(INT8_K_BLOCK))
            .map(|step| b.block_sums[step * block.n.next_multiple_of(PANEL) + j])
            .sum();
        start + R::from_f32((dot - 128 * sum_b) as f32 * (a.scales[r] * b.scales[j]))
    });
}
