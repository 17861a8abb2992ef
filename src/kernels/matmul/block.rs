//! The part of a product that a kernel is asked for.

use std::ops::Range;

use super::init::Init;
use super::layout::PANEL;
use crate::kernels::isa::Real;

/// What all kernels of a product need to know besides the operands.
pub struct Block<'a, R> {
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
