//! Capability tokens: a loop is written once against [`Simd`] and compiled once per instruction set.
//!
//! A value of a type that implements [`Simd`] exists only where the machine has the instructions, so its arithmetic
//! is safe to call. Vectors have [`LANES`] lanes on every instruction set (one 512-bit register, two of 256 bits, four
//! of 128, or an array): sums over lanes have the same tree everywhere, and where multiply-add is fused (AVX2,
//! AVX-512, Neon) all results agree to the bit.
//!
//! Every method is `#[inline(always)]`: only code inlined into the function that carries `#[target_feature]` is compiled
//! with those instructions.

use half::{bf16, f16};

use super::number::Number;
use super::round::nearest_bfloat16;

/// Lanes of every vector.
pub const LANES: usize = 16;

/// Arithmetic on vectors of [`LANES`] elements under one instruction set.
pub trait Simd: Copy {
    /// Type of a lane.
    type Elem: Number;
    /// [`LANES`] elements.
    type Vec: Copy;
    /// One truth value per lane.
    type Mask: Copy;

    /// Rows of the register tile of products: as many as leave registers for the right operand.
    const TILE_ROWS: usize;
    /// Vectors per row of the register tile: 1 (half a panel) or 2 (a panel).
    const TILE_VECS: usize;

    /// All lanes `x`.
    fn splat(self, x: Self::Elem) -> Self::Vec;
    /// The elements of `x`.
    fn load(self, x: &[Self::Elem; LANES]) -> Self::Vec;
    /// Up to [`LANES`] elements; missing lanes are 0.
    fn load_partial(self, x: &[Self::Elem]) -> Self::Vec;
    /// The elements of `x`, widened.
    fn load_f16(self, x: &[f16; LANES]) -> Self::Vec;
    /// Writes all lanes.
    fn store(self, v: Self::Vec, out: &mut [Self::Elem; LANES]);
    /// Writes all of `out`, up to [`LANES`] elements.
    fn store_partial(self, v: Self::Vec, out: &mut [Self::Elem]);
    /// Writes the bfloat16 numbers nearest to all lanes, ties to even. Subnormal numbers may become 0, as they count as 0 in
    /// the products of a machine that has `vdpbf16ps`.
    #[inline(always)]
    fn store_bfloat16(self, v: Self::Vec, out: &mut [bf16; LANES]) {
        let mut lanes = [Self::Elem::ZERO; LANES];
        self.store(v, &mut lanes);
        for (out, x) in out.iter_mut().zip(lanes) {
            *out = nearest_bfloat16(x.to_f32());
        }
    }

    /// `a + b`
    fn add(self, a: Self::Vec, b: Self::Vec) -> Self::Vec;
    /// `a - b`
    fn sub(self, a: Self::Vec, b: Self::Vec) -> Self::Vec;
    /// `a * b`
    fn mul(self, a: Self::Vec, b: Self::Vec) -> Self::Vec;
    /// `a / b`
    fn div(self, a: Self::Vec, b: Self::Vec) -> Self::Vec;
    /// `a * b + c`, in one rounding except on the portable path.
    fn mul_add(self, a: Self::Vec, b: Self::Vec, c: Self::Vec) -> Self::Vec;
    /// The smaller; `b` if either is NaN.
    fn min(self, a: Self::Vec, b: Self::Vec) -> Self::Vec;
    /// The larger; `b` if either is NaN.
    fn max(self, a: Self::Vec, b: Self::Vec) -> Self::Vec;
    /// Without its sign.
    fn abs(self, v: Self::Vec) -> Self::Vec;
    /// `magnitude` (not negative) with the sign of `sign`.
    fn with_sign_of(self, magnitude: Self::Vec, sign: Self::Vec) -> Self::Vec;
    /// Nearest integer, ties to even, for `|v| < 2^22`.
    fn round(self, v: Self::Vec) -> Self::Vec;
    /// `v * 2^n` for integral `n`, `|n| <= 252`; exact unless the result is subnormal.
    fn scale_by_power_of_two(self, v: Self::Vec, n: Self::Vec) -> Self::Vec;
    /// `(m, n)` with `v = m * 2^n`, `sqrt(1/2) <= m < sqrt(2)`, for positive normal `v`.
    fn split_exponent(self, v: Self::Vec) -> (Self::Vec, Self::Vec);

    /// True in the first `len` lanes.
    fn first_lanes(self, len: usize) -> Self::Mask;
    /// `a < b`
    fn less(self, a: Self::Vec, b: Self::Vec) -> Self::Mask;
    /// `a <= b`
    fn less_or_equal(self, a: Self::Vec, b: Self::Vec) -> Self::Mask;
    /// Lanes of `a` where `mask`, else of `b`.
    fn select(self, mask: Self::Mask, a: Self::Vec, b: Self::Vec) -> Self::Vec;

    /// Sum of the lanes: the upper half is added to the lower until one lane is left.
    fn sum(self, v: Self::Vec) -> Self::Elem;
    /// Largest lane, by the same tree.
    fn largest(self, v: Self::Vec) -> Self::Elem;

    /// Reads [`LANES`] elements from `x` on.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load_ptr(self, x: *const Self::Elem) -> Self::Vec;
    /// Writes [`LANES`] elements from `out` on.
    ///
    /// # Safety
    /// They must be writable.
    unsafe fn store_ptr(self, v: Self::Vec, out: *mut Self::Elem);
    /// Asks for the cache line at `x` to be fetched into the L2 cache; any address will do.
    fn prefetch(self, x: *const Self::Elem);
    /// The same pointer, of which the compiler cannot tell that it was computed from another.
    #[inline(always)]
    fn opaque(self, x: *const Self::Elem) -> *const Self::Elem {
        x
    }
    /// Transposes a 16 x 16 block: `out[c][r] = rows[r][c]`.
    fn transpose(self, rows: [Self::Vec; LANES]) -> [Self::Vec; LANES];

    /// Each lane through `f`.
    #[inline(always)]
    fn map(self, v: Self::Vec, f: impl Fn(Self::Elem) -> Self::Elem) -> Self::Vec {
        let mut lanes = [Self::Elem::ZERO; LANES];
        self.store(v, &mut lanes);
        self.load(&lanes.map(f))
    }

    /// All lanes 0.
    #[inline(always)]
    fn zero(self) -> Self::Vec {
        self.splat(Self::Elem::ZERO)
    }

    /// All lanes the value nearest to `x`.
    #[inline(always)]
    fn constant(self, x: f64) -> Self::Vec {
        self.splat(Self::Elem::from_f64(x))
    }

    /// `-v`
    #[inline(always)]
    fn neg(self, v: Self::Vec) -> Self::Vec {
        self.sub(self.constant(-0.0), v)
    }
}
