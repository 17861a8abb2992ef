//! The AVX2 and AVX-512 tokens.

use std::arch::x86_64::*;

use super::Isa;
use super::isa::Level;
use super::simd::{LANES, Simd, VectorOp};

/// Token of AVX-512 F, BW, DQ, VL: one register per vector.
#[derive(Clone, Copy)]
pub struct Avx512(());

/// Token of AVX2 with FMA: two registers per vector.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx512 {
    /// The token, if `isa` proves the instructions.
    pub fn new(isa: Isa) -> Option<Self> {
        (isa.level() >= Level::Avx512).then_some(Avx512(()))
    }

    /// Runs `op` compiled for this instruction set.
    pub fn run<Op: VectorOp<f32>>(self, op: Op) -> Op::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        fn run<Op: VectorOp<f32>>(simd: Avx512, op: Op) -> Op::Output {
            op.eval(simd)
        }
        // SAFETY: the token proves that the machine has these instructions.
        unsafe { run(self, op) }
    }
}

impl Avx2 {
    /// The token, if `isa` proves the instructions.
    pub fn new(isa: Isa) -> Option<Self> {
        (isa.level() >= Level::Avx2).then_some(Avx2(()))
    }

    /// Runs `op` compiled for this instruction set.
    pub fn run<Op: VectorOp<f32>>(self, op: Op) -> Op::Output {
        #[target_feature(enable = "avx2,fma")]
        fn run<Op: VectorOp<f32>>(simd: Avx2, op: Op) -> Op::Output {
            op.eval(simd)
        }
        // SAFETY: the token proves that the machine has these instructions.
        unsafe { run(self, op) }
    }
}

/// Calls intrinsics: `intrinsics!(expression)`.
macro_rules! intrinsics {
    ($($body:tt)*) => {
        // SAFETY: the token proves that the machine has these instructions, and any address used is that of a
        // reference to `LANES` elements or vouched for by the caller of an unsafe method.
        unsafe { $($body)* }
    };
}

/// The lowest `len` of [`LANES`] lanes.
#[inline(always)]
fn lowest(len: usize) -> __mmask16 {
    assert!(len <= LANES);
    ((1u32 << len) - 1) as __mmask16
}

