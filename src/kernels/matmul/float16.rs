//! Products with float16 right operands, widened as they are read.
//!
//! A slice of a panel is widened into a buffer that stays in the L1 cache and multiplied by the kernels for the
//! activations' own type, whose accuracy and order of sums are thereby those of float16 too.

use half::f16;

use super::block::Block;
use super::full_precision;
use super::init::Init;
use super::layout::PANEL;
use crate::kernels::isa::{Isa, LANES, Real, Simd, VectorLoop};

/// Rows widened at a time: 32 KiB as `f32`.
const SLICE: usize = 256;

/// `out = init + a x b` for the block, sums in ascending order of `k`.
pub fn matmul<R: Real>(isa: Isa, block: &Block<'_, R>, a: &[R], a_stride: usize, b: &[f16], out: &mut [R]) {
    let mut buffer = [R::ZERO; SLICE * PANEL];
    for panel in block.cols.clone().step_by(PANEL) {
        let cols = panel..block.cols.end.min(panel + PANEL);
        for first in (0..block.k.max(1)).step_by(SLICE) {
            let k = SLICE.min(block.k - first);
            let widened = &mut buffer[..k * PANEL];
            let source = &b[block.panel_start(panel) + first * PANEL..][..k * PANEL];
            R::dispatch(isa, Widen { source, out: widened });
            // The buffer is the only panel of a matrix of its own.
            let slice = Block {
                rows: block.rows,
                k,
                n: cols.len(),
                panel_stride: 0,
                cols: 0..cols.len(),
                out_stride: block.out_stride,
                init: match block.init {
                    _ if first > 0 => Init::Accumulate,
                    Init::Bias(bias) => Init::Bias(&bias[cols.clone()]),
                    init => init,
                },
            };
            let out = &mut out[panel - block.cols.start..];
            full_precision::matmul(isa, &slice, &a[first..], a_stride, widened, out);
        }
    }
}

/// Widens `source` to `out`, both whole panels' rows.
struct Widen<'a, R> {
    source: &'a [f16],
    out: &'a mut [R],
}

impl<R: Real> VectorLoop<R> for Widen<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<Elem = R>>(self, simd: S) {
        let ((source, _), (out, _)) = (self.source.as_chunks::<LANES>(), self.out.as_chunks_mut::<LANES>());
        for (source, out) in source.iter().zip(out) {
            simd.store(simd.load_f16(source), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::dtype::Dtype;
    use crate::kernels::matmul::{PackedMatrix, matmul, prepare_lhs};
    use crate::kernels::testing::{noise, too_much_for_miri};

    #[test]
    fn the_product_has_the_bits_of_that_with_widened_weights() {
        for isa in Isa::available() {
            let remainders = (1..=25).map(|rows| (rows, 70, 41));
            for (rows, k, n) in remainders.chain([(1, 1, 1), (3, 40, 33), (20, 300, 64), (33, 700, 100)]) {
                if too_much_for_miri(rows, k, n) {
                    continue;
                }
                let half = PackedMatrix::pack(k, n, Dtype::Float16, &noise(k * n, 2));
                let wide = PackedMatrix::pack(k, n, Dtype::Float32, &half.unpack());
                let (left, bias) = (noise(rows * k, 1), noise(n, 3));
                let product = |right: &PackedMatrix<f32>| {
                    let mut out = vec![0f32; rows * n];
                    let mut buffer = Default::default();
                    let lhs = prepare_lhs(isa, &left, rows, k, k, right.dtype(), &mut buffer);
                    matmul(isa, rows, lhs, right.view(), 0..n, &mut out, n, Init::Bias(&bias));
                    out
                };
                assert_eq!(product(&half), product(&wide), "{} {rows} x {k} x {n}", isa.name());
            }
        }
    }
}
