//! Rounding of `f32` to the operands of low-precision products: bfloat16, and bytes with a scale per row.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::kernels::isa::{Isa, Real, Simd, VectorLoop, nearest_bfloat16};

/// Largest magnitude of a quantised value; -128 stays unused, so that the range is symmetric.
pub const INT8_MAX: f32 = 127.0;

/// The byte of a left operand that stands for 0.
pub const INT8_ZERO: u8 = 128;

/// Rows whose largest magnitude is below this are quantised to zeros: their inverse scale would overflow.
const SMALLEST_SCALED: f32 = 1e-30;

/// Rounds the first `out.len()` values of `source` to bfloat16; what is missing becomes zeros.
pub fn round_row(isa: Isa, source: &[f32], out: &mut [bf16]) {
    struct RoundRow<'a>(&'a [f32], &'a mut [bf16]);

    impl VectorLoop<f32> for RoundRow<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd<Elem = f32>>(self, _simd: S) {
            let RoundRow(source, out) = self;
            let (whole, padding) = out.split_at_mut(source.len());
            for (o, &x) in whole.iter_mut().zip(source) {
                *o = nearest_bfloat16(x);
            }
            padding.fill(bf16::ZERO);
        }
    }
    f32::dispatch(isa, RoundRow(source, out));
}

/// Rounds `source` to bfloat16, ties to even; what is missing becomes zeros.
pub fn round_to_bfloat16<R: Real>(isa: Isa, source: &[R], out: &mut [bf16]) {
    if let Some(source) = R::f32_slice(source) {
        return round_row(isa, source, out);
    }
    let (whole, padding) = out.split_at_mut(source.len());
    whole.iter_mut().zip(source).for_each(|(o, x)| *o = bf16::from_f32(x.to_f32()));
    padding.fill(bf16::ZERO);
}

/// Rounds `source` to float16, ties to even.
pub fn round_to_float16<R: Real>(source: &[R], out: &mut [f16]) {
    match R::f32_slice(source) {
        Some(source) => out.convert_from_f32_slice(source),
        None => out.iter_mut().zip(source).for_each(|(o, x)| *o = f16::from_f32(x.to_f32())),
    }
}

/// Quantises `source` to `out`, padded with zeros, and returns the scale: `source = scale * (out - 128)`.
///
/// A row with an infinity or a NaN gets a scale that is not finite, so that all products with it are NaN or infinite.
pub fn quantise_row(isa: Isa, source: &[f32], out: &mut [u8]) -> f32 {
    struct QuantiseRow<'a>(&'a [f32], &'a mut [u8]);

    impl VectorLoop<f32> for QuantiseRow<'_> {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd<Elem = f32>>(self, _simd: S) -> f32 {
            /// Adding it leaves the nearest integer, ties to even, plus 128 in the lowest byte.
            const SHIFT: f32 = 12_582_912.0 + INT8_ZERO as f32;
            let QuantiseRow(source, out) = self;
            // Bits of magnitudes compare like the magnitudes, with infinity and NaN above all others.
            let largest = source.iter().fold(0u32, |m, x| m.max(x.to_bits() & 0x7fff_ffff));
            let largest = f32::from_bits(largest);
            let (scale, inverse) =
                if largest < SMALLEST_SCALED { (1.0, 0.0) } else { (largest / INT8_MAX, INT8_MAX / largest) };
            let (whole, padding) = out.split_at_mut(source.len());
            for (o, &x) in whole.iter_mut().zip(source) {
                *o = (x * inverse + SHIFT).to_bits() as u8;
            }
            padding.fill(INT8_ZERO);
            scale
        }
    }
    f32::dispatch(isa, QuantiseRow(source, out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::noise;

    #[test]
    fn rounding_is_that_of_half() {
        let mut values = noise(1000, 1);
        values.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, f32::MAX, 1e-40]);
        // Ties, one to the even number below and one to that above.
        values.extend([1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]);
        for isa in Isa::available() {
            let mut out = vec![bf16::ONE; values.len() + 3];
            round_row(isa, &values, &mut out);
            for (x, y) in values.iter().zip(&out) {
                assert_eq!(bf16::from_f32(*x).to_bits(), y.to_bits(), "{} of {x}", isa.name());
            }
            assert!(out[values.len()..].iter().all(|&x| x == bf16::ZERO));
        }
    }

    #[test]
    fn a_quantised_row_is_within_half_a_step_and_the_same_everywhere() {
        for len in [1, 7, 63, 64, 200] {
            let row: Vec<f32> = noise(len, 3).iter().map(|x| x * 5.0).collect();
            let mut plain = vec![0; len + 2];
            let scale = quantise_row(Isa::PORTABLE, &row, &mut plain);
            for (x, q) in row.iter().zip(&plain) {
                let back = scale * (f32::from(*q) - 128.0);
                assert!((x - back).abs() <= scale * 0.500_01, "{x} became {back}");
            }
            assert_eq!(plain[len..], [INT8_ZERO; 2]);
            assert!(plain.contains(&1) || plain.contains(&255), "the largest uses the whole range");
            for isa in Isa::available() {
                let mut out = vec![0; len + 2];
                assert_eq!(quantise_row(isa, &row, &mut out), scale, "{}", isa.name());
                assert_eq!(out, plain);
            }
        }
    }

    #[test]
    fn rows_of_zeros_and_rows_that_are_not_finite() {
        for isa in Isa::available() {
            let mut out = [0; 4];
            assert_eq!(quantise_row(isa, &[0.0, -0.0, 1e-35], &mut out), 1.0);
            assert_eq!(out, [INT8_ZERO; 4]);
            assert!(!quantise_row(isa, &[0.0, f32::INFINITY, 1.0], &mut out).is_finite());
            assert!(!quantise_row(isa, &[3.0, f32::NAN, f32::INFINITY], &mut out).is_finite());
        }
    }
}
