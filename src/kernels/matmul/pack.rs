//! Filling of panels ([`layout`](super::layout)) with row-major values.

use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;

use super::layout::{PANEL, offset_in_panel, padded_k};
use super::pack_bfloat16_panel::{pack_bfloat16_panel, pack_bfloat16_panel_transposed};
use crate::kernels::dtype::Dtype;
use crate::kernels::isa::{Isa, Real};
use crate::kernels::rows::transpose;

/// Panels that a thread packs at least, so that it reads a few KiB of each row at a time.
pub const LEAST_PANELS: usize = 16;

/// Packs activations into `Float32` panels that the caller owns, so that tasks can fill disjoint panels at once.
///
/// `out` receives the panels of columns `cols` (its start a multiple of [`PANEL`]) of the `k x n` matrix whose element
/// `(i, j)` is `source[i * stride + j]`, or `source[j * stride + i]` if `transposed`: [`packed_len`](super::layout::packed_len) elements.
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
                let source = &source[i * stride + first..][..columns];
                match (row.first_chunk_mut::<PANEL>(), source.first_chunk()) {
                    // The usual case, of a length that the compiler knows.
                    (Some(row), Some(source)) => *row = *source,
                    _ => row[..columns].copy_from_slice(source),
                }
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
        return pack_each(source, stride, transposed, k, cols, Dtype::Bfloat16, out, round);
    };
    assert!(cols.start.is_multiple_of(PANEL));
    let panel_len = padded_k(k, Dtype::Bfloat16) * PANEL;
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

/// The plain form, for any types: `round` gives what is stored.
pub fn pack_each<R: Real, T: Copy + Default>(
    source: &[R],
    stride: usize,
    transposed: bool,
    k: usize,
    cols: Range<usize>,
    dtype: Dtype,
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

/// Packs the columns of a row-major `k x n` matrix from `start` on and writes every element of `out`, as many of their
/// `Float32` panels as it holds.
pub fn pack_rows<R: Real>(source: &[R], k: usize, n: usize, start: usize, out: &mut [MaybeUninit<R>]) {
    each_row(source, k, n, start, out, |row, source| {
        let (inside, padding) = row.split_at_mut(source.len());
        for (out, &x) in inside.iter_mut().zip(source) {
            out.write(x);
        }
        padding.fill(MaybeUninit::new(R::ZERO));
    });
}

/// The same over panels of such a matrix, whose padding is zero already.
pub fn overwrite_rows<R: Real>(source: &[R], k: usize, n: usize, start: usize, out: &mut [R]) {
    each_row(source, k, n, start, out, |row, source| row[..source.len()].copy_from_slice(source));
}

/// Calls `write` with each row of the panels in `out` and the values that belong there.
///
/// Goes over the rows in blocks: the source is read front to back, as memory likes it, and each panel gets a run of
/// rows at a time.
fn each_row<R, T>(
    source: &[R],
    k: usize,
    n: usize,
    start: usize,
    out: &mut [T],
    write: impl Fn(&mut [T], &[R]),
) {
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
                write(row, &source[first_col..][..columns]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::packed_len;
    use super::*;
    use crate::kernels::testing::noise;

    const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 33), (16, 32), (40, 31), (70, 65), (64, 96)];

    #[test]
    fn activations_are_packed_both_ways_with_zeros_for_missing_columns() {
        for isa in Isa::available() {
            for (k, n) in SHAPES {
                let stride = k.max(n) + 3;
                let source = noise(stride * stride, 4);
                for transposed in [false, true] {
                    let mut panels = vec![-1.0; packed_len(k, n, Dtype::Float32)];
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
