//! `out = lhs x rhs` for a block of rows: the left operand row-major, the right operand in panels.

use std::ops::Range;

use super::packed::PanelData;
use super::{Isa, Lhs, PANEL, Panels, Real, matmul_bf16, matmul_f16, matmul_full_precision, matmul_int8};

/// What the product is added to.
#[derive(Clone, Copy, Debug)]
pub enum Init<'a, R> {
    /// Nothing.
    Zero,
    /// A row, one value per column of the whole right operand.
    Bias(&'a [R]),
    /// What `out` holds.
    Accumulate,
}

/// `out[r, j - cols.start] = init + sum_i lhs[r, i] * rhs[i, j]` for `r < rows` and `j` in `cols`.
///
/// `cols.start` must be a multiple of [`PANEL`]; `cols.end` too, unless it is `rhs.n`. Rows of `out` are `out_stride`
/// apart. Sums run over `i` in ascending order.
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
    if rows == 0 || cols.is_empty() {
        return;
    }
    let block = Block { rows, k: rhs.k, n: rhs.n, panel_stride: rhs.panel_stride, cols, out_stride, init };
    match (lhs, rhs.data) {
        (Lhs::FullPrecision { values, stride }, PanelData::FullPrecision(b)) => {
            matmul_full_precision::matmul(isa, &block, values, stride, b, out);
        }
        (Lhs::FullPrecision { values, stride }, PanelData::Float16(b)) => {
            matmul_f16::matmul(isa, &block, values, stride, b, out);
        }
        (Lhs::Bfloat16 { values, stride }, PanelData::Bfloat16(b)) => {
            matmul_bf16::matmul(isa, &block, values, stride, b, out);
        }
        (
            Lhs::Int8 { values, stride, scales },
            PanelData::Int8 { values: b, scales: columns, block_sums },
        ) => {
            let lhs = matmul_int8::QuantisedRows { values, stride, scales };
            let rhs = matmul_int8::QuantisedPanels { values: b, scales: columns, block_sums };
            matmul_int8::matmul(isa, &block, lhs, rhs, out);
        }
        _ => panic!("the left operand was prepared for another storage type"),
    }
}

/// What all kernels of a product need to know besides the operands.
pub(super) struct Block<'a, R> {
    /// Rows of the result.
    pub rows: usize,
    /// Terms of each sum.
    pub k: usize,
    /// Columns of the whole right operand.
    pub n: usize,
    /// Elements from one panel to the next.
    pub panel_stride: usize,
    /// Columns to compute, from the start of a panel.
    pub cols: Range<usize>,
    /// Elements from one row of the result to the next.
    pub out_stride: usize,
    /// What the product is added to.
    pub init: Init<'a, R>,
}

impl<R: Real> Block<'_, R> {
    /// The same block, if its elements are `f32`.
    pub fn as_f32(&self) -> Option<Block<'_, f32>> {
        let init = match self.init {
            Init::Zero => Init::Zero,
            Init::Bias(bias) => Init::Bias(R::f32_slice(bias)?),
            Init::Accumulate => Init::Accumulate,
        };
        R::f32_slice(&[])?;
        let Block { rows, k, n, panel_stride, out_stride, .. } = *self;
        Some(Block { rows, k, n, panel_stride, cols: self.cols.clone(), out_stride, init })
    }

    /// Panics unless `rows` left rows of `padded_k` elements, the panels, the bias and the results lie inside slices
    /// of these lengths; the block must have a row and a column.
    pub fn assert_inside(&self, a: usize, a_stride: usize, b: usize, padded_k: usize, out: usize) {
        let last_row = self.rows - 1;
        let last_panel = self.panel_start(self.cols.end - 1);
        assert!(a >= last_row * a_stride + padded_k, "the left operand is too short");
        assert!(b >= last_panel + padded_k * PANEL, "the right operand is too short");
        assert!(out >= last_row * self.out_stride + self.cols.len(), "the result is too short");
        if let Init::Bias(bias) = self.init {
            assert!(bias.len() >= self.cols.end, "the bias is too short");
        }
    }

    /// Sets each output to its initial value plus `sum(row, column)`: the plain form of every kernel.
    pub fn for_each_output(&self, out: &mut [R], sum: impl Fn(R, usize, usize) -> R) {
        for r in 0..self.rows {
            for j in self.cols.clone() {
                let out = &mut out[r * self.out_stride + j - self.cols.start];
                let start = match self.init {
                    Init::Zero => R::ZERO,
                    Init::Bias(bias) => bias[j],
                    Init::Accumulate => *out,
                };
                *out = sum(start, r, j);
            }
        }
    }

    /// Where element `(0, j)` of the right operand begins.
    pub fn panel_start(&self, j: usize) -> usize {
        j / PANEL * self.panel_stride
    }
}
