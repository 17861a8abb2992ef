//! Transposition.

use half::bf16;

use crate::kernels::isa::{Isa, LANES, Real, Simd, VectorLoop};

/// `out[c * out_stride + r] = x[r * x_stride + c]` for `rows` x `cols`.
///
/// # Panics
/// If a slice is too short.
pub fn transpose<R: Real>(
    isa: Isa,
    x: &[R],
    rows: usize,
    cols: usize,
    x_stride: usize,
    out: &mut [R],
    out_stride: usize,
) {
    R::dispatch(isa, Transpose { x, rows, cols, x_stride, out, out_stride });
}

/// [`transpose`] rounded to bfloat16; the rows of `out` are filled up with zeros to `padded` values.
///
/// # Panics
/// If a slice is too short.
pub fn transpose_rounded<R: Real>(
    isa: Isa,
    x: &[R],
    (rows, padded): (usize, usize),
    cols: usize,
    x_stride: usize,
    out: &mut [bf16],
    out_stride: usize,
) {
    R::dispatch(isa, TransposeRounded { x, rows, cols, x_stride, out, out_stride });
    if padded > rows {
        out.chunks_mut(out_stride).take(cols).for_each(|row| row[rows..padded].fill(bf16::ZERO));
    }
}

struct TransposeRounded<'a, R> {
    x: &'a [R],
    rows: usize,
    cols: usize,
    x_stride: usize,
    out: &'a mut [bf16],
    out_stride: usize,
}

impl<R: Real> VectorLoop<R> for TransposeRounded<'_, R> {
    type Output = ();
    const TO_BFLOAT16: bool = true;
    #[inline(always)]
    fn run<S: Simd<Elem = R>>(self, simd: S) {
        let TransposeRounded { x, rows, cols, x_stride, out, out_stride } = self;
        for r in (0..rows).step_by(LANES) {
            let count = LANES.min(rows - r);
            for c in (0..cols).step_by(LANES) {
                let width = LANES.min(cols - c);
                let mut block = [simd.zero(); LANES];
                for (i, v) in block.iter_mut().enumerate().take(count) {
                    let row = &x[(r + i) * x_stride + c..][..width];
                    *v = match row.first_chunk() {
                        Some(whole) => simd.load(whole),
                        None => simd.load_partial(row),
                    };
                }
                for (i, v) in simd.transpose(block).into_iter().enumerate().take(width) {
                    let row = &mut out[(c + i) * out_stride + r..][..count];
                    match row.first_chunk_mut() {
                        Some(whole) => simd.store_bfloat16(v, whole),
                        None => {
                            let mut lanes = [bf16::ZERO; LANES];
                            simd.store_bfloat16(v, &mut lanes);
                            row.copy_from_slice(&lanes[..count]);
                        }
                    }
                }
            }
        }
    }
}

struct Transpose<'a, R> {
    x: &'a [R],
    rows: usize,
    cols: usize,
    x_stride: usize,
    out: &'a mut [R],
    out_stride: usize,
}

impl<R: Real> VectorLoop<R> for Transpose<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<Elem = R>>(self, simd: S) {
        let Transpose { x, rows, cols, x_stride, out, out_stride } = self;
        let (whole_rows, whole_cols) = (rows / LANES * LANES, cols / LANES * LANES);
        for r in (0..whole_rows).step_by(LANES) {
            for c in (0..whole_cols).step_by(LANES) {
                let mut block = [simd.zero(); LANES];
                for (i, v) in block.iter_mut().enumerate() {
                    let (row, _) = x[(r + i) * x_stride + c..].split_first_chunk().expect("x is too short");
                    *v = simd.load(row);
                }
                for (i, v) in simd.transpose(block).into_iter().enumerate() {
                    let at = (c + i) * out_stride + r;
                    let (row, _) = out[at..].split_first_chunk_mut().expect("out is too short");
                    simd.store(v, row);
                }
            }
        }
        for r in 0..rows {
            let first = if r < whole_rows { whole_cols } else { 0 };
            for c in first..cols {
                out[c * out_stride + r] = x[r * x_stride + c];
            }
        }
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
