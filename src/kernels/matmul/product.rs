//! `out = lhs x rhs` for a block of rows: the left operand row-major, the right operand in panels.

use std::ops::Range;

use super::block::Block;
use super::init::Init;
use super::layout::PANEL;
use super::lhs::Lhs;
use super::panels::{PanelData, Panels};
use super::{bfloat16, float16, full_precision, int8};
use crate::kernels::isa::{Isa, Real};
#[cfg(test)]
use crate::kernels::testing::MULTIPLY_ADDS;
use crate::sys::timed_product;

/// `out[r, j - cols.start] = init + sum_i lhs[r, i] * rhs[i, j]` for `r < rows` and `j` in `cols`.
///
/// `cols.start` must be a multiple of [`PANEL`]; `cols.end` too, unless it is `rhs.n`. Rows of `out` are `out_stride`
/// apart. Sums run over `i` in ascending order. With [`Isa::NONE`] nothing is computed.
///
/// # Panics
/// If an operand is too short, or the left operand was prepared for another type.
pub fn matmul<R: Real>(
    isa: Isa,
    rows: usize,
    lhs: Lhs<'_, R>,
    rhs: Panels<'_, R>,
    cols: Range<usize>,
    out: &mut [R],
    out_stride: usize,
    init: Init<'_, R>,
) {
    assert!(cols.start.is_multiple_of(PANEL) && cols.end <= rhs.n, "columns {cols:?} of {}", rhs.n);
    if rows == 0 || cols.is_empty() || isa == Isa::NONE {
        return;
    }
    #[cfg(test)]
    MULTIPLY_ADDS.set(MULTIPLY_ADDS.get() + rows * rhs.k * cols.len());
    let _time = timed_product(2 * rows * rhs.k * cols.len());
    let block = Block { rows, k: rhs.k, n: rhs.n, panel_stride: rhs.panel_stride, cols, out_stride, init };
    match (lhs, rhs.data) {
        (Lhs::FullPrecision { values, stride }, PanelData::FullPrecision(b)) => {
            full_precision::matmul(isa, &block, values, stride, b, out);
        }
        (Lhs::FullPrecision { values, stride }, PanelData::Float16(b)) => {
            float16::matmul(isa, &block, values, stride, b, out);
        }
        (Lhs::Bfloat16 { values, stride }, PanelData::Bfloat16(b)) => {
            bfloat16::matmul(isa, &block, values, stride, b, out);
        }
        (
            Lhs::Int8 { values, stride, scales },
            PanelData::Int8 { values: b, scales: columns, block_sums },
        ) => {
            let lhs = int8::QuantisedRows { values, stride, scales };
            let rhs = int8::QuantisedPanels { values: b, scales: columns, block_sums };
            int8::matmul(isa, &block, lhs, rhs, out);
        }
        _ => panic!("the left operand was prepared for another storage type"),
    }
}
