//! Operands of products that are computed on the way: right ones in panels, left ones in rows.
//!
//! Tasks fill disjoint parts of them: of right operands some panels, or some rows of all panels; of left operands some
//! columns of all rows.

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

    /// All panels of matrix number 0, split into runs of `rows` rows (a multiple of 32), to be filled by independent tasks.
    ///
    /// # Errors
    /// Never in fact.
    pub fn row_chunks_mut(&mut self, rows: usize) -> Result<impl Iterator<Item = PanelRowsMut<'_, R>>> {
        let panels = self.n.div_ceil(PANEL);
        Ok(self.data.column_chunks_mut(panels, self.len / panels.max(1), rows * PANEL)?.map(PanelRowsMut))
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

/// Some rows of all panels of a right operand, to be filled.
#[derive(Debug)]
pub struct PanelRowsMut<'a, R>(ColumnsMut<'a, R>);

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
    /// `rows` rows of `width` values, split into runs of `columns` columns.
    fn column_chunks_mut(
        &mut self,
        rows: usize,
        width: usize,
        columns: usize,
    ) -> Result<impl Iterator<Item = ColumnsMut<'_, R>>> {
        let whole = match self {
            OperandStorage::FullPrecision(v) => {
                ArrayViewMut2::from_shape((rows, width), v).map(ColumnsMut::FullPrecision)
            }
            OperandStorage::Bfloat16(v) => {
                ArrayViewMut2::from_shape((rows, width), v).map(ColumnsMut::Bfloat16)
            }
        };
        let whole = whole
            .map_err(|e| Error::Internal(format!("an operand of {rows} rows of {width} values: {e}")))?;
        let mut rest = Some(whole);
        Ok(std::iter::from_fn(move || {
            let (first, others) = rest.take()?.split_at(columns)?;
            rest = Some(others);
            Some(first)
        }))
    }
}

impl<R> ColumnsMut<'_, R> {
    /// The first `columns` columns, or all if there are not as many, and the others; `None` if there are none at all.
    fn split_at(self, columns: usize) -> Option<(Self, Self)> {
        match self {
            ColumnsMut::FullPrecision(v) => {
                let (first, others) = split_columns(v, columns)?;
                Some((ColumnsMut::FullPrecision(first), ColumnsMut::FullPrecision(others)))
            }
            ColumnsMut::Bfloat16(v) => {
                let (first, others) = split_columns(v, columns)?;
                Some((ColumnsMut::Bfloat16(first), ColumnsMut::Bfloat16(others)))
            }
        }
    }
}

fn split_columns<T>(
    values: ArrayViewMut2<'_, T>,
    columns: usize,
) -> Option<(ArrayViewMut2<'_, T>, ArrayViewMut2<'_, T>)> {
    let first = columns.min(values.ncols());
    (first > 0).then(|| values.split_at(Axis(1), first))
}

/// Row number `row`.
fn row_mut<'a, T>(values: &'a mut ArrayViewMut2<'_, T>, row: usize) -> &'a mut [T] {
    values.row_mut(row).into_slice().unwrap_or_default()
}

impl<R: Real> PanelRowsMut<'_, R> {
    /// Fills the rows' columns `columns` (the start a multiple of [`PANEL`]; whole panels, but for the last) from `rows` rows
    /// of activations, `stride` apart.
    pub fn pack(&mut self, isa: Isa, source: &[R], stride: usize, rows: usize, columns: Range<usize>) {
        let _time = timed(Work::Packing);
        for first in columns.clone().step_by(PANEL) {
            let (panel, own) = (first / PANEL, 0..PANEL.min(columns.end - first));
            let source = &source[first - columns.start..];
            match &mut self.0 {
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
mod tests {
    use super::*;
    use crate::kernels::prepare_transposed_lhs;
    use crate::kernels::testing::noise;

    #[test]
    fn parts_filled_one_by_one_are_the_whole() {
        let isa = Isa::fastest();
        let scratch = ScratchPool::<f32>::new();
        for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Int8] {
            for (k, n) in [(1, 1), (32, 64), (70, 100), (130, 512), (256, 33)] {
                let (stride, values) = (n + 3, noise(k * (n + 3), 1));
                let mut whole = ActivationPanels::new(&scratch, dtype, 1, k, n);
                whole.whole_mut(0).pack(isa, &values, stride, false, k, n);
                let mut parts = ActivationPanels::new(&scratch, dtype, 1, k, n);
                let mut turned = TransposedActivations::new(&scratch, dtype, n, k);
                let rows = (0..k).step_by(64).map(|first| (first, 64.min(k - first)));
                let left = turned.column_chunks_mut(64).expect("fitting");
                let right = parts.row_chunks_mut(64).expect("fitting");
                for (((first, rows), mut left), mut right) in rows.zip(left).zip(right) {
                    for columns in [0..n / 64 * 32, n / 64 * 32..n] {
                        let source = &values[first * stride + columns.start..];
                        left.fill(isa, source, stride, rows, columns.clone());
                        right.pack(isa, source, stride, rows, columns);
                    }
                }
                assert_eq!(
                    format!("{:?}", parts.view(0)),
                    format!("{:?}", whole.view(0)),
                    "{dtype:?} {k} x {n}"
                );
                let mut memory = vec![0.0; n * full_precision_stride::<f32>(k)];
                let mut buffer = Default::default();
                let dtype = dtype.of_activations();
                let expected =
                    prepare_transposed_lhs(isa, &values, (n, k), stride, dtype, &mut memory, &mut buffer);
                for row in 0..n {
                    let values = |operand: Lhs<'_, f32>| match operand.skip_rows(row) {
                        Lhs::FullPrecision { values, .. } => format!("{:?}", &values[..k]),
                        Lhs::Bfloat16 { values, .. } => format!("{:?}", &values[..k.next_multiple_of(32)]),
                        Lhs::Int8 { .. } => unreachable!("not asked for"),
                    };
                    assert_eq!(values(turned.view()), values(expected), "{dtype:?} {k} x {n}, row {row}");
                }
            }
        }
    }
}
