//! The AVX-512 token.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::level::{Isa, Level};
use super::simd::{LANES, Simd};
use super::vector_loop::VectorLoop;
use super::x86_64::{SQRT_HALF_BITS, intrinsics, largest_256, opaque, sum_256};

/// Token of AVX-512 F, BW, DQ, VL, and with `BFLOAT16` of AVX512_BF16: one register per vector.
#[derive(Clone, Copy)]
pub struct Avx512<const BFLOAT16: bool>(());

impl Avx512<false> {
    /// The token, if `isa` proves the instructions.
    pub fn new(isa: Isa) -> Option<Self> {
        (isa.level() >= Level::Avx512).then_some(Avx512(()))
    }

    /// Runs `it` compiled for this instruction set.
    pub fn run<L: VectorLoop<f32>>(self, it: L) -> L::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn run<L: VectorLoop<f32>>(simd: Avx512<false>, it: L) -> L::Output {
            it.run(simd)
        }
        // SAFETY: the token proves that the machine has these instructions.
        unsafe { run(self, it) }
    }
}

impl Avx512<true> {
    /// The token, if `isa` proves the instructions.
    pub fn new(isa: Isa) -> Option<Self> {
        (isa.level() >= Level::Avx512Bf16).then_some(Avx512(()))
    }

    /// Runs `it` compiled for this instruction set.
    pub fn run<L: VectorLoop<f32>>(self, it: L) -> L::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
        fn run<L: VectorLoop<f32>>(simd: Avx512<true>, it: L) -> L::Output {
            it.run(simd)
        }
        // SAFETY: the token proves that the machine has these instructions.
        unsafe { run(self, it) }
    }
}

/// The lowest `len` of [`LANES`] lanes.
#[inline(always)]
fn lowest(len: usize) -> __mmask16 {
    assert!(len <= LANES);
    ((1u32 << len) - 1) as __mmask16
}

impl<const BFLOAT16: bool> Simd for Avx512<BFLOAT16> {
    type Elem = f32;
    type Vec = __m512;
    type Mask = __mmask16;

    // 12 x 2 sums, 2 vectors of the right operand, one broadcast element: 27 of 32 registers. At 2 multiply-adds a
    // cycle a step of k takes 12 cycles, in which its 14 loads fit easily.
    const TILE_ROWS: usize = 12;
    const TILE_VECS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        intrinsics!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        intrinsics!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> __m512 {
        let mask = lowest(x.len());
        intrinsics!(_mm512_maskz_loadu_ps(mask, x.as_ptr()))
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> __m512 {
        intrinsics!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn store(self, v: __m512, out: &mut [f32; LANES]) {
        intrinsics!(_mm512_storeu_ps(out.as_mut_ptr(), v))
    }
    #[inline(always)]
    fn store_partial(self, v: __m512, out: &mut [f32]) {
        let mask = lowest(out.len());
        intrinsics!(_mm512_mask_storeu_ps(out.as_mut_ptr(), mask, v))
    }
    #[inline(always)]
    fn store_bfloat16(self, v: __m512, out: &mut [bf16; LANES]) {
        let rounded = if BFLOAT16 {
            intrinsics!(std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v)))
        } else {
            // As `round_upper_half`.
            intrinsics!({
                let bits = _mm512_castps_si512(v);
                let up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
                let odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(1 << 16));
                let up = _mm512_mask_add_epi32(up, odd, up, _mm512_set1_epi32(1));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
                let rounded = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x0040_0000));
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded))
            })
        };
        intrinsics!(_mm256_storeu_si256(out.as_mut_ptr().cast(), rounded))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        intrinsics!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, v: __m512) -> __m512 {
        intrinsics!(_mm512_abs_ps(v))
    }
    #[inline(always)]
    fn with_sign_of(self, magnitude: __m512, sign: __m512) -> __m512 {
        intrinsics!(_mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.0))))
    }
    #[inline(always)]
    fn round(self, v: __m512) -> __m512 {
        intrinsics!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v))
    }
    #[inline(always)]
    fn scale_by_power_of_two(self, v: __m512, n: __m512) -> __m512 {
        intrinsics!(_mm512_scalef_ps(v, n))
    }
    #[inline(always)]
    fn split_exponent(self, v: __m512) -> (__m512, __m512) {
        intrinsics!({
            let bits = _mm512_castps_si512(v);
            let above = _mm512_sub_epi32(bits, _mm512_set1_epi32(SQRT_HALF_BITS));
            let n = _mm512_srai_epi32::<23>(above);
            let m = _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32::<23>(n)));
            (m, _mm512_cvtepi32_ps(n))
        })
    }

    #[inline(always)]
    fn first_lanes(self, len: usize) -> __mmask16 {
        lowest(len)
    }
    #[inline(always)]
    fn less(self, a: __m512, b: __m512) -> __mmask16 {
        intrinsics!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    fn less_or_equal(self, a: __m512, b: __m512) -> __mmask16 {
        intrinsics!(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b))
    }
    #[inline(always)]
    fn select(self, mask: __mmask16, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_mask_blend_ps(mask, b, a))
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        intrinsics!(sum_256(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))))
    }
    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        intrinsics!(largest_256(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v))))
    }

    #[inline(always)]
    unsafe fn load_ptr(self, x: *const f32) -> __m512 {
        intrinsics!(_mm512_loadu_ps(x))
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: __m512, out: *mut f32) {
        intrinsics!(_mm512_storeu_ps(out, v))
    }
    #[inline(always)]
    fn prefetch(self, x: *const f32) {
        intrinsics!(_mm_prefetch::<_MM_HINT_T1>(x.cast()))
    }
    #[inline(always)]
    fn opaque(self, x: *const f32) -> *const f32 {
        opaque(x)
    }

    #[inline(always)]
    fn transpose(self, rows: [__m512; LANES]) -> [__m512; LANES] {
        intrinsics!({
            let b: [[__m512; 4]; 4] = std::array::from_fn(|i| {
                quarters([rows[4 * i], rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]])
            });
            let mut out = rows;
            for j in 0..4 {
                let low = _mm512_shuffle_f32x4::<0x44>(b[0][j], b[1][j]);
                let high = _mm512_shuffle_f32x4::<0xee>(b[0][j], b[1][j]);
                let low2 = _mm512_shuffle_f32x4::<0x44>(b[2][j], b[3][j]);
                let high2 = _mm512_shuffle_f32x4::<0xee>(b[2][j], b[3][j]);
                out[j] = _mm512_shuffle_f32x4::<0x88>(low, low2);
                out[4 + j] = _mm512_shuffle_f32x4::<0xdd>(low, low2);
                out[8 + j] = _mm512_shuffle_f32x4::<0x88>(high, high2);
                out[12 + j] = _mm512_shuffle_f32x4::<0xdd>(high, high2);
            }
            out
        })
    }
}

/// Columns of four rows: the `q`-th quarter of the `j`-th result is column `4 q + j`.
#[target_feature(enable = "avx512f")]
#[inline]
fn quarters(rows: [__m512; 4]) -> [__m512; 4] {
    let [a, b, c, d] = rows;
    let ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
    let ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    let cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
    let cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
    [
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low)),
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high)),
    ]
}
