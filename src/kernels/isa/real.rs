//! The element type of activations: `f32` in use, `f64` where tests check gradients against finite differences.

use std::sync::Arc;

use super::functions;
use super::level::Isa;
use super::number::Number;
use super::portable::Portable;
use super::simd::Simd;
use super::vector_loop::VectorLoop;
use crate::kernels::fourier::{ComplexFft, FftPlans, RealFft};

/// A floating-point number that the layers compute with: it knows its vectors, and the functions on them whose accuracy
/// depends on the type.
pub trait Real: Number {
    /// Runs `it` with the token of `isa` for this type.
    fn dispatch<L: VectorLoop<Self>>(isa: Isa, it: L) -> L::Output;

    /// e^v; 0 below the smallest normal number.
    fn exp_lanes<S: Simd<Elem = Self>>(simd: S, v: S::Vec) -> S::Vec;
    /// e^v - 1 for `v <= 0`.
    fn exp_m1_lanes<S: Simd<Elem = Self>>(simd: S, v: S::Vec) -> S::Vec;
    /// Natural logarithm of positive normal numbers.
    fn ln_lanes<S: Simd<Elem = Self>>(simd: S, v: S::Vec) -> S::Vec;
    /// log(1 + v) for `0 <= v <= 1`.
    fn ln_1p_lanes<S: Simd<Elem = Self>>(simd: S, v: S::Vec) -> S::Vec;
    /// 2^v; 0 below the smallest subnormal number. Cheaper than [`Real::exp_lanes`], and as exact if `v` is.
    fn exp2_lanes<S: Simd<Elem = Self>>(simd: S, v: S::Vec) -> S::Vec;
    /// The normal distribution function.
    fn normal_cdf_lanes<S: Simd<Elem = Self>>(simd: S, v: S::Vec) -> S::Vec;

    /// The Fourier transform of vectors of `len` (at least 1) numbers, planned at the first call with this length.
    fn real_fft(len: usize) -> Arc<dyn RealFft<Self>>;
    /// The Fourier transform of vectors of `len` complex numbers, planned likewise.
    fn complex_fft(len: usize) -> Arc<dyn ComplexFft<Self>>;
}

static PLANS_F32: FftPlans<f32> = FftPlans::new();
static PLANS_F64: FftPlans<f64> = FftPlans::new();

impl Real for f32 {
    fn dispatch<L: VectorLoop<f32>>(isa: Isa, it: L) -> L::Output {
        #[cfg(target_arch = "x86_64")]
        {
            if L::TO_BFLOAT16
                && let Some(simd) = super::avx512::Avx512::<true>::new(isa)
            {
                return simd.run(it);
            }
            if let Some(simd) = super::avx512::Avx512::<false>::new(isa) {
                return simd.run(it);
            }
            if let Some(simd) = super::avx2::Avx2::new(isa) {
                return simd.run(it);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(simd) = super::neon::Neon::new(isa) {
            return simd.run(it);
        }
        let _ = isa;
        it.run(Portable::new())
    }

    #[inline(always)]
    fn exp_lanes<S: Simd<Elem = f32>>(simd: S, v: S::Vec) -> S::Vec {
        functions::exp(simd, v)
    }
    #[inline(always)]
    fn exp_m1_lanes<S: Simd<Elem = f32>>(simd: S, v: S::Vec) -> S::Vec {
        functions::exp_m1(simd, v)
    }
    #[inline(always)]
    fn ln_lanes<S: Simd<Elem = f32>>(simd: S, v: S::Vec) -> S::Vec {
        functions::ln(simd, v)
    }
    #[inline(always)]
    fn ln_1p_lanes<S: Simd<Elem = f32>>(simd: S, v: S::Vec) -> S::Vec {
        functions::ln_1p(simd, v)
    }
    #[inline(always)]
    fn exp2_lanes<S: Simd<Elem = f32>>(simd: S, v: S::Vec) -> S::Vec {
        functions::exp2(simd, v)
    }
    #[inline(always)]
    fn normal_cdf_lanes<S: Simd<Elem = f32>>(simd: S, v: S::Vec) -> S::Vec {
        functions::normal_cdf(simd, v)
    }

    fn real_fft(len: usize) -> Arc<dyn RealFft<f32>> {
        PLANS_F32.real(len)
    }
    fn complex_fft(len: usize) -> Arc<dyn ComplexFft<f32>> {
        PLANS_F32.complex(len)
    }
}

impl Real for f64 {
    fn dispatch<L: VectorLoop<f64>>(_isa: Isa, it: L) -> L::Output {
        it.run(Portable::new())
    }

    #[inline(always)]
    fn exp_lanes<S: Simd<Elem = f64>>(simd: S, v: S::Vec) -> S::Vec {
        simd.map(v, f64::exp)
    }
    #[inline(always)]
    fn exp_m1_lanes<S: Simd<Elem = f64>>(simd: S, v: S::Vec) -> S::Vec {
        simd.map(v, f64::exp_m1)
    }
    #[inline(always)]
    fn ln_lanes<S: Simd<Elem = f64>>(simd: S, v: S::Vec) -> S::Vec {
        simd.map(v, f64::ln)
    }
    #[inline(always)]
    fn ln_1p_lanes<S: Simd<Elem = f64>>(simd: S, v: S::Vec) -> S::Vec {
        simd.map(v, f64::ln_1p)
    }
    #[inline(always)]
    fn exp2_lanes<S: Simd<Elem = f64>>(simd: S, v: S::Vec) -> S::Vec {
        simd.map(v, f64::exp2)
    }
    #[inline(always)]
    fn normal_cdf_lanes<S: Simd<Elem = f64>>(simd: S, v: S::Vec) -> S::Vec {
        simd.map(v, |x| 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2))
    }

    fn real_fft(len: usize) -> Arc<dyn RealFft<f64>> {
        PLANS_F64.real(len)
    }
    fn complex_fft(len: usize) -> Arc<dyn ComplexFft<f64>> {
        PLANS_F64.complex(len)
    }
}
