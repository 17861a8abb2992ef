//! `out = lhs x rhs` for a block of rows: the left operand row-major, the right operand in panels.

use std::ops::Range;

use half::bf16;

use super::packed::PanelData;
use super::quantize::{quantise_row, round_row};
use super::{
    AlignedVec, Isa, PANEL, Panels, Real, WeightDtype, matmul_bf16, matmul_f16, matmul_int8, matmul_native,
};

/// A left operand in the form that products with a right operand of some [`WeightDtype`] want; made by
/// [`prepare_lhs`]. Row `r` begins at `r * stride`.
#[derive(Clone, Copy, Debug)]
pub enum Lhs<'a, R> {
    /// For `Native` and `Float16`.
    Native {
        /// Rows of `k` values.
        values: &'a [R],
        /// Elements from one row to the next.
        stride: usize,
    },
    /// For `Bfloat16`: rows padded with zeros to a multiple of 32.
    Bfloat16 {
        /// Rows of `k` rounded values.
        values: &'a [bf16],
        /// Elements from one row to the next.
        stride: usize,
    },
    /// For `Int8`: `value = scale * (byte - 128)`, rows padded with 128 to a multiple of 64.
    Int8 {
        /// Rows of `k` quantised values.
        values: &'a [u8],
        /// Elements from one row to the next.
        stride: usize,
        /// One scale per row.
        scales: &'a [f32],
    },
}

/// Memory for a converted left operand, reused between products.
#[derive(Debug, Default)]
pub struct LhsBuffer {
    bfloat16: AlignedVec<bf16>,
    int8: AlignedVec<u8>,
    scales: Vec<f32>,
}

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

/// Elements from one row of a left operand to the next: `k` padded for `dtype`, and one step more where the rows
/// would otherwise lie a multiple of 512 bytes apart and compete for the same few sets of the L1 cache.
pub fn lhs_stride(k: usize, dtype: WeightDtype) -> usize {
    let step = dtype.k_multiple();
    let padded = k.next_multiple_of(step);
    if step > 1 && padded.is_multiple_of(8 * step) { padded + step } else { padded }
}

/// Converts `rows` rows of `k` values, `stride` apart, for products with right operands of `dtype`.
///
/// A row with an infinity or a NaN makes every result that comes from it infinite or NaN, in 8 bits too.
pub fn prepare_lhs<'a, R: Real>(
    isa: Isa,
    source: &'a [R],
    rows: usize,
    k: usize,
    stride: usize,
    dtype: WeightDtype,
    buffer: &'a mut LhsBuffer,
) -> Lhs<'a, R> {
    let to_stride = lhs_stride(k, dtype);
    let padded = k.next_multiple_of(dtype.k_multiple());
    match dtype {
        WeightDtype::Native | WeightDtype::Float16 => Lhs::Native { values: source, stride },
        WeightDtype::Bfloat16 => {
            buffer.bfloat16.ensure_len(rows * to_stride);
            let values = &mut buffer.bfloat16[..];
            for_each_f32_row(source, rows, k, stride, |r, row| {
                round_row(isa, row, &mut values[r * to_stride..][..padded]);
            });
            Lhs::Bfloat16 { values, stride: to_stride }
        }
        WeightDtype::Int8 => {
            buffer.int8.ensure_len(rows * to_stride);
            buffer.scales.clear();
            let (values, scales) = (&mut buffer.int8[..], &mut buffer.scales);
            for_each_f32_row(source, rows, k, stride, |r, row| {
                scales.push(quantise_row(isa, row, &mut values[r * to_stride..][..padded]));
            });
            Lhs::Int8 { values, stride: to_stride, scales }
        }
    }
}

/// Visits rows of `k` values, `stride` apart, narrowed to `f32` if they are wider.
fn for_each_f32_row<R: Real>(
    source: &[R],
    rows: usize,
    k: usize,
    stride: usize,
    mut visit: impl FnMut(usize, &[f32]),
) {
    for r in 0..rows {
        let row = &source[r * stride..][..k];
        match R::f32_slice(row) {
            Some(row) => visit(r, row),
            None => visit(r, &row.iter().map(|x| x.to_f32()).collect::<Vec<_>>()),
        }
    }
}

impl<'a, R: Real> Lhs<'a, R> {
    /// The same operand without its first `rows` rows.
    pub fn skip_rows(self, rows: usize) -> Lhs<'a, R> {
        match self {
            Lhs::Native { values, stride } => Lhs::Native { values: &values[rows * stride..], stride },
            Lhs::Bfloat16 { values, stride } => Lhs::Bfloat16 { values: &values[rows * stride..], stride },
            Lhs::Int8 { values, stride, scales } => {
                Lhs::Int8 { values: &values[rows * stride..], stride, scales: &scales[rows..] }
            }
        }
    }
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
        (Lhs::Native { values, stride }, PanelData::Native(b)) => {
            matmul_native::matmul(isa, &block, values, stride, b, out);
        }
        (Lhs::Native { values, stride }, PanelData::Float16(b)) => {
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
