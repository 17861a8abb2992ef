//! Operands of products that are computed on the way: right ones in panels, left ones in rows.
//!
//! Tasks fill disjoint parts of them: of right operands some panels, or some rows or columns of several operands; of left
//! operands some columns of all rows.

use std::ops::Range;

use half::bf16;
use ndarray::{ArrayViewMut2, Axis};

use super::scratch::{Buffer, ScratchPool};
use crate::error::{Error, Result};
use crate::kernels::{
    Dtype, Isa, Lhs, PANEL, Panels, Real, Stored, full_precision_stride, lhs_stride, pack_bfloat16,
    pack_full_precision, packed_len, transpose, transpose_to_bfloat16, transpose_to_full_precision,
};
use crate::sys::{Work, timed};

/// Right operands that are computed on the way (keys, values, tokens to be mixed): `count` matrices of `k x n`.
#[derive(Debug)]
pub struct ActivationPanels<R: Real> {
    k: usize,
    n: usize,
    len: usize,
    data: OperandStorage<R>,
}

#[derive(Debug)]
enum OperandStorage<R: Real> {
    FullPrecision(Buffer<R>),
    Bfloat16(Buffer<bf16>),
}

/// Some panels of one of the matrices, to be filled.
#[derive(Debug)]
pub enum PanelsMut<'a, R> {
    /// In the activations' type.
    FullPrecision(&'a mut [R]),
    /// In half of its bits.
    Bfloat16(&'a mut [bf16]),
}

impl<R: Real> ActivationPanels<R> {
    /// `dtype` is that of the weights around: products of activations are in bfloat16 where those are in bfloat16 or
    /// in 8 bits, else in the activations' type.
    pub(super) fn new(scratch: &ScratchPool<R>, dtype: Dtype, count: usize, k: usize, n: usize) -> Self {
        let dtype = dtype.of_activations();
        let len = packed_len(k, n, dtype);
        let data = match dtype {
            Dtype::Bfloat16 => OperandStorage::Bfloat16(scratch.bfloat16_buffer(count * len)),
            _ => OperandStorage::FullPrecision(scratch.buffer(count * len)),
        };
        ActivationPanels { k, n, len, data }
    }

    /// Matrix number `index`.
    pub fn view(&self, index: usize) -> Panels<'_, R> {
        let at = index * self.len;
        match &self.data {
            OperandStorage::FullPrecision(v) => {
                Panels::from_full_precision(&v[at..at + self.len], self.k, self.n)
            }
            OperandStorage::Bfloat16(v) => Panels::from_bfloat16(&v[at..at + self.len], self.k, self.n),
        }
    }

    /// All panels of matrix number `index`, to be filled.
    pub fn whole_mut(&mut self, index: usize) -> PanelsMut<'_, R> {
        let own = index * self.len..(index + 1) * self.len;
        match &mut self.data {
            OperandStorage::FullPrecision(v) => PanelsMut::FullPrecision(&mut v[own]),
            OperandStorage::Bfloat16(v) => PanelsMut::Bfloat16(&mut v[own]),
        }
    }

    /// All matrices, each split into runs of `panels` panels, to be filled by independent tasks.
    pub fn chunks_mut(&mut self, panels: usize) -> impl Iterator<Item = PanelsMut<'_, R>> {
        let (len, all) = (self.len, self.n.div_ceil(PANEL));
        let chunk = len / all * panels.min(all);
        let (full, half) = match &mut self.data {
            OperandStorage::FullPrecision(v) => (&mut v[..], &mut [][..]),
            OperandStorage::Bfloat16(v) => (&mut [][..], &mut v[..]),
        };
        let full = full.chunks_exact_mut(len).flat_map(move |m| m.chunks_mut(chunk));
        let half = half.chunks_exact_mut(len).flat_map(move |m| m.chunks_mut(chunk));
        full.map(PanelsMut::FullPrecision).chain(half.map(PanelsMut::Bfloat16))
    }

    /// Matrices in runs of `matrices`, each run split after every `rows` rows (a multiple of 32), to be filled by independent
    /// tasks.
    ///
    /// # Errors
    /// Never in fact.
    pub fn row_chunks_mut(
        &mut self,
        matrices: usize,
        rows: usize,
    ) -> Result<impl Iterator<Item = PanelRowsMut<'_, R>>> {
        let panels = self.n.div_ceil(PANEL);
        let chunks =
            self.data.column_chunks_mut(matrices * panels, self.len / panels.max(1), rows * PANEL)?;
        Ok(chunks.map(move |values| PanelRowsMut { panels, values }))
    }

    /// The same, split after every `columns` columns (a multiple of [`PANEL`]).
    ///
    /// # Errors
    /// Never in fact.
    pub fn column_chunks_mut(
        &mut self,
        matrices: usize,
        columns: usize,
    ) -> Result<impl Iterator<Item = PanelColumnsMut<'_, R>>> {
        let panel = self.len / self.n.div_ceil(PANEL).max(1);
        Ok(self
            .data
            .column_chunks_mut(matrices, self.len, columns.div_ceil(PANEL) * panel)?
            .map(PanelColumnsMut))
    }
}

