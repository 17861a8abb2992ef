//! Arithmetic on single floating-point numbers.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

use bytemuck::Pod;

/// A floating-point number.
pub trait Number:
    Pod
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
{
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// Nearest value to `x`.
    fn from_f64(x: f64) -> Self;
    /// The value as `f64`.
    fn to_f64(self) -> f64;
    /// Nearest value to `x`.
    fn from_f32(x: f32) -> Self {
        Self::from_f64(f64::from(x))
    }
    /// The nearest `f32`.
    fn to_f32(self) -> f32;
    /// e^self
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// The larger of the two; `other` if `self` is NaN.
    fn max(self, other: Self) -> Self;
    /// Neither infinite nor NaN.
    fn is_finite(self) -> bool;
    /// Not a number.
    fn is_nan(self) -> bool;
    /// Without its sign.
    fn abs(self) -> Self;
    /// With the sign of `sign`.
    fn copysign(self, sign: Self) -> Self;
    /// Nearest integer, ties to even, for `|self| < 2^22`.
    fn round_small(self) -> Self;
    /// `self * 2^n` for integral `n`, `|n| <= 252`.
    fn scale_by_power_of_two(self, n: Self) -> Self;
    /// `(m, n)` with `self = m * 2^n`, `sqrt(1/2) <= m < sqrt(2)`, for positive normal numbers.
    fn split_exponent(self) -> (Self, Self);
    /// The slice itself if its elements are `f32`: the way into kernels that exist for `f32` only.
    fn f32_slice(x: &[Self]) -> Option<&[f32]>;
    /// As [`Number::f32_slice`], to write to.
    fn f32_slice_mut(x: &mut [Self]) -> Option<&mut [f32]>;
}

macro_rules! impl_number {
    ($t:ty, $bits:ty, |$x:ident| $as_f32:expr) => {
        impl Number for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn tanh(self) -> Self {
                self.tanh()
            }
            fn max(self, other: Self) -> Self {
                self.max(other)
            }
            fn is_finite(self) -> bool {
                self.is_finite()
            }
            fn is_nan(self) -> bool {
                self.is_nan()
            }
            #[inline(always)]
            fn abs(self) -> Self {
                self.abs()
            }
            #[inline(always)]
            fn copysign(self, sign: Self) -> Self {
                self.copysign(sign)
            }
            #[inline(always)]
            fn round_small(self) -> Self {
                // Adding 1.5 * 2^(digits - 1) leaves no room for a fraction; cheaper than a call where the machine
                // has no rounding instruction.
                const SHIFT: $t = 1.5 / <$t>::EPSILON;
                (self + SHIFT) - SHIFT
            }
            #[inline(always)]
            fn scale_by_power_of_two(self, n: Self) -> Self {
                // By two powers of two, since one normal number cannot reach all.
                const DIGITS: u32 = <$t>::MANTISSA_DIGITS - 1;
                let n = n as $bits;
                let power = |n: $bits| <$t>::from_bits(((n + (<$t>::MAX_EXP as $bits - 1)) << DIGITS) as _);
                self * power(n >> 1) * power(n - (n >> 1))
            }
            #[inline(always)]
            fn split_exponent(self) -> (Self, Self) {
                const DIGITS: u32 = <$t>::MANTISSA_DIGITS - 1;
                const SQRT_HALF: $t = std::f64::consts::FRAC_1_SQRT_2 as $t;
                let bits = self.to_bits() as $bits;
                let n = (bits - SQRT_HALF.to_bits() as $bits) >> DIGITS;
                (<$t>::from_bits((bits - (n << DIGITS)) as _), n as $t)
            }
            fn f32_slice($x: &[Self]) -> Option<&[f32]> {
                $as_f32
            }
            fn f32_slice_mut($x: &mut [Self]) -> Option<&mut [f32]> {
                $as_f32
            }
        }
    };
}

impl_number!(f32, i32, |x| Some(x));
impl_number!(f64, i64, |_x| None);
