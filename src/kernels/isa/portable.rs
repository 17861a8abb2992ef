//! The portable token: plain Rust, the reference for all others. Multiply-add is rounded twice, so that results are
//! the same on every machine without help from its C library.

use half::f16;

use super::number::Number;
use super::simd::{LANES, Simd};

/// Token of the portable path; always there.
#[derive(Clone, Copy)]
pub struct Portable<R>(std::marker::PhantomData<R>);

impl<R> Portable<R> {
    /// The token.
    pub fn new() -> Self {
        Portable(std::marker::PhantomData)
    }
}

#[inline(always)]
fn zip<T: Copy, U>(a: [T; LANES], b: [T; LANES], f: impl Fn(T, T) -> U) -> [U; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Joins the upper half to the lower until one lane is left.
#[inline(always)]
fn reduce<R: Copy>(mut v: [R; LANES], f: impl Fn(R, R) -> R) -> R {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            v[i] = f(v[i], v[i + half]);
        }
        half /= 2;
    }
    v[0]
}

impl<R: Number> Simd for Portable<R> {
    type Elem = R;
    type Vec = [R; LANES];
    type Mask = [bool; LANES];

    const TILE_ROWS: usize = 2;
    const TILE_VECS: usize = 1;

    #[inline(always)]
    fn splat(self, x: R) -> Self::Vec {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[R; LANES]) -> Self::Vec {
        *x
    }
    #[inline(always)]
    fn load_partial(self, x: &[R]) -> Self::Vec {
        let mut v = [R::ZERO; LANES];
        v[..x.len()].copy_from_slice(x);
        v
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Self::Vec {
        x.map(|x| R::from_f32(x.to_f32()))
    }
    #[inline(always)]
    fn store(self, v: Self::Vec, out: &mut [R; LANES]) {
        *out = v;
    }
    #[inline(always)]
    fn store_partial(self, v: Self::Vec, out: &mut [R]) {
        out.copy_from_slice(&v[..out.len()]);
    }

    #[inline(always)]
    fn add(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::Vec, b: Self::Vec, c: Self::Vec) -> Self::Vec {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn min(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, v: Self::Vec) -> Self::Vec {
        v.map(R::abs)
    }
    #[inline(always)]
    fn with_sign_of(self, magnitude: Self::Vec, sign: Self::Vec) -> Self::Vec {
        zip(magnitude, sign, R::copysign)
    }
    #[inline(always)]
    fn round(self, v: Self::Vec) -> Self::Vec {
        v.map(R::round_small)
    }
    #[inline(always)]
    fn scale_by_power_of_two(self, v: Self::Vec, n: Self::Vec) -> Self::Vec {
        zip(v, n, R::scale_by_power_of_two)
    }
    #[inline(always)]
    fn split_exponent(self, v: Self::Vec) -> (Self::Vec, Self::Vec) {
        let parts = v.map(R::split_exponent);
        (parts.map(|p| p.0), parts.map(|p| p.1))
    }

    #[inline(always)]
    fn first_lanes(self, len: usize) -> Self::Mask {
        std::array::from_fn(|i| i < len)
    }
    #[inline(always)]
    fn less(self, a: Self::Vec, b: Self::Vec) -> Self::Mask {
        zip(a, b, |a, b| a < b)
    }
    #[inline(always)]
    fn less_or_equal(self, a: Self::Vec, b: Self::Vec) -> Self::Mask {
        zip(a, b, |a, b| a <= b)
    }
    #[inline(always)]
    fn select(self, mask: Self::Mask, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        std::array::from_fn(|i| if mask[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn sum(self, v: Self::Vec) -> R {
        reduce(v, |a, b| a + b)
    }
    #[inline(always)]
    fn largest(self, v: Self::Vec) -> R {
        reduce(v, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn load_ptr(self, x: *const R) -> Self::Vec {
        // SAFETY: the caller's promise; an array of `LANES` elements needs no more alignment than its element.
        unsafe { x.cast::<[R; LANES]>().read() }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: Self::Vec, out: *mut R) {
        // SAFETY: as in `load_ptr`.
        unsafe { out.cast::<[R; LANES]>().write(v) }
    }
    #[inline(always)]
    fn prefetch(self, _x: *const R) {}
    #[inline(always)]
    fn transpose(self, rows: [Self::Vec; LANES]) -> [Self::Vec; LANES] {
        std::array::from_fn(|c| std::array::from_fn(|r| rows[r][c]))
    }
}
