//! Right operands of products that are kept: weights, in panels ([`layout`](super::layout)).

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};

use super::layout::{INT8_K_BLOCK, PANEL, packed_len, padded_k};
use super::low_precision::LowPrecision;
use super::pack::{LEAST_PANELS, overwrite_rows, pack_bfloat16, pack_full_precision, pack_rows};
use super::pack_int8_panel::{PanelScales, quantise_panel};
use super::panels::{PanelData, Panels};
use super::quantize::round_to_float16;
use crate::kernels::dtype::Dtype;
use crate::kernels::isa::{Isa, Real};
use crate::sys::{AlignedVec, MaybeMapped, ParallelFor, alloc_collect, alloc_zeroed};

#[derive(Clone, Debug)]
pub(super) enum Storage<R> {
    FullPrecision(MaybeMapped<R>),
    Bfloat16(MaybeMapped<bf16>),
    Float16(MaybeMapped<f16>),
    /// `block_sums[b * padded_n + j]` is the sum of column `j` over the `b`-th block of [`INT8_K_BLOCK`] rows.
    Int8 {
        values: MaybeMapped<i8>,
        scales: Vec<f32>,
        block_sums: Vec<i32>,
    },
}

/// A `k x n` matrix in panels, owned or in a mapped file.
#[derive(Clone, Debug)]
pub struct PackedMatrix<R> {
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) storage: Storage<R>,
}

impl<R: Real> PackedMatrix<R> {
    /// Packs row-major `values` (`k x n`), rounding to `dtype`.
    pub fn pack(k: usize, n: usize, dtype: Dtype, values: &[R]) -> Self {
        Self::pack_with(k, n, dtype, values, ParallelFor::NONE)
    }

    /// As [`PackedMatrix::pack`], `parallel` running the loop over the panels.
    pub fn pack_with(k: usize, n: usize, dtype: Dtype, values: &[R], parallel: ParallelFor<'_>) -> Self {
        assert_eq!(values.len(), k * n, "a {k} x {n} matrix has {} values", k * n);
        let len = packed_len(k, n, dtype);
        let storage = match dtype {
            Dtype::Float32 => {
                let panels = n.div_ceil(PANEL).div_ceil(parallel.count).max(LEAST_PANELS);
                let fill = |part: usize, out: &mut [_]| pack_rows(values, k, n, part * panels * PANEL, out);
                let part_len = (panels * k * PANEL).max(1);
                // SAFETY: `pack_rows` writes every element.
                Storage::FullPrecision(
                    unsafe { AlignedVec::filled_in_parts(len, part_len, parallel, fill) }.into(),
                )
            }
            _ => pack_panels(k, n, dtype, parallel, |p| (Cow::Borrowed(&values[p * PANEL..]), n)),
        };
        PackedMatrix { k, n, storage }
    }

    /// The same matrix stored as `dtype`, `parallel` running the loop over the panels. The bits are those of
    /// [`PackedMatrix::pack`] of the widened values.
    pub fn to_dtype(&self, dtype: Dtype, parallel: ParallelFor<'_>) -> Self {
        let panel = |p: usize| match &self.storage {
            Storage::FullPrecision(v) => Cow::Borrowed(&v[p * self.k * PANEL..][..self.k * PANEL]),
            _ => Cow::Owned(self.view().widened_panel(p)),
        };
        let storage = pack_panels(self.k, self.n, dtype, parallel, |p| (panel(p), PANEL));
        PackedMatrix { k: self.k, n: self.n, storage }
    }

