//! Arithmetic on slices. Beside `sys` the only folder that may hold `unsafe`, each block with its reason and each fast
//! path with a portable twin that it is tested against.
//!
//! Everything here is single-threaded; the layers split work over threads. Every product sums over `k` in ascending
//! order into one accumulator per output, so an output row depends only on its own input row and the
//! weights: not on the number of rows, its place among them, or the number of threads.

#![allow(unsafe_code)]

mod dtype;
mod fourier;
mod isa;
mod matmul;
mod peak;
mod rows;
#[cfg(test)]
pub(crate) mod testing;

pub use dtype::Dtype;
pub use fourier::{ComplexFft, RealFft};
pub use isa::{Isa, Number, Real, Stored};
pub use matmul::{
    GradientRows, INT8_K_BLOCK, Init, Lhs, LhsBuffer, LowPrecision, PANEL, PANEL_LAYOUT_VERSION,
    PackedMatrix, Panels, activate_lhs, exponentials_lhs, full_precision_stride, lhs_stride, matmul,
    pack_bfloat16, pack_full_precision, packed_len, prepare_lhs, prepare_transposed_lhs, round_to_bfloat16,
    round_to_float16, transpose_to_bfloat16, transpose_to_full_precision, update_weights,
};
#[doc(hidden)]
pub use peak::multiply_adds;
pub use rows::{
    Elementwise, add_in_place, axpy, dropout, dropped_softmax_backward, elementwise, elementwise_backward,
    elementwise_with_backward, exponentials, layer_norm, layer_norm_backward, log_sum_exp, philox,
    softmax_backward, softmax_in_place, transpose, unit,
};
