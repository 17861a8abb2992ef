//! Where elements of right operands are: in panels of [`PANEL`] columns.
//!
//! A `k x n` matrix becomes `ceil(n / 32)` panels. Element `(i, j)` of panel `p = j / 32`, column `c = j % 32`, is at
//! - `Float32` and `Float16`: `[p][i][c]`
//! - `Bfloat16`: `[p][i / 2][c][i % 2]`, `k` padded with zeros to a multiple of 32
//! - `Int8`: `[p][i / 4][c][i % 4]`, `k` padded with zeros to a multiple of 64
//!
//! Missing columns of the last panel are zeros.

use crate::kernels::dtype::Dtype;

/// Columns in a panel.
pub const PANEL: usize = 32;
/// k-ranges of an `Int8` matrix must begin at a multiple of this (column sums are kept per block).
pub const INT8_K_BLOCK: usize = 256;

/// Rows are padded to a multiple of this.
pub fn k_multiple(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Float32 | Dtype::Float16 => 1,
        Dtype::Bfloat16 => 32,
        Dtype::Int8 => 64,
    }
}

/// `k`, padded.
pub fn padded_k(k: usize, dtype: Dtype) -> usize {
    k.next_multiple_of(k_multiple(dtype))
}

/// Elements that a `k x n` matrix of `dtype` takes in panels.
pub fn packed_len(k: usize, n: usize, dtype: Dtype) -> usize {
    n.div_ceil(PANEL) * padded_k(k, dtype) * PANEL
}

/// Offset of element `(i, c)` in a panel.
pub fn offset_in_panel(i: usize, c: usize, dtype: Dtype) -> usize {
    match dtype {
        Dtype::Float32 | Dtype::Float16 => i * PANEL + c,
        Dtype::Bfloat16 => (i / 2) * 2 * PANEL + 2 * c + i % 2,
        Dtype::Int8 => (i / 4) * 4 * PANEL + 4 * c + i % 4,
    }
}
