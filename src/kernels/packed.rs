//! Right operands of products, packed in panels of [`PANEL`] columns.
//!
//! A `k x n` matrix becomes `ceil(n / 32)` panels. Element `(i, j)` of panel `p = j / 32`, column `c = j % 32`, is at
//! - `Native` and `Float16`: `[p][i][c]`
//! - `Bfloat16`: `[p][i / 2][c][i % 2]`, `k` padded with zeros to a multiple of 32
//! - `Int8`: `[p][i / 4][c][i % 4]`, `k` padded with zeros to a multiple of 64
//!
//! Missing columns of the last panel are zeros.

use std::mem::MaybeUninit;
use std::ops::Range;

use half::{bf16, f16};

use super::quantize::{pack_bfloat16_panel, pack_bfloat16_panel_transposed};
use super::{AlignedVec, Isa, LowPrecision, ParallelFor, Real, transpose};

/// Columns in a panel.
pub const PANEL: usize = 32;
/// Panels that a thread packs at least, so that it reads a few KiB of each row at a time.
const LEAST_PANELS: usize = 16;

/// Storage type of a matrix that stands on the right of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightDtype {
    /// The type of the activations (`f32`; `f64` in gradient tests).
    FullPrecision,
    /// bfloat16 weights and activations, `f32` sums.
    Bfloat16,
    /// float16 weights, widened to `f32` as they are read.
    Float16,
    /// 8-bit weights with one scale per output column, 8-bit activations with one scale per row, 32-bit integer sums.
    Int8,
}

impl WeightDtype {
    /// Rows are padded to a multiple of this.
    pub fn k_multiple(self) -> usize {
        match self {
            WeightDtype::FullPrecision | WeightDtype::Float16 => 1,
            WeightDtype::Bfloat16 => 32,
            WeightDtype::Int8 => 64,
        }
    }
}

/// k-ranges of an `Int8` matrix must begin at a multiple of this (column sums are kept per block).
pub const INT8_K_BLOCK: usize = 256;

#[derive(Clone, Debug)]
enum Storage<R> {
    FullPrecision(AlignedVec<R>),
    Bfloat16(AlignedVec<bf16>),
    Float16(AlignedVec<f16>),
    /// `block_sums[b * padded_n + j]` is the sum of column `j` over the `b`-th block of [`INT8_K_BLOCK`] rows.
    Int8 {
        values: AlignedVec<i8>,
        scales: Vec<f32>,
        block_sums: Vec<i32>,
    },
}

/// An owned `k x n` matrix in panels.
#[derive(Clone, Debug)]
pub struct PackedMatrix<R> {
    k: usize,
    n: usize,
    storage: Storage<R>,
}

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

pub(super) fn padded_k(k: usize, dtype: WeightDtype) -> usize {
    k.next_multiple_of(dtype.k_multiple())
}

/// Elements that a `k x n` matrix of `dtype` takes in panels.
pub fn packed_len(k: usize, n: usize, dtype: WeightDtype) -> usize {
    n.div_ceil(PANEL) * padded_k(k, dtype) * PANEL
}

/// Offset of element `(i, c)` in a panel.
pub(super) fn offset_in_panel(i: usize, c: usize, dtype: WeightDtype) -> usize {
    match dtype {
        WeightDtype::FullPrecision | WeightDtype::Float16 => i * PANEL + c,
        WeightDtype::Bfloat16 => (i / 2) * 2 * PANEL + 2 * c + i % 2,
        WeightDtype::Int8 => (i / 4) * 4 * PANEL + 4 * c + i % 4,
    }
}

impl<R: Real> PackedMatrix<R> {
    /// Packs row-major `values` (`k x n`), rounding to `dtype`.
    pub fn pack(k: usize, n: usize, dtype: WeightDtype, values: &[R]) -> Self {
        Self::pack_with(k, n, dtype, values, ParallelFor::NONE)
    }