    /// The matrix row-major, widened from its storage type.
    pub fn unpack(&self) -> Vec<R> {
        let mut out = alloc_zeroed(self.k * self.n);
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

    /// Whether rows `first..`, as many as `values` has row-major, are stored unrounded and are these, bit by bit.
    pub fn rows_are(&self, first: usize, values: &[R]) -> bool {
        let Storage::FullPrecision(v) = &self.storage else { return false };
        let same = |(p, part): (usize, &[R]), i: usize| {
            let stored = &v[(p * self.k + i) * PANEL..][..part.len()];
            bytemuck::cast_slice::<R, u8>(stored) == bytemuck::cast_slice::<R, u8>(part)
        };
        (first..)
            .zip(values.chunks_exact(self.n.max(1)))
            .all(|(i, row)| row.chunks(PANEL).enumerate().all(|part| same(part, i)))
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
    pub fn dtype(&self) -> Dtype {
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

    /// The packed elements, for updates in place; `None` unless `Float32`. Elements of padding columns must stay zero.
    pub fn full_precision_mut(&mut self) -> Option<&mut [R]> {
        match &mut self.storage {
            Storage::FullPrecision(v) => Some(v),
            _ => None,
        }
    }

    /// Tasks, independent of each other, that together write row-major `values` (`k x n`) over the elements; none unless
    /// `Float32`.
    pub fn overwrite<'a>(&'a mut self, values: &'a [R]) -> impl Iterator<Item = impl FnOnce() + Send> {
        let (k, n) = (self.k, self.n);
        assert_eq!(values.len(), k * n, "a {k} x {n} matrix has {} values", k * n);
        let parts =
            self.full_precision_mut().unwrap_or_default().chunks_mut((LEAST_PANELS * PANEL * k).max(1));
        parts
            .zip((0..).step_by(LEAST_PANELS * PANEL))
            .map(move |(out, start)| move || overwrite_rows(values, k, n, start, out))
    }

    /// The panels, to be written beside masters; `None` unless `Bfloat16` or `Float16`.
    pub fn low_precision_mut(&mut self) -> Option<Vec<LowPrecision<'_>>> {
        let k = self.k;
        let stride = self.view().panel_stride.max(1);
        match &mut self.storage {
            Storage::Bfloat16(v) => {
                let panels = v.chunks_exact_mut(stride);
                Some(alloc_collect(panels.map(|values| LowPrecision::Bfloat16Panel { values, k })))
            }
            Storage::Float16(v) => Some(alloc_collect(v.chunks_exact_mut(stride).map(LowPrecision::Float16))),
            Storage::FullPrecision(_) | Storage::Int8 { .. } => None,
        }
    }

    /// The whole matrix as a right operand.
    pub fn view(&self) -> Panels<'_, R> {
        let dtype = match &self.storage {
            Storage::FullPrecision(_) => Dtype::Float32,
            Storage::Bfloat16(_) => Dtype::Bfloat16,
            Storage::Float16(_) => Dtype::Float16,
            Storage::Int8 { .. } => Dtype::Int8,
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

/// Panels of `dtype` of a `k x n` matrix. `panel` gives the values of a panel's columns: element `(i, c)` is at
/// `i * stride + c` of what it returns with that stride.
fn pack_panels<'a, R: Real>(
    k: usize,
    n: usize,
    dtype: Dtype,
    parallel: ParallelFor<'_>,
    panel: impl Fn(usize) -> (Cow<'a, [R]>, usize) + Sync,
) -> Storage<R> {
    let (len, panel_len) = (packed_len(k, n, dtype), padded_k(k, dtype) * PANEL);
    let columns = |p: usize| PANEL.min(n - p * PANEL);
    let isa = Isa::fastest();
    match dtype {
        Dtype::Float32 => Storage::FullPrecision(
            AlignedVec::zeros_in_parts(len, panel_len, parallel, |p, out| {
                let (values, stride) = panel(p);
                pack_full_precision(isa, &values, stride, false, k, 0..columns(p), out);
            })
            .into(),
        ),
        Dtype::Bfloat16 => Storage::Bfloat16(
            AlignedVec::zeros_in_parts(len, panel_len, parallel, |p, out| {
                let (values, stride) = panel(p);
                pack_bfloat16(isa, &values, stride, false, k, 0..columns(p), out);
            })
            .into(),
        ),
        Dtype::Float16 => Storage::Float16(
            AlignedVec::zeros_in_parts(len, panel_len, parallel, |p, out| {
                let (values, stride) = panel(p);
                for (row, out) in values.chunks(stride.max(1)).zip(out.chunks_exact_mut(PANEL)) {
                    round_to_float16(&row[..columns(p)], &mut out[..columns(p)]);
                }
            })
            .into(),
        ),
        Dtype::Int8 => {
            let padded_n = n.next_multiple_of(PANEL);
            let per_column: Vec<Mutex<PanelScales>> =
                (0..n.div_ceil(PANEL)).map(|_| Mutex::default()).collect();
            let values = AlignedVec::zeros_in_parts(len, panel_len, parallel, |p, out| {
                let (values, stride) = panel(p);
                let scales = quantise_panel(isa, &values, stride, k, columns(p), out);
                *per_column[p].lock().unwrap_or_else(PoisonError::into_inner) = scales;
            });
            let (mut scales, mut block_sums) = (Vec::with_capacity(padded_n), Vec::new());
            block_sums.resize(k.div_ceil(INT8_K_BLOCK) * padded_n, 0);
            for (p, own) in per_column.into_iter().enumerate() {
                let own = own.into_inner().unwrap_or_else(PoisonError::into_inner);
                scales.extend(own.scales);
                for (block, sums) in own.block_sums.iter().enumerate() {
                    block_sums[block * padded_n + p * PANEL..][..PANEL].copy_from_slice(sums);
                }
            }
            Storage::Int8 { values: values.into(), scales, block_sums }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::offset_in_panel;
    use super::*;
    use crate::kernels::matmul::{Init, LhsBuffer, matmul, prepare_lhs};
    use crate::kernels::testing::noise;
    use crate::sys::Task;

    const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 33), (16, 32), (40, 31), (70, 65), (64, 96)];

    #[test]
    fn full_precision_matrices_come_back_as_they_were() {
        for (k, n) in SHAPES {
            let values = noise(k * n, 1);
            assert_eq!(PackedMatrix::pack(k, n, Dtype::Float32, &values).unpack(), values);
        }
    }

    #[test]
    fn rows_are_compared_bit_by_bit() {
        for (k, n) in SHAPES {
            let mut values = noise(k * n, 1);
            let matrix = PackedMatrix::pack(k, n, Dtype::Float32, &values);
            assert!(matrix.rows_are(0, &values) && matrix.rows_are(k / 2, &values[k / 2 * n..]));
            assert!(!PackedMatrix::pack(k, n, Dtype::Bfloat16, &values).rows_are(0, &values));
            values[k * n - 1] = -values[k * n - 1];
            assert!(!matrix.rows_are(0, &values) && matrix.rows_are(0, &values[..(k - 1) * n]));
        }
        let zero = PackedMatrix::pack(1, 1, Dtype::Float32, &[0.0f32]);
        assert!(zero.rows_are(0, &[0.0]) && !zero.rows_are(0, &[-0.0]));
    }

    #[test]
    fn tasks_pack_what_one_does_in_any_order_and_when_some_are_left_out() {
        // More than one task, the last panel not full.
        let (k, n) = (5, (2 * LEAST_PANELS + 1) * PANEL + 7);
        let values = noise(k * n, 5);
        let one = PackedMatrix::pack(k, n, Dtype::Float32, &values);
        for step in [1, 2] {
            let backwards = |count: usize, task: &Task<'_>| {
                assert_eq!(count, 3);
                (0..count).rev().step_by(step).for_each(task);
            };
            let parallel = ParallelFor { count: 40, run: &backwards };
            let many = PackedMatrix::pack_with(k, n, Dtype::Float32, &values, parallel);
            assert_eq!(many.unpack(), values);
            let (Storage::FullPrecision(one), Storage::FullPrecision(many)) = (&one.storage, &many.storage)
            else {
                panic!("matrices in full precision")
            };
            assert_eq!(one[..], many[..], "padding included");
        }
    }

    #[test]
    fn converted_matrices_are_those_packed_from_the_widened_values() {
        for (k, n) in SHAPES {
            let values = noise(k * n, 7);
            for from in Dtype::ALL {
                let matrix = PackedMatrix::pack(k, n, from, &values);
                for to in Dtype::ALL {
                    let packed = PackedMatrix::pack(k, n, to, &matrix.unpack());
                    let converted = matrix.to_dtype(to, ParallelFor::NONE);
                    assert_eq!(
                        format!("{converted:?}"),
                        format!("{packed:?}"),
                        "{from:?} to {to:?}, {k} x {n}"
                    );
                }
            }
        }
    }

    #[test]
    fn bytes_are_the_plain_rounding_by_the_columns_largest_magnitude() {
        // Also numbers so small that their scale is 0.
        for factor in [1.0, 1e-44, f32::MIN_POSITIVE / 64.0] {
            for (k, n) in [(1, 1), (3, 33), (70, 65), (600, 40)] {
                let values: Vec<f32> = noise(k * n, 8).iter().map(|x| x * factor).collect();
                let packed = PackedMatrix::pack(k, n, Dtype::Int8, &values);
                let Storage::Int8 { values: bytes, scales, block_sums } = &packed.storage else {
                    panic!("a matrix of bytes")
                };
                let padded_n = n.next_multiple_of(PANEL);
                let mut sums = vec![0; k.div_ceil(INT8_K_BLOCK) * padded_n];
                for j in 0..n {
                    let largest = (0..k).map(|i| values[i * n + j].abs()).fold(0.0, f32::max);
                    let scale = if largest == 0.0 { 1.0 } else { largest / 127.0 };
                    assert_eq!(scales[j], scale);
                    for i in 0..k {
                        let expected = (values[i * n + j] / scale).round_ties_even() as i8;
                        let at = offset_in_panel(i, j % PANEL, Dtype::Int8);
                        assert_eq!(bytes[j / PANEL * padded_k(k, Dtype::Int8) * PANEL + at], expected);
                        sums[i / INT8_K_BLOCK * padded_n + j] += i32::from(expected);
                    }
                }
                assert_eq!((&sums, scales.len()), (block_sums, padded_n));
                assert!(scales[n..].iter().all(|&scale| scale == 1.0));
            }
        }
    }

    #[test]
    fn every_element_is_where_the_view_finds_it() {
        for dtype in Dtype::ALL {
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
    fn values_that_are_not_finite_stay_visible_in_every_type() {
        let (k, n) = (70, 40);
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 5 * n + 33, k * n - 1] {
                let mut values = noise(k * n, 6);
                values[at] = bad;
                for dtype in Dtype::ALL {
                    let packed = PackedMatrix::pack(k, n, dtype, &values);
                    let stored = packed.unpack();
                    assert!(!stored[at].is_finite(), "{dtype:?} made {} of {bad}", stored[at]);
                    let others = (0..k * n).filter(|i| i % n != at % n);
                    assert!(others.into_iter().all(|i| stored[i].is_finite()), "{dtype:?}");
                    for isa in Isa::available() {
                        let mut buffer = LhsBuffer::default();
                        let lhs = prepare_lhs(isa, &values[..k], 1, k, k, dtype, &mut buffer);
                        if at >= k {
                            let mut out = vec![0f32; n];
                            matmul(isa, 1, lhs, packed.view(), 0..n, &mut out, n, Init::Zero);
                            for (j, x) in out.iter().enumerate() {
                                assert_eq!(x.is_finite(), j != at % n, "{dtype:?} {} {bad} {j}", isa.name());
                            }
                        }
                    }
                }
            }
        }
    }
}
