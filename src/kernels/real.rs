//! The element type of activations: `f32` in use, `f64` where tests check gradients against finite differences.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// A floating-point number that the layers compute with.
pub trait Real:
    Copy
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
    + 'static
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
    /// The slice itself if its elements are `f32`: the way into kernels that exist for `f32` only.
    fn f32_slice(x: &[Self]) -> Option<&[f32]>;
    /// As [`Real::f32_slice`], to write to.
    fn f32_slice_mut(x: &mut [Self]) -> Option<&mut [f32]>;
}

macro_rules! impl_real {
    ($t:ty, |$x:ident| $as_f32:expr) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            fn to_f32(self) -> f32 {
                self as f32
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
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
            fn f32_slice($x: &[Self]) -> Option<&[f32]> {
                $as_f32
            }
            fn f32_slice_mut($x: &mut [Self]) -> Option<&mut [f32]> {
                $as_f32
            }
        }
    };
}

impl_real!(f32, |x| Some(x));
impl_real!(f64, |_x| None);