impl Simd for Avx512 {
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
    fn store(self, v: __m512, out: &mut [f32; LANES]) {
        intrinsics!(_mm512_storeu_ps(out.as_mut_ptr(), v))
    }
    #[inline(always)]
    fn store_partial(self, v: __m512, out: &mut [f32]) {
        let mask = lowest(out.len());
        intrinsics!(_mm512_mask_storeu_ps(out.as_mut_ptr(), mask, v))
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

/// Bits of the `f32` nearest to `sqrt(1/2)`.
const SQRT_HALF_BITS: i32 = 0x3f35_04f3;

#[target_feature(enable = "avx2")]
#[inline]
fn sum_256(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn largest_256(v: __m256) -> f32 {
    let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
}

/// Both halves of an AVX2 vector through the same expression.
macro_rules! both {
    (|$i:ident| $body:expr) => {
        intrinsics!([
            {
                let $i = 0;
                $body
            },
            {
                let $i = 1;
                $body
            }
        ])
    };
}

impl Simd for Avx2 {
    type Elem = f32;
    type Vec = [__m256; 2];
    type Mask = [__m256; 2];

    // 6 x 2 registers of sums, 2 of the right operand, one broadcast element: 15 of 16 registers.
    const TILE_ROWS: usize = 6;
    const TILE_VECS: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Vec {
        intrinsics!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::Vec {
        both!(|i| _mm256_loadu_ps(x.as_ptr().add(8 * i)))
    }
    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> Self::Vec {
        let mut lanes = [0.0; LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load(&lanes)
    }
    #[inline(always)]
    fn store(self, v: Self::Vec, out: &mut [f32; LANES]) {
        both!(|i| _mm256_storeu_ps(out.as_mut_ptr().add(8 * i), v[i]));
    }
    #[inline(always)]
    fn store_partial(self, v: Self::Vec, out: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }

    #[inline(always)]
    fn add(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        both!(|i| _mm256_add_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn sub(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        both!(|i| _mm256_sub_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn mul(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        both!(|i| _mm256_mul_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn div(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        both!(|i| _mm256_div_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn mul_add(self, a: Self::Vec, b: Self::Vec, c: Self::Vec) -> Self::Vec {
        both!(|i| _mm256_fmadd_ps(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn min(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        both!(|i| _mm256_min_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        both!(|i| _mm256_max_ps(a[i], b[i]))
    }
    #[inline(always)]
    fn abs(self, v: Self::Vec) -> Self::Vec {
        both!(|i| _mm256_andnot_ps(_mm256_set1_ps(-0.0), v[i]))
    }
    #[inline(always)]
    fn with_sign_of(self, magnitude: Self::Vec, sign: Self::Vec) -> Self::Vec {
        both!(|i| _mm256_or_ps(magnitude[i], _mm256_and_ps(sign[i], _mm256_set1_ps(-0.0))))
    }
    #[inline(always)]
    fn round(self, v: Self::Vec) -> Self::Vec {
        both!(|i| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v[i]))
    }
    /// By two powers of two, since one normal number cannot reach all.
    #[inline(always)]
    fn scale_by_power_of_two(self, v: Self::Vec, n: Self::Vec) -> Self::Vec {
        both!(|i| {
            let n = _mm256_cvtps_epi32(n[i]);
            let half = _mm256_srai_epi32::<1>(n);
            let bias = _mm256_set1_epi32(127);
            let first = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
            let second = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias));
            _mm256_mul_ps(_mm256_mul_ps(v[i], _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second))
        })
    }
    #[inline(always)]
    fn split_exponent(self, v: Self::Vec) -> (Self::Vec, Self::Vec) {
        let parts = both!(|i| {
            let bits = _mm256_castps_si256(v[i]);
            let above = _mm256_sub_epi32(bits, _mm256_set1_epi32(SQRT_HALF_BITS));
            let n = _mm256_srai_epi32::<23>(above);
            let m = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32::<23>(n)));
            (m, _mm256_cvtepi32_ps(n))
        });
        ([parts[0].0, parts[1].0], [parts[0].1, parts[1].1])
    }

    #[inline(always)]
    fn first_lanes(self, len: usize) -> Self::Mask {
        both!(|i| {
            let lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(8 * i));
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(len as i32), lane))
        })
    }
    #[inline(always)]
    fn less(self, a: Self::Vec, b: Self::Vec) -> Self::Mask {
        both!(|i| _mm256_cmp_ps::<_CMP_LT_OQ>(a[i], b[i]))
    }
    #[inline(always)]
    fn less_or_equal(self, a: Self::Vec, b: Self::Vec) -> Self::Mask {
        both!(|i| _mm256_cmp_ps::<_CMP_LE_OQ>(a[i], b[i]))
    }
    #[inline(always)]
    fn select(self, mask: Self::Mask, a: Self::Vec, b: Self::Vec) -> Self::Vec {
        both!(|i| _mm256_blendv_ps(b[i], a[i], mask[i]))
    }

    #[inline(always)]
    fn sum(self, v: Self::Vec) -> f32 {
        intrinsics!(sum_256(_mm256_add_ps(v[0], v[1])))
    }
    #[inline(always)]
    fn largest(self, v: Self::Vec) -> f32 {
        intrinsics!(largest_256(_mm256_max_ps(v[0], v[1])))
    }

    #[inline(always)]
    unsafe fn load_ptr(self, x: *const f32) -> Self::Vec {
        both!(|i| _mm256_loadu_ps(x.add(8 * i)))
    }
    #[inline(always)]
    unsafe fn store_ptr(self, v: Self::Vec, out: *mut f32) {
        both!(|i| _mm256_storeu_ps(out.add(8 * i), v[i]));
    }
    #[inline(always)]
    fn prefetch(self, x: *const f32) {
        intrinsics!(_mm_prefetch::<_MM_HINT_T1>(x.cast()))
    }
    #[inline(always)]
    fn opaque(self, x: *const f32) -> *const f32 {
        opaque(x)
    }

    /// Four 8 x 8 blocks.
    #[inline(always)]
    fn transpose(self, rows: [Self::Vec; LANES]) -> [Self::Vec; LANES] {
        intrinsics!({
            let block =
                |first: usize, half: usize| transpose_8x8(std::array::from_fn(|i| rows[first + i][half]));
            let blocks = [[block(0, 0), block(8, 0)], [block(0, 1), block(8, 1)]];
            std::array::from_fn(|c| [blocks[c / 8][0][c % 8], blocks[c / 8][1][c % 8]])
        })
    }
}

/// The same pointer, of which the compiler cannot tell that it was computed from another.
#[inline(always)]
pub(super) fn opaque<T>(mut x: *const T) -> *const T {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {} */", inout(reg) x, options(pure, readonly, nostack, preserves_flags)) };
    x
}

#[target_feature(enable = "avx2")]
#[inline]
fn transpose_8x8(rows: [__m256; 8]) -> [__m256; 8] {
    let upper = halves([rows[0], rows[1], rows[2], rows[3]]);
    let lower = halves([rows[4], rows[5], rows[6], rows[7]]);
    let mut out = rows;
    for j in 0..4 {
        out[j] = _mm256_permute2f128_ps::<0x20>(upper[j], lower[j]);
        out[4 + j] = _mm256_permute2f128_ps::<0x31>(upper[j], lower[j]);
    }
    out
}

/// Columns of four rows: the `q`-th half of the `j`-th result is column `4 q + j`.
#[target_feature(enable = "avx2")]
#[inline]
fn halves(rows: [__m256; 4]) -> [__m256; 4] {
    let [a, b, c, d] = rows;
    let (ab_low, ab_high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let (cd_low, cd_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    [
        _mm256_shuffle_ps::<0x44>(ab_low, cd_low),
        _mm256_shuffle_ps::<0xee>(ab_low, cd_low),
        _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
        _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
    ]
}
