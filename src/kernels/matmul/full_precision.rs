//! Products with right operands stored in the type of the activations.
//!
//! A register tile of [`Simd::TILE_ROWS`] rows by half a panel or a panel holds its sums while `k` runs; every sum is
//! one chain of multiply-adds in ascending `k`, whatever the tile. While the tiles of all rows pass over a panel, each
//! fetches its share of what comes after that panel: weights arrive from far away, evenly. The left operand is read where it is, one element of a row at a time: packing it first
//! gains nothing, and costs much where the right operand is narrow.

use std::ops::Range;

use super::block::Block;
use super::init::Init;
use super::layout::PANEL;
use super::register_tile::{Start, Tile};
use crate::kernels::isa::{Isa, LANES, Real, Simd, VectorLoop};

/// Terms added per visit of a tile.
const K_BLOCK: usize = 512;
/// Rows that pass over a block of terms before the next: they and their results stay in the L2 cache.
const GROUP_ROWS: usize = 128;

/// `out = init + a x b` for the block, sums in ascending order of `k`.
pub fn matmul<R: Real>(isa: Isa, block: &Block<'_, R>, a: &[R], a_stride: usize, b: &[R], out: &mut [R]) {
    if block.rows == 0 || block.cols.is_empty() {
        return;
    }
    let last_row = block.rows - 1;
    let last_panel = block.panel_start(block.cols.end - 1);
    assert!(a.len() >= last_row * a_stride + block.k, "the left operand is too short");
    assert!(b.len() >= last_panel + block.k * PANEL, "the right operand is too short");
    assert!(out.len() >= last_row * block.out_stride + block.cols.len(), "the result is too short");
    if let Init::Bias(bias) = block.init {
        assert!(bias.len() >= block.cols.end, "the bias is too short");
    }
    R::dispatch(isa, Product { block, a, a_stride, b, out });
}

/// The operands, checked: every row, panel, bias and result that `block` names is inside its slice.
struct Product<'a, R> {
    block: &'a Block<'a, R>,
    a: &'a [R],
    a_stride: usize,
    b: &'a [R],
    out: &'a mut [R],
}

impl<R: Real> VectorLoop<R> for Product<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<Elem = R>>(mut self, simd: S) {
        for first in (0..self.block.rows).step_by(GROUP_ROWS) {
            let rows = first..self.block.rows.min(first + GROUP_ROWS);
            let mut first_k = 0;
            loop {
                let last_k = self.block.k.min(first_k + K_BLOCK);
                self.multiply(simd, rows.clone(), first_k..last_k);
                first_k = last_k;
                if first_k == self.block.k {
                    break;
                }
            }
        }
    }
}

/// The tiles of a group of `rows`, relative to its first: of nearly equal height, since a last tile of one or two rows
/// would wait for its own sums.
#[inline(always)]
fn tiles<S: Simd>(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let count = rows.div_ceil(S::TILE_ROWS);
    (0..count).map(move |tile| rows * tile / count..rows * (tile + 1) / count)
}