    /// As [`PackedMatrix::pack`], with `helpers` for what is copied as it is.
    pub fn pack_with(k: usize, n: usize, dtype: WeightDtype, values: &[R], helpers: ParallelFor<'_>) -> Self {
        assert_eq!(values.len(), k * n, "a {k} x {n} matrix has {} values", k * n);
        let len = packed_len(k, n, dtype);
        let storage = match dtype {
            WeightDtype::FullPrecision => {
                let panels = n.div_ceil(PANEL).div_ceil(helpers.count).max(LEAST_PANELS);
                let fill = |part: usize, out: &mut [_]| pack_rows(values, k, n, part * panels * PANEL, out);
                let part_len = (panels * k * PANEL).max(1);
                // SAFETY: `pack_rows` writes every element.
                Storage::FullPrecision(unsafe { AlignedVec::filled_in_parts(len, part_len, helpers, fill) })
            }
            WeightDtype::Bfloat16 => {
                let mut out = AlignedVec::zeros(len);
                pack_bfloat16(Isa::PORTABLE, values, n, false, k, 0..n, &mut out);
                Storage::Bfloat16(out)
            }
            WeightDtype::Float16 => {
                let mut out = AlignedVec::zeros(len);
                let round = |x: R| f16::from_f32(x.to_f32());
                pack_activations(values, n, false, k, 0..n, dtype, &mut out, round);
                Storage::Float16(out)
            }
            WeightDtype::Int8 => {
                let padded_n = n.next_multiple_of(PANEL);
                let mut scales = vec![0f32; padded_n];
                for row in values.chunks_exact(n.max(1)) {
                    for (s, x) in scales.iter_mut().zip(row) {
                        *s = s.max(x.to_f32().abs());
                    }
                }
                scales.iter_mut().for_each(|s| *s = if *s > 0.0 { *s / 127.0 } else { 1.0 });
                let mut out = AlignedVec::<i8>::zeros(len);
                let mut block_sums = vec![0i32; k.div_ceil(INT8_K_BLOCK) * padded_n];
                let panel_len = padded_k(k, dtype) * PANEL;
                for (i, row) in values.chunks_exact(n.max(1)).enumerate() {
                    let sums = &mut block_sums[i / INT8_K_BLOCK * padded_n..][..n];
                    for (j, ((x, scale), sum)) in row.iter().zip(&scales).zip(sums).enumerate() {
                        let rounded = (x.to_f32() / scale).round_ties_even() as i8;
                        out[(j / PANEL) * panel_len + offset_in_panel(i, j % PANEL, dtype)] = rounded;
                        *sum += i32::from(rounded);
                    }
                }
                Storage::Int8 { values: out, scales, block_sums }
            }
        };
        PackedMatrix { k, n, storage }
    }

    /// The matrix row-major, widened from its storage type.
    pub fn unpack(&self) -> Vec<R> {
        let mut out = vec![R::ZERO; self.k * self.n];
        self.unpack_into(&mut out);
        out
    }

    /// Writes the matrix row-major into `out` (`k * n`).
    pub fn unpack_into(&self, out: &mut [R]) {
        assert_eq!(out.len(), self.k * self.n, "a {} x {} matrix", self.k, self.n);
        self.unpack_rows_into(0, out);
    }

    /// Writes rows `first..` row-major into `out`, as many as it holds.
    pub fn unpack_rows_into(&self, first: usize, out: &mut [R]) {
        let view = self.view();
        for (i, row) in (first..).zip(out.chunks_exact_mut(self.n.max(1))) {
            for (p, part) in row.chunks_mut(PANEL).enumerate() {
                match view.data {
                    PanelData::FullPrecision(v) => {
                        part.copy_from_slice(&v[p * view.panel_stride + i * PANEL..][..part.len()]);
                    }
                    _ => part.iter_mut().enumerate().for_each(|(c, x)| *x = view.get(i, p * PANEL + c)),
                }
            }
        }
    }

    /// Rows.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Storage type.
    pub fn dtype(&self) -> WeightDtype {
        self.view().dtype()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::FullPrecision(v) => size_of_val(&v[..]),
            Storage::Bfloat16(v) => size_of_val(&v[..]),
            Storage::Float16(v) => size_of_val(&v[..]),
            Storage::Int8 { values, scales, block_sums } => {
                values.len() + size_of_val(&scales[..]) + size_of_val(&block_sums[..])
            }
        }
    }

    /// The packed elements, for updates in place; `None` unless `Native`. Elements of padding columns must stay zero.
    pub fn full_precision_mut(&mut self) -> Option<&mut [R]> {
        match &mut self.storage {
            Storage::FullPrecision(v) => Some(v),
            _ => None,
        }
    }

    /// The panels, to be written beside masters; `None` unless `Bfloat16` or `Float16`.
    pub fn low_precision_mut(&mut self) -> Option<Vec<LowPrecision<'_>>> {
        let k = self.k;
        let stride = self.view().panel_stride.max(1);
        match &mut self.storage {
            Storage::Bfloat16(v) => Some(
                v.chunks_exact_mut(stride).map(|values| LowPrecision::Bfloat16Panel { values, k }).collect(),
            ),
            Storage::Float16(v) => Some(v.chunks_exact_mut(stride).map(LowPrecision::Float16).collect()),
            Storage::FullPrecision(_) | Storage::Int8 { .. } => None,
        }
    }

    /// The whole matrix as a right operand.
    pub fn view(&self) -> Panels<'_, R> {
        let dtype = match &self.storage {
            Storage::FullPrecision(_) => WeightDtype::FullPrecision,
            Storage::Bfloat16(_) => WeightDtype::Bfloat16,
            Storage::Float16(_) => WeightDtype::Float16,
            Storage::Int8 { .. } => WeightDtype::Int8,
        };
        let data = match &self.storage {
            Storage::FullPrecision(v) => PanelData::FullPrecision(v),
            Storage::Bfloat16(v) => PanelData::Bfloat16(v),
            Storage::Float16(v) => PanelData::Float16(v),
            Storage::Int8 { values, scales, block_sums } => PanelData::Int8 { values, scales, block_sums },
        };
        Panels { k: self.k, n: self.n, panel_stride: padded_k(self.k, dtype) * PANEL, data }
    }
}

