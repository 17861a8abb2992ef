//! Transposition.

use crate::kernels::isa::{Isa, LANES, Real, Simd, Stored, VectorLoop, each_span};

/// `out[c * out_stride + r] = x[r * x_stride + c]` for `rows` x `cols`; into bfloat16 rounded, ties to even, where subnormal
/// numbers may become 0.
///
/// # Panics
/// If a slice is too short.
pub fn transpose<R: Real, T: Stored<R>>(
    isa: Isa,
    x: &[R],
    rows: usize,
    cols: usize,
    x_stride: usize,
    out: &mut [T],
    out_stride: usize,
) {
    R::dispatch(isa, Transpose { x, rows, cols, x_stride, out, out_stride });
}

struct Transpose<'a, R, T> {
    x: &'a [R],
    rows: usize,
    cols: usize,
    x_stride: usize,
    out: &'a mut [T],
    out_stride: usize,
}

impl<R: Real, T: Stored<R>> VectorLoop<R> for Transpose<'_, R, T> {
    type Output = ();
    const TO_BFLOAT16: bool = T::IS_BFLOAT16;
    #[inline(always)]
    fn run<S: Simd<Elem = R>>(self, simd: S) {
        let Transpose { x, rows, cols, x_stride, out, out_stride } = self;
        each_span(
            rows,
            #[inline(always)]
            |down| {
                each_span(
                    cols,
                    #[inline(always)]
                    |across| {
                        let mut block = [simd.zero(); LANES];
                        for (v, r) in block.iter_mut().zip(down.range()) {
                            *v = across.load(simd, &x[r * x_stride..]);
                        }
                        for (v, c) in simd.transpose(block).into_iter().zip(across.range()) {
                            T::store(down, simd, v, &mut out[c * out_stride..]);
                        }
                    },
                );
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{cast, for_all, numbers};

    fn check_transpose<R: Real>(isa: Isa) {
        for (rows, cols, gap) in [(1, 1, 0), (16, 16, 0), (17, 33, 3), (40, 5, 1), (64, 48, 2)] {
            let x: Vec<R> = cast(&numbers(rows * (cols + gap), 9));
            let stride = rows + gap;
            let mut out = vec![R::ONE + R::ONE; cols * stride];
            transpose(isa, &x, rows, cols, cols + gap, &mut out, stride);
            for c in 0..cols {
                for r in 0..stride {
                    let expected = if r < rows { x[r * (cols + gap) + c] } else { R::ONE + R::ONE };
                    assert_eq!(out[c * stride + r], expected, "{} {rows} x {cols}", isa.name());
                }
            }
        }
    }

    #[test]
    fn transposes_leave_gaps_alone() {
        for_all!(check_transpose);
    }
}
