//! The AVX2 token.

use std::arch::x86_64::*;

use half::f16;

use super::level::{Isa, Level};
use super::simd::{LANES, Simd};
use super::vector_loop::VectorLoop;
use super::x86_64::{SQRT_HALF_BITS, intrinsics, largest_256, opaque, sum_256};

/// Token of AVX2 with FMA: two registers per vector.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// The token, if `isa` proves the instructions.
    pub fn new(isa: Isa) -> Option<Self> {
        (isa.level() >= Level::Avx2).then_some(Avx2(()))
    }

    /// Runs `it` compiled for this instruction set.
    pub fn run<L: VectorLoop<f32>>(self, it: L) -> L::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn run<L: VectorLoop<f32>>(simd: Avx2, it: L) -> L::Output {
            it.run(simd)
        }
        // SAFETY: the token proves that the machine has these instructions.
        unsafe { run(self, it) }
    }
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
    fn load_f16(self, x: &[f16; LANES]) -> Self::Vec {
        both!(|i| _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(8 * i).cast())))
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
