//! Instructions of x86-64 that multiply groups of 4 bytes.

use std::arch::x86_64::*;

use super::dot_tile::{self, Dot};
use super::panel_product::{PanelKernel, PanelProduct, PanelScaling};
use crate::kernels::isa::{Isa, Level, opaque};

/// Defines a token for `$features`, to be had from [`Level`] `$level` on, whose tiles of `$rows` rows add products
/// by `$dot`.
macro_rules! dot_kernel {
    (
        $(#[$doc:meta])* $name:ident, $level:ident, $features:literal, $rows:literal x $vector:ident,
        |$sums:ident, $left:ident, $panel:ident| $dot:expr
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $name(());

        impl $name {
            /// The kernel, if `isa` proves its instructions.
            pub fn new(isa: Isa) -> Option<Self> {
                (isa.level() >= Level::$level).then_some($name(()))
            }
        }

        impl $name {
            /// # Safety
            /// As [`dot_tile::multiply`].
            #[target_feature(enable = $features)]
            unsafe fn multiply_tiles(self, product: &PanelProduct, scaling: Option<&PanelScaling>) {
                // SAFETY: the caller's promise.
                unsafe { dot_tile::multiply(self, product, scaling) }
            }
        }

        impl PanelKernel for $name {
            const SCALES: bool = true;

            unsafe fn multiply(&mut self, product: &PanelProduct) {
                // SAFETY: the token proves the features; the rest is the caller's promise.
                unsafe { self.multiply_tiles(product, None) }
            }

            unsafe fn multiply_scaled(&mut self, product: &PanelProduct, scaling: &PanelScaling) {
                // SAFETY: as above.
                unsafe { self.multiply_tiles(product, Some(scaling)) }
            }
        }

        impl Dot for $name {
            type Vector = $vector;
            const ROWS: usize = $rows;
            const LANES: usize = size_of::<$vector>() / size_of::<i32>();

            #[inline(always)]
            unsafe fn load(self, from: *const u8) -> $vector {
                // SAFETY: the caller's promise.
                unsafe { from.cast::<$vector>().read_unaligned() }
            }
            #[inline(always)]
            unsafe fn store(self, vector: $vector, to: *mut u8) {
                // SAFETY: the caller's promise.
                unsafe { to.cast::<$vector>().write_unaligned(vector) }
            }
            #[inline(always)]
            unsafe fn repeat(self, from: *const u8) -> $vector {
                // SAFETY: the caller's promise, and the token proves the features.
                unsafe { $vector::repeat(from.cast::<i32>().read_unaligned()) }
            }
            #[inline(always)]
            fn scale(self, sums: $vector, row: f32, columns: $vector, start: $vector) -> $vector {
                // SAFETY: the token proves the features.
                unsafe { $vector::scale(sums, row, columns, start) }
            }
            #[inline(always)]
            fn prefetch(self, from: *const u8) {
                // SAFETY: a hint, for any address.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) };
            }
            #[inline(always)]
            fn prefetch_near(self, at: *const u8) {
                // SAFETY: a hint, for any address.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
            }
            #[inline(always)]
            fn opaque(self, from: *const u8) -> *const u8 {
                opaque(from)
            }
            #[inline(always)]
            fn dot(self, $sums: $vector, $left: $vector, $panel: $vector) -> $vector {
                // SAFETY: the token proves the features.
                unsafe { $dot }
            }
        }
    };
}

/// What is the same for all kernels of a width.
trait Width: Sized {
    /// # Safety
    /// The CPU has AVX2 or AVX-512, as the width says.
    unsafe fn repeat(group: i32) -> Self;
    /// `start + sums * (row * columns)`, in three roundings as in plain code.
    ///
    /// # Safety
    /// The same.
    unsafe fn scale(sums: Self, row: f32, columns: Self, start: Self) -> Self;
}

impl Width for __m256i {
    #[inline(always)]
    unsafe fn repeat(group: i32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_set1_epi32(group) }
    }
    #[inline(always)]
    unsafe fn scale(sums: Self, row: f32, columns: Self, start: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let factors = _mm256_mul_ps(_mm256_set1_ps(row), _mm256_castsi256_ps(columns));
            let products = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), factors);
            _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(start), products))
        }
    }
}

impl Width for __m512i {
    #[inline(always)]
    unsafe fn repeat(group: i32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_set1_epi32(group) }
    }
    #[inline(always)]
    unsafe fn scale(sums: Self, row: f32, columns: Self, start: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let factors = _mm512_mul_ps(_mm512_set1_ps(row), _mm512_castsi512_ps(columns));
            let products = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), factors);
            _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(start), products))
        }
    }
}

// 12 rows x 2 vectors of sums, 2 vectors of the panel and one of the left operand take 27 of 32 registers.

dot_kernel!(
    /// bfloat16 by `vdpbf16ps`.
    Avx512Bf16, Avx512Bf16, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma", 12 x __m512i,
    |sums, left, panel| {
        let (left, panel) = (std::mem::transmute::<__m512i, __m512bh>(left), std::mem::transmute::<__m512i, __m512bh>(panel));
        _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sums), left, panel))
    }
);

dot_kernel!(
    /// bfloat16 widened to `f32` in registers: a half of the group shifted up, the other masked.
    Avx512WidenBf16, Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", 12 x __m512i,
    |sums, left, panel| {
        let even = |x| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x));
        let odd = |x| _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(!0xffff)));
        let sums = _mm512_fmadd_ps(even(left), even(panel), _mm512_castsi512_ps(sums));
        _mm512_castps_si512(_mm512_fmadd_ps(odd(left), odd(panel), sums))
    }
);

// 4 rows x 2 vectors of sums leave 8 of 16 registers for the widened halves.

dot_kernel!(
    /// bfloat16 widened to `f32` in registers.
    Avx2Bf16, Avx2, "avx2,fma", 4 x __m256i,
    |sums, left, panel| {
        let even = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x));
        let odd = |x| _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(!0xffff)));
        let sums = _mm256_fmadd_ps(even(left), even(panel), _mm256_castsi256_ps(sums));
        _mm256_castps_si256(_mm256_fmadd_ps(odd(left), odd(panel), sums))
    }
);

dot_kernel!(
    /// Bytes by `vpdpbusd`.
    Avx512Vnni, Avx512Vnni, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma", 12 x __m512i,
    |sums, left, panel| _mm512_dpbusd_epi32(sums, left, panel)
);

dot_kernel!(
    /// Bytes widened to 16 bits in registers: every second byte, then the others.
    Avx512WidenInt8, Avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", 8 x __m512i,
    |sums, left, panel| {
        let left_even = _mm512_and_si512(left, _mm512_set1_epi16(0xff));
        let panel_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(panel));
        let even = _mm512_madd_epi16(left_even, panel_even);
        let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(left), _mm512_srai_epi16::<8>(panel));
        _mm512_add_epi32(sums, _mm512_add_epi32(even, odd))
    }
);

dot_kernel!(
    /// Bytes widened to 16 bits in registers.
    Avx2Int8, Avx2, "avx2,fma", 4 x __m256i,
    |sums, left, panel| {
        let left_even = _mm256_and_si256(left, _mm256_set1_epi16(0xff));
        let panel_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(panel));
        let even = _mm256_madd_epi16(left_even, panel_even);
        let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(left), _mm256_srai_epi16::<8>(panel));
        _mm256_add_epi32(sums, _mm256_add_epi32(even, odd))
    }
);
