//! Right operands of products as kernels see them: borrowed panels ([`layout`](super::layout)).

use std::ops::Range;

use half::{bf16, f16};

use super::layout::{INT8_K_BLOCK, PANEL, offset_in_panel, packed_len, padded_k};
use crate::kernels::dtype::Dtype;
use crate::kernels::isa::Real;

/// A borrowed matrix in panels, perhaps a run of its rows.
#[derive(Clone, Copy, Debug)]
pub struct Panels<'a, R> {
    /// Rows in view.
    pub k: usize,
    /// Columns.
    pub n: usize,
    /// Elements from one panel to the next.
    pub(super) panel_stride: usize,
    pub(super) data: PanelData<'a, R>,
}

/// Elements of the first panel's first row in view onwards.
#[derive(Clone, Copy, Debug)]
pub(super) enum PanelData<'a, R> {
    FullPrecision(&'a [R]),
    Bfloat16(&'a [bf16]),
    Float16(&'a [f16]),
    Int8 { values: &'a [i8], scales: &'a [f32], block_sums: &'a [i32] },
}

impl<'a, R: Real> Panels<'a, R> {
    /// Storage type.
    pub fn dtype(&self) -> Dtype {
        match self.data {
            PanelData::FullPrecision(_) => Dtype::Float32,
            PanelData::Bfloat16(_) => Dtype::Bfloat16,
            PanelData::Float16(_) => Dtype::Float16,
            PanelData::Int8 { .. } => Dtype::Int8,
        }
    }

    /// A `Float32` right operand over `panels` (layout in the module's text), `k x n`.
    pub fn from_full_precision(panels: &'a [R], k: usize, n: usize) -> Self {
        assert!(panels.len() >= packed_len(k, n, Dtype::Float32));
        Panels { k, n, panel_stride: k * PANEL, data: PanelData::FullPrecision(panels) }
    }

    /// A `Bfloat16` right operand over `panels` as [`pack_bfloat16`](super::pack::pack_bfloat16) fills them, `k x n`.
    pub fn from_bfloat16(panels: &'a [bf16], k: usize, n: usize) -> Self {
        assert!(panels.len() >= packed_len(k, n, Dtype::Bfloat16));
        let panel_stride = padded_k(k, Dtype::Bfloat16) * PANEL;
        Panels { k, n, panel_stride, data: PanelData::Bfloat16(panels) }
    }

    /// Rows `range` of the matrix. `range.start` must be a multiple of what rows are padded to, for `Int8` of
    /// [`INT8_K_BLOCK`]; `range.end` too, unless it is the last row.
    pub fn k_range(&self, range: Range<usize>) -> Panels<'a, R> {
        assert!(range.start <= range.end && range.end <= self.k, "rows {range:?} of {}", self.k);
        let at = range.start * PANEL;
        let data = match self.data {
            PanelData::FullPrecision(v) => PanelData::FullPrecision(&v[at..]),
            PanelData::Float16(v) => PanelData::Float16(&v[at..]),
            PanelData::Bfloat16(v) => {
                assert!(range.start.is_multiple_of(32));
                PanelData::Bfloat16(&v[at..])
            }
            PanelData::Int8 { values, scales, block_sums } => {
                assert!(range.start.is_multiple_of(INT8_K_BLOCK));
                let skip = range.start / INT8_K_BLOCK * self.n.next_multiple_of(PANEL);
                PanelData::Int8 { values: &values[at..], scales, block_sums: &block_sums[skip..] }
            }
        };
        Panels { k: range.end - range.start, data, ..*self }
    }

    /// The values of panel `p` row by row, [`PANEL`] in each, widened.
    pub(super) fn widened_panel(&self, p: usize) -> Vec<R> {
        let mut out = vec![R::ZERO; self.k * PANEL];
        let (start, dtype) = (p * self.panel_stride, self.dtype());
        for (i, row) in out.chunks_exact_mut(PANEL).enumerate() {
            for (c, x) in row.iter_mut().enumerate() {
                let at = start + offset_in_panel(i, c, dtype);
                *x = match self.data {
                    PanelData::FullPrecision(v) => v[at],
                    PanelData::Bfloat16(v) => R::from_f32(v[at].to_f32()),
                    PanelData::Float16(v) => R::from_f32(v[at].to_f32()),
                    PanelData::Int8 { values, scales, .. } => {
                        R::from_f32(f32::from(values[at]) * scales[p * PANEL + c])
                    }
                };
            }
        }
        out
    }

    /// Element `(i, j)`, widened.
    pub fn get(&self, i: usize, j: usize) -> R {
        let at = (j / PANEL) * self.panel_stride + offset_in_panel(i, j % PANEL, self.dtype());
        match self.data {
            PanelData::FullPrecision(v) => v[at],
            PanelData::Bfloat16(v) => R::from_f32(v[at].to_f32()),
            PanelData::Float16(v) => R::from_f32(v[at].to_f32()),
            PanelData::Int8 { values, scales, .. } => R::from_f32(f32::from(values[at]) * scales[j]),
        }
    }
}
