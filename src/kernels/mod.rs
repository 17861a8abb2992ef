//! Arithmetic on slices: the only folder that may hold `unsafe`, each block with its reason and each fast path
//! with a portable twin that it is tested against.
//!
//! Everything here is single-threaded; the layers split work over threads. Every product sums over `k` in ascending
//! order into one accumulator per output, so an output row depends on nothing but its own input row and the
//! weights: not on the number of rows, its place among them, or the number of threads.

#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod aligned;
#[cfg(target_arch = "x86_64")]
mod amx;
mod at_fork;
#[cfg(target_arch = "x86_64")]
mod dot_tile;
#[cfg(target_arch = "x86_64")]
mod dot_x86_64;
mod dropout;
mod elementwise;
mod float_bytes;
mod formulas;
mod functions;
mod isa;
mod lhs;
mod map_file;
mod matmul;
mod matmul_bf16;
mod matmul_f16;
mod matmul_full_precision;
mod matmul_int8;
mod packed;
mod panel_product;
mod peak;
mod portable;
mod quantize;
mod real;
mod rounded;
mod rows;
mod simd;
mod spans;
#[cfg(test)]
mod testing;
mod transposed;
mod vectorised;
mod widened;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use aligned::{AlignedVec, OutOfMemory, ParallelFor, collected, zeroed, zeros};
pub use at_fork::call_at_fork;
pub use dropout::{dropout, philox, unit};
pub use elementwise::{Elementwise, elementwise, elementwise_backward};
pub use float_bytes::{bytes_of_f32s, f32s_of_bytes};
pub use isa::Isa;
pub use lhs::{Lhs, LhsBuffer, activate_lhs, full_precision_stride, lhs_stride, prepare_lhs};
pub use map_file::MappedFile;
pub use matmul::{Init, matmul};
pub use packed::{
    INT8_K_BLOCK, PANEL, PackedMatrix, Panels, WeightDtype, pack_bfloat16, pack_full_precision, packed_len,
};
#[doc(hidden)]
pub use peak::multiply_adds;
pub use real::Real;
pub use rounded::LowPrecision;
pub use rows::{
    add_in_place, axpy, layer_norm, layer_norm_backward, log_sum_exp, softmax_backward, softmax_in_place,
    transpose,
};
pub use transposed::{transpose_to_bfloat16, transpose_to_full_precision};
