//! What the tokens of x86-64 have in common.

use std::arch::x86_64::*;

/// Calls intrinsics: `intrinsics!(expression)`.
macro_rules! intrinsics {
    ($($body:tt)*) => {
        // SAFETY: the token proves that the machine has these instructions, and any address used is that of a
        // reference to `LANES` elements or vouched for by the caller of an unsafe method.
        unsafe { $($body)* }
    };
}
pub(super) use intrinsics;

/// Bits of the `f32` nearest to `sqrt(1/2)`.
pub(super) const SQRT_HALF_BITS: i32 = 0x3f35_04f3;

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn sum_256(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn largest_256(v: __m256) -> f32 {
    let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
}

/// The same pointer, of which the compiler cannot tell that it was computed from another.
#[inline(always)]
pub(in crate::kernels) fn opaque<T>(mut x: *const T) -> *const T {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {} */", inout(reg) x, options(pure, readonly, nostack, preserves_flags)) };
    x
}
