//! Rounding of `f32` to bfloat16.

use half::bf16;

/// The bits of the nearest bfloat16 in the upper half, ties to even, and any bits below. NaN stays NaN.
///
/// Source: `half`'s conversion, in a form that vectorises.
#[inline(always)]
pub fn round_upper_half(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    if bits & 0x7fff_ffff > 0x7f80_0000 { bits | 0x0040_0000 } else { rounded }
}

/// The nearest bfloat16, ties to even.
#[inline(always)]
pub fn nearest_bfloat16(x: f32) -> bf16 {
    bf16::from_bits((round_upper_half(x) >> 16) as u16)
}