impl<'a, R: Real> Panels<'a, R> {
    /// Storage type.
    pub fn dtype(&self) -> WeightDtype {
        match self.data {
            PanelData::FullPrecision(_) => WeightDtype::FullPrecision,
            PanelData::Bfloat16(_) => WeightDtype::Bfloat16,
            PanelData::Float16(_) => WeightDtype::Float16,
            PanelData::Int8 { .. } => WeightDtype::Int8,
        }
    }

    /// A `Native` right operand over `panels` (layout in the module's text), `k x n`.
    pub fn from_full_precision(panels: &'a [R], k: usize, n: usize) -> Self {
        assert!(panels.len() >= packed_len(k, n, WeightDtype::FullPrecision));
        Panels { k, n, panel_stride: k * PANEL, data: PanelData::FullPrecision(panels) }
    }

    /// A `Bfloat16` right operand over `panels` as [`pack_bfloat16`] fills them, `k x n`.
    pub fn from_bfloat16(panels: &'a [bf16], k: usize, n: usize) -> Self {
        assert!(panels.len() >= packed_len(k, n, WeightDtype::Bfloat16));
        let panel_stride = padded_k(k, WeightDtype::Bfloat16) * PANEL;
        Panels { k, n, panel_stride, data: PanelData::Bfloat16(panels) }
    }