/// Left operands that are computed on the way: the transpose of `k` rows of activations, `[rows, k]`.
#[derive(Debug)]
pub struct TransposedActivations<R: Real> {
    rows: usize,
    stride: usize,
    data: OperandStorage<R>,
}

/// Some columns of all rows of an operand as it lies in memory, to be filled.
#[derive(Debug)]
pub enum ColumnsMut<'a, R> {
    /// In the activations' type.
    FullPrecision(ArrayViewMut2<'a, R>),
    /// In half of its bits.
    Bfloat16(ArrayViewMut2<'a, bf16>),
}

/// Some rows of right operands, to be filled.
#[derive(Debug)]
pub struct PanelRowsMut<'a, R> {
    /// Of each operand.
    panels: usize,
    /// A row for each panel.
    values: ColumnsMut<'a, R>,
}

/// Some columns of right operands, to be filled: a row for each operand.
#[derive(Debug)]
pub struct PanelColumnsMut<'a, R>(ColumnsMut<'a, R>);

/// Some columns of a left operand, to be filled.
#[derive(Debug)]
pub struct TransposedColumnsMut<'a, R>(ColumnsMut<'a, R>);

impl<R: Real> TransposedActivations<R> {
    /// `dtype` as for [`ActivationPanels`].
    pub(super) fn new(scratch: &ScratchPool<R>, dtype: Dtype, rows: usize, k: usize) -> Self {
        let dtype = dtype.of_activations();
        let (stride, data) = match dtype {
            Dtype::Bfloat16 => {
                let stride = lhs_stride(k, dtype);
                (stride, OperandStorage::Bfloat16(scratch.bfloat16_buffer(rows * stride)))
            }
            _ => {
                let stride = full_precision_stride::<R>(k);
                (stride, OperandStorage::FullPrecision(scratch.buffer(rows * stride)))
            }
        };
        TransposedActivations { rows, stride, data }
    }

    /// The operand, for products with panels of the same `dtype`.
    pub fn view(&self) -> Lhs<'_, R> {
        match &self.data {
            OperandStorage::FullPrecision(values) => Lhs::FullPrecision { values, stride: self.stride },
            OperandStorage::Bfloat16(values) => Lhs::Bfloat16 { values, stride: self.stride },
        }
    }

    /// Runs of `columns` columns (a multiple of 32), to be filled by independent tasks.
    ///
    /// # Errors
    /// Never in fact.
    pub fn column_chunks_mut(
        &mut self,
        columns: usize,
    ) -> Result<impl Iterator<Item = TransposedColumnsMut<'_, R>>> {
        Ok(self.data.column_chunks_mut(self.rows, self.stride, columns)?.map(TransposedColumnsMut))
    }
}

impl<R: Real> OperandStorage<R> {
    /// Arrays of `rows` rows of `width` values, below each other, each split into runs of `columns` columns.
    fn column_chunks_mut(
        &mut self,
        rows: usize,
        width: usize,
        columns: usize,
    ) -> Result<impl Iterator<Item = ColumnsMut<'_, R>>> {
        let all = |len: usize| (len / width.max(1), width);
        let whole = match self {
            OperandStorage::FullPrecision(v) => {
                ArrayViewMut2::from_shape(all(v.len()), v).map(ColumnsMut::FullPrecision)
            }
            OperandStorage::Bfloat16(v) => {
                ArrayViewMut2::from_shape(all(v.len()), v).map(ColumnsMut::Bfloat16)
            }
        };
        let whole = whole.map_err(|e| Error::Internal(format!("operands of rows of {width} values: {e}")))?;
        let (mut rest, mut array) = (Some(whole), None);
        Ok(std::iter::from_fn(move || {
            loop {
                if let Some((first, others)) =
                    array.take().and_then(|v: ColumnsMut<'_, R>| v.split_at(1, columns))
                {
                    array = Some(others);
                    return Some(first);
                }
                let (first, others) = rest.take()?.split_at(0, rows)?;
                (array, rest) = (Some(first), Some(others));
            }
        }))
    }
}

impl<R> ColumnsMut<'_, R> {
    /// The first `count` rows (`axis` 0) or columns (1), or all if there are not as many, and the others; `None` if there are
    /// none at all.
    fn split_at(self, axis: usize, count: usize) -> Option<(Self, Self)> {
        match self {
            ColumnsMut::FullPrecision(v) => {
                let (first, others) = split_array(v, axis, count)?;
                Some((ColumnsMut::FullPrecision(first), ColumnsMut::FullPrecision(others)))
            }
            ColumnsMut::Bfloat16(v) => {
                let (first, others) = split_array(v, axis, count)?;
                Some((ColumnsMut::Bfloat16(first), ColumnsMut::Bfloat16(others)))
            }
        }
    }
}

fn split_array<T>(
    values: ArrayViewMut2<'_, T>,
    axis: usize,
    count: usize,
) -> Option<(ArrayViewMut2<'_, T>, ArrayViewMut2<'_, T>)> {
    let first = count.min(values.len_of(Axis(axis)));
    (first > 0).then(|| values.split_at(Axis(axis), first))
}

