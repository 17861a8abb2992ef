//! Products of bfloat16 operands with `f32` sums.

use half::bf16;

use super::block::Block;
use super::init::Init;
use super::layout::{PANEL, k_multiple, offset_in_panel};
use super::panel_product::{Initial, Kind, PanelKernel, PanelProduct, ResultRows};
use super::widened::Widened;
use crate::kernels::dtype::Dtype;
use crate::kernels::isa::{Isa, Real};

/// Rows that go through a buffer at a time where a panel has missing columns.
const BUFFER_ROWS: usize = 32;

/// `out = init + a x b` for the block, sums in ascending order of `k`.
pub fn matmul<R: Real>(
    isa: Isa,
    block: &Block<'_, R>,
    a: &[bf16],
    a_stride: usize,
    b: &[bf16],
    out: &mut [R],
) {
    if let (Some(block), Some(out)) = (block.as_f32(), R::f32_slice_mut(out)) {
        #[cfg(target_arch = "x86_64")]
        {
            use super::amx::Tiles;
            use super::dot_x86_64::{Avx2Bf16, Avx512Bf16, Avx512WidenBf16};

            if let Some(mut tiles) = Tiles::new(isa) {
                return multiply_panels(&mut tiles, &block, a, a_stride, b, out);
            }
            if let Some(mut kernel) = Avx512Bf16::new(isa) {
                return multiply_panels(&mut kernel, &block, a, a_stride, b, out);
            }
            if let Some(mut kernel) = Avx512WidenBf16::new(isa) {
                return multiply_panels(&mut kernel, &block, a, a_stride, b, out);
            }
            if let Some(mut kernel) = Avx2Bf16::new(isa) {
                return multiply_panels(&mut kernel, &block, a, a_stride, b, out);
            }
        }
        return multiply_panels(&mut Widened::new(isa), &block, a, a_stride, b, out);
    }
    matmul_portable(block, a, a_stride, b, out);
}

/// The plain form.
fn matmul_portable<R: Real>(block: &Block<'_, R>, a: &[bf16], a_stride: usize, b: &[bf16], out: &mut [R]) {
    block.for_each_output(out, |start, r, j| {
        let panel = &b[block.panel_start(j)..];
        let at = |i| offset_in_panel(i, j % PANEL, Dtype::Bfloat16);
        let product = |i: usize| a[r * a_stride + i].to_f32() * panel[at(i)].to_f32();
        (0..block.k).fold(start, |sum, i| sum + R::from_f32(product(i)))
    });
}