    /// Rows `range` of the matrix. `range.start` must be a multiple of [`WeightDtype::k_multiple`], for `Int8` of
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

/// Packs activations into `Native` panels that the caller owns, so that tasks can fill disjoint panels at once.
///
/// `out` receives the panels of columns `cols` (its start a multiple of [`PANEL`]) of the `k x n` matrix whose element
/// `(i, j)` is `source[i * stride + j]`, or `source[j * stride + i]` if `transposed`: [`packed_len`] elements.
pub fn pack_full_precision<R: Real>(
    isa: Isa,
    source: &[R],
    stride: usize,
    transposed: bool,
    k: usize,
    cols: Range<usize>,
    out: &mut [R],
) {
    assert!(cols.start.is_multiple_of(PANEL));
    for (p, first) in cols.clone().step_by(PANEL).enumerate() {
        let panel = &mut out[p * k * PANEL..][..k * PANEL];
        let columns = PANEL.min(cols.end - first);
        if columns < PANEL {
            panel.fill(R::ZERO);
        }
        if transposed {
            transpose(isa, &source[first * stride..], columns, k, stride, panel, PANEL);
        } else {
            for (i, row) in panel.chunks_exact_mut(PANEL).enumerate() {
                row[..columns].copy_from_slice(&source[i * stride + first..][..columns]);
            }
        }
    }
}

/// As [`pack_full_precision`], rounding to `Bfloat16` panels; `k` is padded with zeros.
pub fn pack_bfloat16<R: Real>(
    isa: Isa,
    source: &[R],
    stride: usize,
    transposed: bool,
    k: usize,
    cols: Range<usize>,
    out: &mut [bf16],
) {
    let Some(source) = R::f32_slice(source) else {
        let round = |x: R| bf16::from_f32(x.to_f32());
        return pack_activations(source, stride, transposed, k, cols, WeightDtype::Bfloat16, out, round);
    };
    assert!(cols.start.is_multiple_of(PANEL));
    let panel_len = padded_k(k, WeightDtype::Bfloat16) * PANEL;
    for (p, first) in cols.clone().step_by(PANEL).enumerate() {
        let panel = &mut out[p * panel_len..][..panel_len];
        let columns = PANEL.min(cols.end - first);
        if transposed {
            pack_bfloat16_panel_transposed(isa, &source[first * stride..], stride, k, columns, panel);
        } else {
            pack_bfloat16_panel(isa, &source[first..], stride, k, columns, panel);
        }
    }
}

/// Packs the columns of a row-major `k x n` matrix from `start` on and writes every element of `out`, as many of their
/// `Native` panels as it holds.
///
/// Goes over the rows in blocks: the source is read front to back, as memory likes it, and each panel gets a run of
/// rows at a time.
fn pack_rows<R: Real>(source: &[R], k: usize, n: usize, start: usize, out: &mut [MaybeUninit<R>]) {
    const ROWS: usize = 16;
    let panels = out.len() / (k * PANEL).max(1);
    assert!(out.len() == panels * k * PANEL && start + panels * PANEL < n + PANEL, "panels of {k} x {n}");
    for first_row in (0..k).step_by(ROWS) {
        let rows = ROWS.min(k - first_row);
        let source = &source[first_row * n..][..rows * n];
        for p in 0..panels {
            let first_col = start + p * PANEL;
            let columns = PANEL.min(n - first_col);
            let run = &mut out[(p * k + first_row) * PANEL..][..rows * PANEL];
            for (row, source) in run.chunks_exact_mut(PANEL).zip(source.chunks_exact(n)) {
                let (inside, padding) = row.split_at_mut(columns);
                for (out, &x) in inside.iter_mut().zip(&source[first_col..]) {
                    out.write(x);
                }
                padding.fill(MaybeUninit::new(R::ZERO));
            }
        }
    }
}

fn pack_activations<R: Real, T: Copy + Default>(
    source: &[R],
    stride: usize,
    transposed: bool,
    k: usize,
    cols: Range<usize>,
    dtype: WeightDtype,
    out: &mut [T],
    round: impl Fn(R) -> T,
) {
    assert!(cols.start.is_multiple_of(PANEL));
    let rows = padded_k(k, dtype);
    for (p, first) in cols.clone().step_by(PANEL).enumerate() {
        let panel = &mut out[p * rows * PANEL..][..rows * PANEL];
        for i in 0..rows {
            for c in 0..PANEL {
                let j = first + c;
                let at = if transposed { j * stride + i } else { i * stride + j };
                let inside = i < k && j < cols.end;
                panel[offset_in_panel(i, c, dtype)] = if inside { round(source[at]) } else { T::default() };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::aligned::Task;
    use super::super::testing::noise;
    use super::*;

    const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 33), (16, 32), (40, 31), (70, 65), (64, 96)];
    const DTYPES: [WeightDtype; 4] =
        [WeightDtype::FullPrecision, WeightDtype::Bfloat16, WeightDtype::Float16, WeightDtype::Int8];

    #[test]
    fn native_matrices_come_back_as_they_were() {
        for (k, n) in SHAPES {
            let values = noise(k * n, 1);
            assert_eq!(PackedMatrix::pack(k, n, WeightDtype::FullPrecision, &values).unpack(), values);
        }
    }

    #[test]
    fn tasks_pack_what_one_does_in_any_order_and_when_some_are_left_out() {
        // More than one task, the last panel not full.
        let (k, n) = (5, (2 * LEAST_PANELS + 1) * PANEL + 7);
        let values = noise(k * n, 5);
        let one = PackedMatrix::pack(k, n, WeightDtype::FullPrecision, &values);
        for step in [1, 2] {
            let backwards = |count: usize, task: &Task<'_>| {
                assert_eq!(count, 3);
                (0..count).rev().step_by(step).for_each(task);
            };
            let helpers = ParallelFor { count: 40, run: &backwards };
            let many = PackedMatrix::pack_with(k, n, WeightDtype::FullPrecision, &values, helpers);
            assert_eq!(many.unpack(), values);
            let (Storage::FullPrecision(one), Storage::FullPrecision(many)) = (&one.storage, &many.storage)
            else {
                panic!("native matrices")
            };
            assert_eq!(one[..], many[..], "padding included");
        }
    }

    #[test]
    fn every_element_is_where_the_view_finds_it() {
        for dtype in DTYPES {
            for (k, n) in SHAPES {
                let packed = PackedMatrix::pack(k, n, dtype, &noise(k * n, 2));
                let rows = packed.unpack();
                for (at, &x) in rows.iter().enumerate() {
                    assert_eq!(packed.view().get(at / n, at % n), x, "{dtype:?} {k} x {n}");
                }
            }
        }
    }

    #[test]
    fn activations_are_packed_both_ways_with_zeros_for_missing_columns() {
        for isa in Isa::available() {
            for (k, n) in SHAPES {
                let stride = k.max(n) + 3;
                let source = noise(stride * stride, 4);
                for transposed in [false, true] {
                    let mut panels = vec![-1.0; packed_len(k, n, WeightDtype::FullPrecision)];
                    pack_full_precision(isa, &source, stride, transposed, k, 0..n, &mut panels);
                    for (at, &x) in panels.iter().enumerate() {
                        let (i, j) = (at / PANEL % k, at / PANEL / k * PANEL + at % PANEL);
                        let from = if transposed { j * stride + i } else { i * stride + j };
                        assert_eq!(x, if j < n { source[from] } else { 0.0 }, "{} {k} x {n}", isa.name());
                    }
                }
            }
        }
    }
}