/// Row number `row`.
fn row_mut<'a, T>(values: &'a mut ArrayViewMut2<'_, T>, row: usize) -> &'a mut [T] {
    values.row_mut(row).into_slice().unwrap_or_default()
}

impl<R: Real> PanelRowsMut<'_, R> {
    /// Fills columns `columns` (the start a multiple of [`PANEL`]; whole panels, but for the last) of the rows of matrix number
    /// `matrix` of the run from `rows` rows of activations, `stride` apart.
    pub fn pack(
        &mut self,
        isa: Isa,
        matrix: usize,
        source: &[R],
        stride: usize,
        rows: usize,
        columns: Range<usize>,
    ) {
        let _time = timed(Work::Packing);
        for first in columns.clone().step_by(PANEL) {
            let (panel, own) = (matrix * self.panels + first / PANEL, 0..PANEL.min(columns.end - first));
            let source = &source[first - columns.start..];
            match &mut self.values {
                ColumnsMut::FullPrecision(out) => {
                    pack_full_precision(isa, source, stride, false, rows, own, row_mut(out, panel));
                }
                ColumnsMut::Bfloat16(out) => {
                    pack_bfloat16(isa, source, stride, false, rows, own, row_mut(out, panel));
                }
            }
        }
    }
}

impl<R: Real> PanelColumnsMut<'_, R> {
    /// Fills the first `columns` columns of matrix number `matrix` of the run, `k` values each, from as many rows of
    /// activations, `stride` apart.
    pub fn pack_transposed(
        &mut self,
        isa: Isa,
        matrix: usize,
        source: &[R],
        stride: usize,
        k: usize,
        columns: usize,
    ) {
        let mut own = match &mut self.0 {
            ColumnsMut::FullPrecision(out) => PanelsMut::FullPrecision(row_mut(out, matrix)),
            ColumnsMut::Bfloat16(out) => PanelsMut::Bfloat16(row_mut(out, matrix)),
        };
        own.pack(isa, source, stride, true, k, columns);
    }
}

impl<R: Real> TransposedColumnsMut<'_, R> {
    /// Fills rows `rows` of the operand from as many columns of `k` rows of activations, `stride` apart.
    pub fn fill(&mut self, isa: Isa, source: &[R], stride: usize, k: usize, rows: Range<usize>) {
        let _time = timed(Work::Transpose);
        match &mut self.0 {
            ColumnsMut::FullPrecision(out) => fill_transposed(isa, source, stride, k, rows, out, R::ZERO),
            ColumnsMut::Bfloat16(out) => fill_transposed(isa, source, stride, k, rows, out, bf16::ZERO),
        }
    }
}

/// `out[c, r] = source[r, c - columns.start]` for the first `rows` columns of `out`; the others become `zero`.
fn fill_transposed<R: Real, T: Stored<R> + Copy>(
    isa: Isa,
    source: &[R],
    stride: usize,
    rows: usize,
    columns: Range<usize>,
    out: &mut ArrayViewMut2<'_, T>,
    zero: T,
) {
    // A tile of so many rows and columns is turned in the L1 cache: `out` cannot be written as one slice.
    const TILE: usize = 64;
    let mut tile = [zero; TILE * TILE];
    for first in columns.clone().step_by(TILE) {
        let across = TILE.min(columns.end - first);
        for first_row in (0..rows).step_by(TILE) {
            let down = TILE.min(rows - first_row);
            let source = &source[first_row * stride + first - columns.start..];
            transpose(isa, source, down, across, stride, &mut tile, TILE);
            for (turned, at) in tile.chunks_exact(TILE).zip(first..first + across) {
                row_mut(out, at)[first_row..first_row + down].copy_from_slice(&turned[..down]);
            }
        }
        (first..first + across).for_each(|at| row_mut(out, at)[rows..].fill(zero));
    }
}

impl<R: Real> PanelsMut<'_, R> {
    /// Fills the panels from rows (or columns, if `transposed`) of activations; see [`pack_full_precision`].
    pub fn pack(&mut self, isa: Isa, source: &[R], stride: usize, transposed: bool, k: usize, n: usize) {
        let _time = timed(Work::Packing);
        match self {
            PanelsMut::FullPrecision(out) => {
                pack_full_precision(isa, source, stride, transposed, k, 0..n, out)
            }
            PanelsMut::Bfloat16(out) => pack_bfloat16(isa, source, stride, transposed, k, 0..n, out),
        }
    }

    /// Fills panel number `panel`, which these must be, of the transpose of `matrix`.
    pub fn transpose(&mut self, isa: Isa, matrix: &Panels<'_, R>, panel: usize) {
        match self {
            PanelsMut::FullPrecision(out) => transpose_to_full_precision(isa, matrix, panel, out),
            PanelsMut::Bfloat16(out) => transpose_to_bfloat16(matrix, panel, out),
        }
    }
}

#[cfg(test)]
mod tests;
