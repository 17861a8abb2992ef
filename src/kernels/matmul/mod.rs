//! Matrix products: operands in the form that kernels want, and a kernel per storage type and instruction set.

#[cfg(target_arch = "x86_64")]
mod amx;
mod bfloat16;
mod block;
#[cfg(target_arch = "x86_64")]
mod dot_tile;
#[cfg(target_arch = "x86_64")]
mod dot_x86_64;
mod float16;
mod full_precision;
mod init;
mod int8;
mod layout;
mod lhs;
mod low_precision;
mod pack;
mod pack_bfloat16_panel;
mod pack_int8_panel;
mod packed;
mod packed_bytes;
mod panel_product;
mod panels;
mod product;
mod quantize;
mod register_tile;
mod transposed;
mod update;
mod widened;

pub use init::Init;
pub use layout::{INT8_K_BLOCK, PANEL, packed_len};
pub use lhs::{
    Lhs, LhsBuffer, activate_lhs, exponentials_lhs, full_precision_stride, lhs_stride, prepare_lhs,
    prepare_transposed_lhs,
};
pub use low_precision::LowPrecision;
pub use pack::{pack_bfloat16, pack_full_precision};
pub use packed::PackedMatrix;
pub use packed_bytes::PANEL_LAYOUT_VERSION;
pub use panels::Panels;
pub use product::matmul;
pub use quantize::{round_to_bfloat16, round_to_float16};
pub use transposed::{transpose_to_bfloat16, transpose_to_full_precision};
pub use update::{GradientRows, update_weights};
