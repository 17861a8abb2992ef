//! Right operands of products that are kept: weights, in panels ([`layout`](super::layout)).

use half::{bf16, f16};

use super::layout::{INT8_K_BLOCK, PANEL, offset_in_panel, packed_len, padded_k};
use super::low_precision::LowPrecision;
use super::pack::{LEAST_PANELS, pack_bfloat16, pack_each, pack_rows};
use super::panels::{PanelData, Panels};
use crate::kernels::dtype::Dtype;
use crate::kernels::isa::{Isa, Real};
use crate::sys::{AlignedVec, ParallelFor};

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

impl<R: Real> PackedMatrix<R> {
    /// Packs row-major `values` (`k x n`), rounding to `dtype`.
    pub fn pack(k: usize, n: usize, dtype: Dtype, values: &[R]) -> Self {
        Self::pack_with(k, n, dtype, values, ParallelFor::NONE)
    }

    /// As [`PackedMatrix::pack`], `parallel` running the loop that copies what is kept as it is.
    pub fn pack_with(k: usize, n: usize, dtype: Dtype, values: &[R], parallel: ParallelFor<'_>) -> Self {
        assert_eq!(values.len(), k * n, "a {k} x {n} matrix has {} values", k * n);
        let len = packed_len(k, n, dtype);
        let storage = match dtype {
            Dtype::Float32 => {
                let panels = n.div_ceil(PANEL).div_ceil(parallel.count).max(LEAST_PANELS);
                let fill = |part: usize, out: &mut [_]| pack_rows(values, k, n, part * panels * PANEL, out);
                let part_len = (panels * k * PANEL).max(1);
                // SAFETY: `pack_rows` writes every element.
                Storage::FullPrecision(unsafe { AlignedVec::filled_in_parts(len, part_len, parallel, fill) })
            }
            Dtype::Bfloat16 => {
                let mut out = AlignedVec::zeros(len);
                pack_bfloat16(Isa::PORTABLE, values, n, false, k, 0..n, &mut out);
                Storage::Bfloat16(out)
            }
            Dtype::Float16 => {
                let mut out = AlignedVec::zeros(len);
                let round = |x: R| f16::from_f32(x.to_f32());
                pack_each(values, n, false, k, 0..n, dtype, &mut out, round);
                Storage::Float16(out)
            }
            Dtype::Int8 => quantise(k, n, values),
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

/// The bytes, scales and sums of row-major `values` (`k x n`).
///
/// A column with an infinity or a NaN gets a scale that is not finite, so that its values, and all products with it, are
/// NaN: what cannot be stored must not turn into a number.
fn quantise<R: Real>(k: usize, n: usize, values: &[R]) -> Storage<R> {
    let padded_n = n.next_multiple_of(PANEL);
    // Bits of magnitudes compare like the magnitudes, with infinity and NaN above all others.
    let mut largest = vec![0u32; padded_n];
    for row in values.chunks_exact(n.max(1)) {
        for (largest, x) in largest.iter_mut().zip(row) {
            *largest = (*largest).max(x.to_f32().abs().to_bits());
        }
    }
    let scale = |bits| if bits == 0 { 1.0 } else { f32::from_bits(bits) / 127.0 };
    let scales: Vec<f32> = largest.into_iter().map(scale).collect();
    let mut out = AlignedVec::<i8>::zeros(packed_len(k, n, Dtype::Int8));
    let mut block_sums = vec![0i32; k.div_ceil(INT8_K_BLOCK) * padded_n];
    let panel_len = padded_k(k, Dtype::Int8) * PANEL;
    for (i, row) in values.chunks_exact(n.max(1)).enumerate() {
        let sums = &mut block_sums[i / INT8_K_BLOCK * padded_n..][..n];
        for (j, ((x, scale), sum)) in row.iter().zip(&scales).zip(sums).enumerate() {
            let rounded = (x.to_f32() / scale).round_ties_even() as i8;
            out[(j / PANEL) * panel_len + offset_in_panel(i, j % PANEL, Dtype::Int8)] = rounded;
            *sum += i32::from(rounded);
        }
    }
    Storage::Int8 { values: out, scales, block_sums }
}

#[cfg(test)]
mod tests {
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
