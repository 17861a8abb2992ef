//! `out = lhs x rhs` for a block of rows: the left operand row-major, the right operand in panels.

use std::ops::Range;

use half::bf16;

use super::packed::PanelData;
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

/// Converts `rows` rows of `k` values, `stride` apart, for products with right operands of `dtype`.
pub fn prepare_lhs<'a, R: Real>(
    _isa: Isa,
    source: &'a [R],
    rows: usize,
    k: usize,
    stride: usize,
    dtype: WeightDtype,
    buffer: &'a mut LhsBuffer,
) -> Lhs<'a, R> {
    let padded = k.next_multiple_of(dtype.k_multiple());
    match dtype {
        WeightDtype::Native | WeightDtype::Float16 => Lhs::Native { values: source, stride },
        WeightDtype::Bfloat16 => {
            buffer.bfloat16.ensure_len(rows * padded);
            for (r, out) in buffer.bfloat16.chunks_exact_mut(padded).take(rows).enumerate() {
                for (o, x) in out.iter_mut().zip(&source[r * stride..][..k]) {
                    *o = bf16::from_f32(x.to_f32());
                }
                out[k..].fill(bf16::ZERO);
            }
            Lhs::Bfloat16 { values: &buffer.bfloat16, stride: padded }
        }
        WeightDtype::Int8 => {
            buffer.int8.ensure_len(rows * padded);
            buffer.scales.clear();
            for (r, out) in buffer.int8.chunks_exact_mut(padded).take(rows).enumerate() {
                let row = &source[r * stride..][..k];
                let largest = row.iter().fold(0f32, |m, x| m.max(x.to_f32().abs()));
                let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
                for (o, x) in out.iter_mut().zip(row) {
                    *o = ((x.to_f32() / scale).round_ties_even() as i32 + 128) as u8;
                }
                out[k..].fill(128);
                buffer.scales.push(scale);
            }
            Lhs::Int8 { values: &buffer.int8, stride: padded, scales: &buffer.scales }
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
