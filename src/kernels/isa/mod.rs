//! Instruction sets: which of them the machine has, their vectors, and loops compiled for them.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod functions;
mod level;
#[cfg(target_arch = "aarch64")]
mod neon;
mod number;
mod portable;
mod real;
mod round;
mod simd;
mod spans;
mod vector_loop;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use level::Isa;
#[cfg(target_arch = "x86_64")]
pub(super) use level::Level;
pub use number::Number;
pub use real::Real;
pub use round::{nearest_bfloat16, round_upper_half};
pub use simd::{LANES, Simd};
pub use spans::{Span, Stored, each_span, largest, sum};
pub use vector_loop::VectorLoop;
#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::opaque;
