//! The transpose of a right operand, in panels: for `dX = dY W^T`.
//!
//! A square of 32 rows of one panel becomes one of the panel that holds these rows as columns.

use half::bf16;
use half::slice::HalfFloatSliceExt;

use super::layout::{PANEL, offset_in_panel, padded_k};
use super::panels::{PanelData, Panels};
use crate::kernels::dtype::Dtype;
use crate::kernels::isa::{Isa, Real};
use crate::kernels::rows::transpose;

/// Elements of a square.
const SQUARE: usize = PANEL * PANEL;

/// Fills panel number `panel` of the transpose of `matrix`, `Float32`: `matrix.n` rows of [`PANEL`].
pub fn transpose_to_full_precision<R: Real>(isa: Isa, matrix: &Panels<'_, R>, panel: usize, out: &mut [R]) {
    let first_row = panel * PANEL;
    let rows = PANEL.min(matrix.k - first_row);
    if rows < PANEL {
        out.fill(R::ZERO);
    }
    let PanelData::FullPrecision(values) = matrix.data else {
        for (j, out) in out.chunks_exact_mut(PANEL).enumerate() {
            out[..rows].iter_mut().zip(first_row..).for_each(|(out, i)| *out = matrix.get(i, j));
        }
        return;
    };
    for (p, out) in out.chunks_mut(SQUARE).enumerate() {
        let square = &values[p * matrix.panel_stride + first_row * PANEL..];
        transpose(isa, square, rows, out.len() / PANEL, PANEL, out, PANEL);
    }
}

/// Fills panel number `panel` of the transpose of `matrix`, `Bfloat16`: `matrix.n` rows of [`PANEL`], padded.
pub fn transpose_to_bfloat16<R: Real>(matrix: &Panels<'_, R>, panel: usize, out: &mut [bf16]) {
    let PanelData::Bfloat16(values) = matrix.data else {
        let rows = PANEL.min(matrix.k - panel * PANEL);
        out.fill(bf16::ZERO);
        for j in 0..matrix.n {
            for c in 0..rows {
                let at = offset_in_panel(j, c, Dtype::Bfloat16);
                out[at] = bf16::from_f32(matrix.get(panel * PANEL + c, j).to_f32());
            }
        }
        return;
    };
    debug_assert_eq!(out.len(), padded_k(matrix.n, Dtype::Bfloat16) * PANEL);
    let bits = values.reinterpret_cast();
    // Panels of both have whole squares: missing rows and columns are zeros.
    for (p, out) in out.reinterpret_cast_mut().chunks_exact_mut(SQUARE).enumerate() {
        let square = &bits[p * matrix.panel_stride + panel * SQUARE..][..SQUARE];
        // Rows are stored in pairs, side by side: a block of two rows and two columns is transposed in place.
        for (i, rows) in square.chunks_exact(2 * PANEL).enumerate() {
            for (j, block) in rows.chunks_exact(4).enumerate() {
                let [a, b, c, d] = [block[0], block[1], block[2], block[3]];
                out[j * 2 * PANEL + 4 * i..][..4].copy_from_slice(&[a, c, b, d]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::matmul::{PackedMatrix, packed_len};
    use crate::kernels::testing::noise;

    #[test]
    fn rows_become_columns() {
        let dtypes = [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16];
        for (k, n) in [(1, 1), (3, 33), (16, 32), (40, 31), (70, 65), (64, 96)] {
            if cfg!(miri) && k * n > 600 {
                continue;
            }
            for dtype in dtypes {
                let packed = PackedMatrix::pack(k, n, dtype, &noise(k * n, 3));
                let mut full = vec![f32::NAN; packed_len(n, k, Dtype::Float32)];
                for (panel, out) in full.chunks_exact_mut(n * PANEL).enumerate() {
                    transpose_to_full_precision(Isa::fastest(), &packed.view(), panel, out);
                }
                let mut rounded = vec![bf16::NAN; packed_len(n, k, Dtype::Bfloat16)];
                let panel_len = padded_k(n, Dtype::Bfloat16) * PANEL;
                for (panel, out) in rounded.chunks_exact_mut(panel_len).enumerate() {
                    transpose_to_bfloat16(&packed.view(), panel, out);
                }
                let transposed =
                    [Panels::from_full_precision(&full, n, k), Panels::from_bfloat16(&rounded, n, k)];
                for (i, j) in (0..k).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let x = packed.view().get(i, j);
                    let expected = [x, bf16::from_f32(x).to_f32()];
                    assert_eq!(
                        transposed.map(|transposed| transposed.get(j, i)),
                        expected,
                        "{dtype:?} {k} x {n}"
                    );
                }
                assert!(full.iter().all(|x| x.is_finite()) && rounded.iter().all(|x| x.is_finite()));
            }
        }
    }
}