/// Panel by panel; in place where a panel has all its columns.
fn multiply_panels(
    kernel: &mut impl PanelKernel,
    block: &Block<'_, f32>,
    a: &[bf16],
    a_stride: usize,
    b: &[bf16],
    out: &mut [f32],
) {
    let padded_k = block.k.next_multiple_of(k_multiple(Dtype::Bfloat16));
    block.assert_inside(a.len(), a_stride, b.len(), padded_k, out.len());
    let zeros = [0f32; PANEL];
    for first in block.cols.clone().step_by(PANEL) {
        let at = block.panel_start(first);
        let out = &mut out[first - block.cols.start..];
        let result =
            ResultRows { start: out.as_mut_ptr().cast(), stride: size_of::<f32>() * block.out_stride };
        let whole = PanelProduct {
            kind: Kind::Bfloat16,
            rows: block.rows,
            left: a.as_ptr().cast(),
            left_stride: size_of::<bf16>() * a_stride,
            panel: b[at..].as_ptr().cast(),
            steps: padded_k / k_multiple(Dtype::Bfloat16),
            initial: match block.init {
                Init::Zero => Initial::repeat(&zeros),
                Init::Bias(bias) => Initial { start: bias[first..].as_ptr().cast(), stride: 0 },
                Init::Accumulate => result.as_initial(),
            },
            result,
            next_panel: b.as_ptr().wrapping_add(at + block.panel_stride).cast(),
        };
        let columns = PANEL.min(block.cols.end - first);
        if columns == PANEL {
            // SAFETY: `assert_inside` has found all rows, panels, results and the bias in their slices, and `out` is
            // borrowed for writing.
            unsafe { kernel.multiply(&whole) };
            continue;
        }
        // Rows of the result (and the bias) end before the panel's: go by way of a buffer.
        for first_row in (0..block.rows).step_by(BUFFER_ROWS) {
            let rows = BUFFER_ROWS.min(block.rows - first_row);
            let mut sums = [[0f32; PANEL]; BUFFER_ROWS];
            let out_row =
                |r: usize| (first_row + r) * block.out_stride..(first_row + r) * block.out_stride + columns;
            for (r, sums) in sums.iter_mut().enumerate().take(rows) {
                match block.init {
                    Init::Zero => {}
                    Init::Bias(bias) => sums[..columns].copy_from_slice(&bias[first..block.cols.end]),
                    Init::Accumulate => sums[..columns].copy_from_slice(&out[out_row(r)]),
                }
            }
            let result = ResultRows { start: sums.as_mut_ptr().cast(), stride: size_of_val(&zeros) };
            let left = a[first_row * a_stride..].as_ptr().cast();
            let part = PanelProduct { rows, left, initial: result.as_initial(), result, ..whole };
            // SAFETY: as above, with results in `sums`.
            unsafe { kernel.multiply(&part) };
            for (r, sums) in sums.iter().enumerate().take(rows) {
                out[out_row(r)].copy_from_slice(&sums[..columns]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::panels::PanelData;
    use super::*;
    use crate::kernels::matmul::{Lhs, LhsBuffer, PackedMatrix, matmul, prepare_lhs};
    use crate::kernels::testing::{noise, too_much_for_miri};

    /// Results' rows are this much longer than their columns, filled with [`GUARD`].
    const GAP: usize = 3;
    const GUARD: f32 = 77.0;
    /// Rounding of one addition in `f32`, twice over: AMX and `vdpbf16ps` may round a product before adding it, and
    /// treat numbers below 2^-126 as 0.
    const ERROR_PER_TERM: f64 = 2.0 / (1 << 24) as f64;

    struct Case {
        rows: usize,
        k: usize,
        n: usize,
        left: Vec<f32>,
        right: PackedMatrix<f32>,
        bias: Vec<f32>,
    }

    impl Case {
        fn new(rows: usize, k: usize, n: usize) -> Case {
            let right = PackedMatrix::pack(k, n, Dtype::Bfloat16, &noise(k * n, 2));
            Case { rows, k, n, left: noise(rows * k, 1), right, bias: noise(n, 3) }
        }

        /// The columns from `first_col` on of the rows `rows`.
        fn run(
            &self,
            isa: Isa,
            rows: std::ops::Range<usize>,
            first_col: usize,
            accumulate: bool,
        ) -> Vec<f32> {
            let cols = first_col..self.n;
            let stride = cols.len() + GAP;
            let mut out = vec![GUARD; rows.len() * stride];
            for row in out.chunks_exact_mut(stride) {
                row[..cols.len()].copy_from_slice(&self.bias[first_col..]);
            }
            let init = if accumulate { Init::Accumulate } else { Init::Bias(&self.bias[..]) };
            let mut buffer = LhsBuffer::default();
            let lhs = prepare_lhs(isa, &self.left, self.rows, self.k, self.k, Dtype::Bfloat16, &mut buffer);
            let lhs = lhs.skip_rows(rows.start);
            matmul(isa, rows.len(), lhs, self.right.view(), cols, &mut out, stride, init);
            out
        }

        fn check_against_exact_sums(&self, isa: Isa) {
            let right = self.right.unpack();
            let stride = self.n + GAP;
            let out = self.run(isa, 0..self.rows, 0, false);
            for r in 0..self.rows {
                for j in 0..self.n {
                    let (mut exact, mut size) = (f64::from(self.bias[j]), f64::from(self.bias[j].abs()));
                    for i in 0..self.k {
                        let a = bf16::from_f32(self.left[r * self.k + i]).to_f64();
                        let product = a * f64::from(right[i * self.n + j]);
                        exact += product;
                        size += product.abs();
                    }
                    let error = (f64::from(out[r * stride + j]) - exact).abs();
                    let limit = ERROR_PER_TERM * (self.k + 1) as f64 * size;
                    let (rows, k, n) = (self.rows, self.k, self.n);
                    assert!(error <= limit, "{} {rows} x {k} x {n} at ({r}, {j}): {error}", isa.name());
                }
                assert!(out[r * stride + self.n..][..GAP].iter().all(|&x| x == GUARD), "wrote past row {r}");
            }
        }
    }

    fn check_unless_too_much(isa: Isa, rows: usize, k: usize, n: usize) {
        if !too_much_for_miri(rows, k, n) {
            Case::new(rows, k, n).check_against_exact_sums(isa);
        }
    }

    #[test]
    fn every_instruction_set_is_as_near_to_the_exact_sums_as_rounding_allows() {
        for isa in Isa::available() {
            for rows in (1..=33).chain([47, 64, 70]) {
                for (k, n) in [(1, 1), (2, 32), (31, 33), (32, 64), (33, 31), (64, 100), (100, 48)] {
                    check_unless_too_much(isa, rows, k, n);
                }
            }
            check_unless_too_much(isa, 33, 513, 65);
            check_unless_too_much(isa, 3, 1100, 40);
            check_unless_too_much(isa, 65, 1025, 32);
        }
    }

    #[test]
    fn widened_products_are_those_of_the_plain_code() {
        for (rows, k, n) in [(1, 1, 1), (1, 40, 33), (5, 40, 33), (25, 300, 64), (50, 513, 31)] {
            if too_much_for_miri(rows, k, n) {
                continue;
            }
            let case = Case::new(rows, k, n);
            let mut buffer = LhsBuffer::default();
            let lhs = prepare_lhs(Isa::PORTABLE, &case.left, rows, k, k, Dtype::Bfloat16, &mut buffer);
            let (Lhs::Bfloat16 { values, stride }, PanelData::Bfloat16(panels)) =
                (lhs, case.right.view().data)
            else {
                panic!("operands of bfloat16")
            };
            let panel_stride = case.right.view().panel_stride;
            let init = Init::Bias(&case.bias[..]);
            let block = Block { rows, k, n, panel_stride, cols: 0..n, out_stride: n, init };
            let (mut plain, mut widened) = (vec![0f32; rows * n], vec![0f32; rows * n]);
            matmul_portable(&block, values, stride, panels, &mut plain);
            multiply_panels(&mut Widened::new(Isa::PORTABLE), &block, values, stride, panels, &mut widened);
            for (a, b) in plain.iter().zip(&widened) {
                assert!((a - b).abs() <= 1e-4, "{a} {b}");
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too much for Miri")]
    fn a_row_has_the_same_bits_among_any_others() {
        for isa in Isa::available() {
            for (k, n) in [(40, 45), (700, 64)] {
                let case = Case::new(75, k, n);
                let all = case.run(isa, 0..75, 0, false);
                let stride = n + GAP;
                for rows in [0..1, 3..20, 16..32, 7..39, 40..75, 74..75] {
                    let some = case.run(isa, rows.clone(), 0, false);
                    assert_eq!(some, all[rows.start * stride..rows.end * stride], "{} {rows:?}", isa.name());
                }
                let last_panel = case.run(isa, 0..75, 32, false);
                for r in 0..75 {
                    let part = &last_panel[r * (stride - 32)..][..n - 32];
                    assert_eq!(part, &all[r * stride + 32..][..n - 32]);
                }
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too much for Miri")]
    fn accumulating_onto_the_bias_equals_starting_from_it() {
        for isa in Isa::available() {
            let case = Case::new(37, 600, 72);
            assert_eq!(case.run(isa, 0..37, 0, true), case.run(isa, 0..37, 0, false), "{}", isa.name());
        }
    }

    #[test]
    fn no_terms_leave_the_bias() {
        for isa in Isa::available() {
            let case = Case::new(2, 0, 5);
            let out = case.run(isa, 0..2, 0, false);
            assert_eq!(out[..5], case.bias);
        }
    }

    #[test]
    #[should_panic(expected = "the right operand is too short")]
    fn a_short_panel_is_refused() {
        let isa = *Isa::available().last().unwrap();
        let block = Block {
            rows: 1,
            k: 64,
            n: 32,
            panel_stride: 2048,
            cols: 0..32,
            out_stride: 32,
            init: Init::Zero,
        };
        super::matmul(isa, &block, &[bf16::ZERO; 64], 64, &[bf16::ZERO; 2047], &mut [0f32; 32]);
    }
}
