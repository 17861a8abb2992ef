//! The Neon token.

use std::arch::aarch64::*;

use half::f16;

use super::level::{Isa, Level};
use super::simd::{LANES, Simd};
use super::vector_loop::VectorLoop;

/// Token of Neon: four registers per vector.
#[derive(Clone, Copy)]
pub struct Neon(());

impl Neon {
    /// The token, if `isa` proves the instructions.
    pub fn new(isa: Isa) -> Option<Self> {
        (isa.level() >= Level::Neon).then_some(Neon(()))
    }

    /// Runs `it` compiled for this instruction set.
    pub fn run<L: VectorLoop<f32>>(self, it: L) -> L::Output {
        #[target_feature(enable = "neon")]
        fn run<L: VectorLoop<f32>>(simd: Neon, it: L) -> L::Output {
            it.run(simd)
        }
        // SAFETY: the token proves that the machine has these instructions.
        unsafe { run(self, it) }
    }
}

/// The quarters of a vector through the same expression.
macro_rules! quarters {
    (|$i:ident| $body:expr) => {{
        let quarter = |$i: usize| {
            // SAFETY: the token proves that the machine has these instructions, and any address used is that of a
            // reference to `LANES` elements or vouched for by the caller of an unsafe method.
            unsafe { $body }
        };
        [quarter(0), quarter(1), quarter(2), quarter(3)]
    }};
}

/// Bits of the `f32` nearest to `sqrt(1/2)`.
const SQRT_HALF_BITS: i32 = 0x3f35_04f3;

impl Simd for Neon {
    type Elem = f32;
    type Vec = [float32x4_t; 4];
    type Mask = [uint32x4_t; 4];

    // 6 x 4 registers of sums, 4 of the right operand, one broadcast element: 29 of 32 registers.
    const TILE_ROWS: usize = 6;
    const TILE_VECS: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Vec {
        quarters!(|_i| vdupq_n_f32(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::Vec {
        quarters!(|i| vld1q_f32(x.as_ptr().add(4 * i)))
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> Self::Vec {
        let mut lanes = [0.0; LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load(&lanes)
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Self::Vec {
        self.load(&x.map(f16::to_f32))
    }
    #[inline(always)]
    fn store(self, v: Self::Vec, out: &mut [f32; LANES]) {
        // SAFETY: `out` has `LANES` elements.
        unsafe { self.store_ptr(v, out.as_mut_ptr()) }
    }
    #[inline(always)]
    fn store_partial(self, v: Self::Vec, out: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }

    #[inline(always)]
    fn add(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        quarters!(|i| vaddq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn sub(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        quarters!(|i| vsubq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn mul(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        quarters!(|i| vmulq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn div(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        quarters!(|i| vdivq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn mul_add(self, a: Self::Vec, b: Self::Vec, c: Self::Vec) -> Self::Vec {
        quarters!(|i| vfmaq_f32(c[i], a[i], b[i]))
    }
    // Neon's own minimum and maximum treat NaN in another way.
    #[inline(always)]
    fn min(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        self.select(self.less(a, b), a, b)
    }
    #[inline(always)]
    fn max(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        self.select(self.less(b, a), a, b)
    }
    #[inline(always)]
    fn abs(self, v: Self::Vec) -> Self::Vec {
        quarters!(|i| vabsq_f32(v[i]))
    }
    #[inline(always)]
    fn with_sign_of(self, magnitude: Self::Vec, sign: Self::Vec) -> Self::Vec {
        quarters!(|i| vbslq_f32(vdupq_n_u32(1 << 31), sign[i], magnitude[i]))
    }
    #[inline(always)]
    fn round(self, v: Self::Vec) -> Self::Vec {
        quarters!(|i| vrndnq_f32(v[i]))
    }
    /// By two powers of two, since one normal number cannot reach all.
    #[inline(always)]
    fn scale_by_power_of_two(self, v: Self::Vec, n: Self::Vec) -> Self::Vec {
        quarters!(|i| {
            let n = vcvtq_s32_f32(n[i]);
            let half = vshrq_n_s32::<1>(n);
            let bias = vdupq_n_s32(127);
            let first = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(half, bias)));
            let second = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vsubq_s32(n, half), bias)));
            vmulq_f32(vmulq_f32(v[i], first), second)
        })
    }
    #[inline(always)]
    fn split_exponent(self, v: Self::Vec) -> (Self::Vec, Self::Vec) {
        let parts = quarters!(|i| {
            let bits = vreinterpretq_s32_f32(v[i]);
            let n = vshrq_n_s32::<23>(vsubq_s32(bits, vdupq_n_s32(SQRT_HALF_BITS)));
            let m = vreinterpretq_f32_s32(vsubq_s32(bits, vshlq_n_s32::<23>(n)));
            (m, vcvtq_f32_s32(n))
        });
        (parts.map(|part| part.0), parts.map(|part| part.1))
    }

    #[inline(always)]
    fn first_lanes(self, len: usize) -> Self::Mask {
        let lanes: [u32; LANES] = std::array::from_fn(|i| if i < len { u32::MAX } else { 0 });
        quarters!(|i| vld1q_u32(lanes.as_ptr().add(4 * i)))
    }
    #[inline(always)]
    fn less(self, a: Self::Vec, b: Self::Vec) -> Self::Mask {
        quarters!(|i| vcltq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn less_or_equal(self, a: Self::Vec, b: Self::Vec) -> Self::Mask {
        quarters!(|i| vcleq_f32(a[i], b[i]))
    }
    #[inline(always)]
    fn select(self, mask: Self::Mask, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        quarters!(|i| vbslq_f32(mask[i], a[i], b[i]))
    }

    #[inline(always)]
    fn sum(self, v: Self::Vec) -> f32 {
        // SAFETY: the token proves that the machine has these instructions.
        unsafe {
            let v = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
            vget_lane_f32::<0>(v) + vget_lane_f32::<1>(v)
        }
    }
    #[inline(always)]
    fn largest(self, v: Self::Vec) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] = if lanes[i] > lanes[i + half] { lanes[i] } else { lanes[i + half] };
            }
            half /= 2;
        }
        lanes[0]
    }

    #[inline(always)]
    unsafe fn load_ptr(self, x: *const f32) -> Self::Vec {
        quarters!(|i| vld1q_f32(x.add(4 * i)))
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: Self::Vec, out: *mut f32) {
        quarters!(|i| vst1q_f32(out.add(4 * i), v[i]));
    }
    // The stable library has no prefetch for this architecture; the hardware's own must do.
    #[inline(always)]
    fn prefetch(self, _x: *const f32) {}
    #[inline(always)]
    fn transpose(self, rows: [Self::Vec; LANES]) -> [Self::Vec; LANES] {
        let mut lanes = [[0.0; LANES]; LANES];
        for (row, lanes) in rows.into_iter().zip(&mut lanes) {
            self.store(row, lanes);
        }
        std::array::from_fn(|c| self.load(&std::array::from_fn(|r| lanes[r][c])))
    }
}