impl<R: Real> Product<'_, R> {
    /// Adds the terms `terms` to the results of `rows`.
    #[inline(always)]
    fn multiply<S: Simd<Elem = R>>(&mut self, simd: S, rows: Range<usize>, terms: Range<usize>) {
        let block = self.block;
        let width = S::TILE_VECS * LANES;
        let panel_len = terms.len() * PANEL;
        let tile_count = rows.len().div_ceil(S::TILE_ROWS);
        for panel in block.cols.clone().step_by(PANEL) {
            let b = self.b.as_ptr().wrapping_add(block.panel_start(panel) + terms.start * PANEL);
            // What comes after this panel: the next, or the first one's next terms.
            let next = if panel + PANEL < block.cols.end || terms.end == block.k {
                b.wrapping_add(block.panel_stride)
            } else {
                self.b.as_ptr().wrapping_add(block.panel_start(block.cols.start) + terms.end * PANEL)
            };
            for (t, tile) in tiles::<S>(rows.len()).enumerate() {
                for column in (panel..block.cols.end.min(panel + PANEL)).step_by(width) {
                    let start = match block.init {
                        _ if terms.start > 0 => Start::Out,
                        Init::Zero => Start::Zero,
                        Init::Bias(bias) => Start::Row(&bias[column..]),
                        Init::Accumulate => Start::Out,
                    };
                    let first_row = rows.start + tile.start;
                    let at = first_row * block.out_stride + column - block.cols.start;
                    let tile = Tile {
                        rows: tile.len(),
                        width: width.min(block.cols.end - column),
                        k: terms.len(),
                        a: self.a.as_ptr().wrapping_add(first_row * self.a_stride + terms.start),
                        a_stride: self.a_stride,
                        b: b.wrapping_add(column - panel),
                        next: next.wrapping_add(panel_len * t / tile_count),
                        next_step: PANEL.div_ceil(tile_count),
                        out: self.out[at..].as_mut_ptr(),
                        out_stride: block.out_stride,
                        start,
                    };
                    // SAFETY: `matmul` has checked that rows, panels and results are inside their slices.
                    unsafe { tile.run(simd) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::dtype::Dtype;
    use crate::kernels::matmul::{Lhs, PackedMatrix, matmul};

    /// Rounding of a sum of at most 515 products of numbers in [-1, 1].
    const TOLERANCE: f64 = 2e-5;

    /// Numbers in [-1, 1) that look random.
    fn numbers<R: Real>(len: usize, seed: u32) -> Vec<R> {
        let scramble =
            |i: u32| (i ^ seed).wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(0x85eb_ca6b);
        (0..len as u32).map(|i| R::from_f64(f64::from(scramble(i) >> 8) / f64::from(1 << 23) - 1.0)).collect()
    }

    /// `init + a x b`, in `f64`.
    fn reference(
        m: usize,
        k: usize,
        n: usize,
        a: &[f32],
        b: &[f32],
        init: impl Fn(usize) -> f32,
    ) -> Vec<f64> {
        let dot = |r: usize, j: usize| -> f64 {
            (0..k).map(|i| f64::from(a[r * k + i]) * f64::from(b[i * n + j])).sum::<f64>()
                + f64::from(init(r * n + j))
        };
        (0..m * n).map(|at| dot(at / n, at % n)).collect()
    }

    fn assert_close(out: &[f32], expected: &[f64], what: &str) {
        for (i, (&got, &expected)) in out.iter().zip(expected).enumerate() {
            assert!((f64::from(got) - expected).abs() <= TOLERANCE, "{what}: {got} not {expected} at {i}");
        }
    }

    #[test]
    fn all_remainders_agree_with_the_plain_sum() {
        let sizes = if cfg!(miri) { vec![1, 5] } else { (1..=25).collect() };
        for isa in Isa::available() {
            for &m in &sizes {
                for (k, n) in
                    [(1, 1), (3, 70), (16, 31), (33, 33), (70, 17), (64, 64), (7, 16), (257, 40), (515, 40)]
                {
                    if cfg!(miri) && k * n > 300 {
                        continue;
                    }
                    let what = format!("{} {m} x {k} x {n}", isa.name());
                    let (a, b, bias) = (numbers(m * k, 1), numbers(k * n, 2), numbers(n, 3));
                    let packed = PackedMatrix::pack(k, n, Dtype::Float32, &b);
                    let lhs = Lhs::FullPrecision { values: &a, stride: k };
                    let mut out = numbers(m * n, 4);
                    let before = out.clone();
                    matmul(isa, m, lhs, packed.view(), 0..n, &mut out, n, Init::Accumulate);
                    assert_close(&out, &reference(m, k, n, &a, &b, |at| before[at]), &what);
                    matmul(isa, m, lhs, packed.view(), 0..n, &mut out, n, Init::Bias(&bias));
                    assert_close(&out, &reference(m, k, n, &a, &b, |at| bias[at % n]), &what);
                    matmul(isa, m, lhs, packed.view(), 0..n, &mut out, n, Init::Zero);
                    assert_close(&out, &reference(m, k, n, &a, &b, |_| 0.0), &what);
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_whatever_surrounds_it() {
        let (m, k, n) = if cfg!(miri) { (4, 20, 33) } else { (37, 530, 70) };
        for isa in Isa::available() {
            let (a, b) = (numbers::<f32>(m * k, 5), numbers(k * n, 6));
            let packed = PackedMatrix::pack(k, n, Dtype::Float32, &b);
            let mut whole = vec![0.0; m * n];
            let lhs = Lhs::FullPrecision { values: &a, stride: k };
            matmul(isa, m, lhs, packed.view(), 0..n, &mut whole, n, Init::Zero);
            for rows in 1..=m {
                let mut part = vec![0.0; rows * n];
                let first = m - rows;
                matmul(isa, rows, lhs.skip_rows(first), packed.view(), 0..n, &mut part, n, Init::Zero);
                assert_eq!(part, whole[first * n..], "{} {rows} rows", isa.name());
            }
        }
    }

    #[test]
    fn fused_instruction_sets_agree_to_the_bit() {
        let (m, k, n) = (13, 300, 45);
        let (a, b) = (numbers::<f32>(m * k, 7), numbers(k * n, 8));
        let packed = PackedMatrix::pack(k, n, Dtype::Float32, &b);
        let product = |isa| {
            let mut out = vec![0.0; m * n];
            let lhs = Lhs::FullPrecision { values: &a, stride: k };
            matmul(isa, m, lhs, packed.view(), 0..n, &mut out, n, Init::Zero);
            out
        };
        let fused: Vec<_> = Isa::available().into_iter().filter(|&isa| isa != Isa::PORTABLE).collect();
        for pair in fused.windows(2) {
            assert_eq!(product(pair[0]), product(pair[1]), "{pair:?}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too much for Miri")]
    fn agrees_with_the_gemm_crate() {
        let (m, k, n) = (50, 200, 90);
        let (a, b) = (numbers::<f32>(m * k, 9), numbers::<f32>(k * n, 10));
        let packed = PackedMatrix::pack(k, n, Dtype::Float32, &b);
        let mut expected = vec![0f32; m * n];
        // SAFETY: the pointers and strides describe the three row-major matrices.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                expected.as_mut_ptr(),
                1,
                n as isize,
                false,
                a.as_ptr(),
                1,
                k as isize,
                b.as_ptr(),
                1,
                n as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        let expected: Vec<_> = expected.into_iter().map(f64::from).collect();
        for isa in Isa::available() {
            let mut out = vec![0.0; m * n];
            let lhs = Lhs::FullPrecision { values: &a, stride: k };
            matmul(isa, m, lhs, packed.view(), 0..n, &mut out, n, Init::Zero);
            assert_close(&out, &expected, isa.name());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 200 }))]

        /// Runs of rows, of columns and of `k`, with gaps between rows, are the same as the whole, and nothing
        /// outside the result is written.
        #[test]
        fn parts_make_the_whole(
            m in 1usize..30, k in 1usize..70, n in 1usize..120, gap in 0usize..5, cut in 0usize..70, panel in 0usize..4,
        ) {
            let cut = cut % (k + 1);
            let first = (panel * PANEL).min((n - 1) / PANEL * PANEL);
            let a = numbers::<f32>(m * (k + gap), 11);
            let b = numbers::<f32>(k * n, 12);
            let packed = PackedMatrix::pack(k, n, Dtype::Float32, &b);
            let lhs = Lhs::FullPrecision { values: &a, stride: k + gap };
            for isa in Isa::available() {
                let mut whole = vec![0.0; m * n];
                matmul(isa, m, lhs, packed.view(), 0..n, &mut whole, n, Init::Zero);
                let stride = n - first + gap;
                let mut out = vec![-7.0; m * stride];
                matmul(isa, m, lhs, packed.view().k_range(0..cut), first..n, &mut out, stride, Init::Zero);
                let rest = Lhs::FullPrecision { values: &a[cut..], stride: k + gap };
                matmul(isa, m, rest, packed.view().k_range(cut..k), first..n, &mut out, stride, Init::Accumulate);
                for r in 0..m {
                    let (row, beyond) = out[r * stride..][..stride].split_at(n - first);
                    prop_assert_eq!(row, &whole[r * n + first..][..n - first]);
                    prop_assert!(beyond.iter().all(|&x| x == -7.0));
                }
            }
        }
    }

    #[test]
    fn doubles_have_their_own_sums() {
        let (m, k, n) = (5, 40, 37);
        let (a, b) = (numbers::<f64>(m * k, 13), numbers::<f64>(k * n, 14));
        let packed = PackedMatrix::pack(k, n, Dtype::Float32, &b);
        let mut out = vec![0.0; m * n];
        let lhs = Lhs::FullPrecision { values: &a, stride: k };
        matmul(Isa::PORTABLE, m, lhs, packed.view(), 0..n, &mut out, n, Init::Zero);
        for (at, got) in out.into_iter().enumerate() {
            let expected: f64 = (0..k).map(|i| a[at / n * k + i] * b[i * n + at % n]).sum();
            assert!((got - expected).abs() < 1e-14);
        }
    }
}
