//! `out = lhs x rhs` for a block of rows: the left operand row-major, the right operand in panels.

use std::ops::Range;

use half::bf16;

use super::packed::{INT8_K_BLOCK, PanelData, offset_in_panel};
use super::{AlignedVec, Isa, PANEL, Panels, Real, WeightDtype};

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
    _isa: Isa,
    rows: usize,
    lhs: Lhs<'_, R>,
    rhs: Panels<'_, R>,
    cols: Range<usize>,
    out: &mut [R],
    out_stride: usize,
    init: Init<'_, R>,
) {
    assert!(cols.start.is_multiple_of(PANEL) && cols.end <= rhs.n);
    for r in 0..rows {
        for j in cols.clone() {
            let out = &mut out[r * out_stride + j - cols.start];
            let start = match init {
                Init::Zero => R::ZERO,
                Init::Bias(bias) => bias[j],
                Init::Accumulate => *out,
            };
            let panel = (j / PANEL) * rhs.panel_stride;
            let at = |i| panel + offset_in_panel(i, j % PANEL, rhs.dtype());
            *out = match (lhs, rhs.data) {
                (Lhs::Native { values, stride }, PanelData::Native(b)) => {
                    (0..rhs.k).fold(start, |sum, i| sum + values[r * stride + i] * b[at(i)])
                }
                (Lhs::Native { values, stride }, PanelData::Float16(b)) => (0..rhs.k)
                    .fold(start, |sum, i| sum + values[r * stride + i] * R::from_f32(b[at(i)].to_f32())),
                (Lhs::Bfloat16 { values, stride }, PanelData::Bfloat16(b)) => (0..rhs.k)
                    .fold(start, |sum, i| {
                        sum + R::from_f32(values[r * stride + i].to_f32() * b[at(i)].to_f32())
                    }),
                (
                    Lhs::Int8 { values, stride, scales },
                    PanelData::Int8 { values: b, scales: column, block_sums },
                ) => {
                    let dot: i32 =
                        (0..rhs.k).map(|i| i32::from(values[r * stride + i]) * i32::from(b[at(i)])).sum();
                    let sum_b: i32 = (0..rhs.k.div_ceil(INT8_K_BLOCK))
                        .map(|block| block_sums[block * rhs.n.next_multiple_of(PANEL) + j])
                        .sum();
                    start + R::from_f32((dot - 128 * sum_b) as f32 * (scales[r] * column[j]))
                }
                _ => panic!("the left operand was prepared for another storage type"),
            };
        }
    }
}
