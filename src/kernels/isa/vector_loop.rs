//! The one way to write a loop over numbers: a [`VectorLoop`], handed to [`Real::dispatch`](super::real::Real::dispatch).
//!
//! [`run`](VectorLoop::run) is compiled once per instruction set, with its instructions. Loops whose bits matter take the
//! token's vectors, walked over by [`spans`](super::spans). Loops over other types (bytes, bfloat16, random words) may
//! leave the token alone and be plain code that the compiler vectorises: it never fuses a multiplication with an
//! addition by itself, so their bits are the same everywhere.

use super::simd::Simd;

/// A loop written once for all instruction sets. `R` is the element type of the token that it gets.
pub trait VectorLoop<R> {
    /// Its result.
    type Output;
    /// Whether it writes bfloat16, for which some machines have an instruction of their own.
    const TO_BFLOAT16: bool = false;
    /// Runs it. Implementations are `#[inline(always)]`, to be compiled with the instructions of their caller; so are
    /// the closures in them.
    fn run<S: Simd<Elem = R>>(self, simd: S) -> Self::Output;
}
