//! exp, log and the normal distribution function on vectors of `f32`, by polynomials.
//!
//! The largest errors over all `f32` are in the tests. tanh, the logistic function and the like follow from these in
//! [`formulas`](crate::kernels::rows).

use super::simd::Simd;

/// `c[0] x^(N-1) + ... + c[N-1]` by Horner's rule.
#[inline(always)]
fn polynomial<S: Simd<Elem = f32>, const N: usize>(simd: S, x: S::Vec, c: [f32; N]) -> S::Vec {
    let mut y = simd.splat(c[0]);
    for c in &c[1..] {
        y = simd.mul_add(y, x, simd.splat(*c));
    }
    y
}

/// ln 2 in two parts, the first with so few digits that its product with an exponent is exact (Cephes).
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `(n, r, e^r - 1)` with `v = n ln 2 + r`, `|r| <= ln 2 / 2`.
///
/// Source of the polynomial: Cephes `expf`.
#[inline(always)]
fn exp_parts<S: Simd<Elem = f32>>(simd: S, v: S::Vec) -> (S::Vec, S::Vec) {
    let n = simd.round(simd.mul(v, simd.splat(std::f32::consts::LOG2_E)));
    let r = simd.mul_add(n, simd.splat(-LN_2_HIGH), v);
    let r = simd.mul_add(n, simd.splat(-LN_2_LOW), r);
    let p = polynomial(
        simd,
        r,
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5],
    );
    (n, simd.mul_add(simd.mul(r, r), p, r))
}

/// `ln(m) + n ln 2` given `x = m - 1`, `sqrt(1/2) <= m < sqrt(2)`.
///
/// Source of the polynomial: Cephes `logf`.
#[inline(always)]
fn ln_parts<S: Simd<Elem = f32>>(simd: S, x: S::Vec, n: S::Vec) -> S::Vec {
    let square = simd.mul(x, x);
    let p = polynomial(
        simd,
        x,
        [
            7.037_683_6e-2,
            -0.115_146_1,
            0.116_769_99,
            -0.124_201_41,
            0.142_493_23,
            -0.166_680_58,
            0.200_007_15,
            -0.249_999_94,
            0.333_333_3,
        ],
    );
    let y = simd.mul(simd.mul(p, x), square);
    let y = simd.mul_add(n, simd.splat(LN_2_LOW), y);
    let y = simd.mul_add(square, simd.splat(-0.5), y);
    simd.mul_add(n, simd.splat(LN_2_HIGH), simd.add(x, y))
}

/// e^v; 0 below the smallest normal number.
#[inline(always)]
pub fn exp<S: Simd<Elem = f32>>(simd: S, v: S::Vec) -> S::Vec {
    // ln of the smallest normal number; above the largest exponent the result overflows by itself.
    let lowest = simd.splat(-87.336_54);
    let inside = simd.max(lowest, simd.min(simd.splat(89.0), v));
    let (n, e) = exp_parts(simd, inside);
    let y = simd.scale_by_power_of_two(simd.add(e, simd.splat(1.0)), n);
    simd.select(simd.less(v, lowest), simd.zero(), y)
}

/// e^v - 1 for `v <= 0`.
#[inline(always)]
pub fn exp_m1<S: Simd<Elem = f32>>(simd: S, v: S::Vec) -> S::Vec {
    // From -18 on the result rounds to -1.
    let (n, e) = exp_parts(simd, simd.max(simd.splat(-18.0), v));
    let power = simd.scale_by_power_of_two(simd.splat(1.0), n);
    simd.mul_add(power, e, simd.sub(power, simd.splat(1.0)))
}

/// Natural logarithm of positive normal numbers.
#[inline(always)]
pub fn ln<S: Simd<Elem = f32>>(simd: S, v: S::Vec) -> S::Vec {
    let (m, n) = simd.split_exponent(v);
    ln_parts(simd, simd.sub(m, simd.splat(1.0)), n)
}

/// log(1 + v) for `0 <= v <= 1`, without the rounding of `1 + v`, which would lose small `v`.
#[inline(always)]
pub fn ln_1p<S: Simd<Elem = f32>>(simd: S, v: S::Vec) -> S::Vec {
    let small = simd.less(v, simd.splat(std::f32::consts::SQRT_2 - 1.0));
    let half = simd.mul_add(v, simd.splat(0.5), simd.splat(-0.5));
    let n = simd.select(small, simd.zero(), simd.splat(1.0));
    ln_parts(simd, simd.select(small, v, half), n)
}

/// `2^t` for `|t| <= 252`.
#[inline(always)]
#[allow(clippy::approx_constant, reason = "the best coefficient is near ln 2")]
fn exp2_inside<S: Simd<Elem = f32>>(simd: S, t: S::Vec) -> S::Vec {
    let n = simd.round(t);
    let p = polynomial(
        simd,
        simd.sub(t, n),
        [1.326_472_7e-3, 9.671_513e-3, 5.550_733_6e-2, 0.240_222_42, 0.693_147, 1.0],
    );
    simd.scale_by_power_of_two(p, n)
}

/// `2^t`; 0 below the smallest subnormal number.
///
/// The polynomial is minimax in the relative error.
#[inline(always)]
pub fn exp2<S: Simd<Elem = f32>>(simd: S, t: S::Vec) -> S::Vec {
    // Beyond these the result is 0 or infinite by itself.
    exp2_inside(simd, simd.max(simd.splat(-152.0), simd.min(simd.splat(130.0), t)))
}

/// The normal distribution function, `(1 + erf(x / sqrt 2)) / 2`; 0 and 1 from 5.7 on.
///
/// `2^polynomial` below 0, and one minus that above: no cancellation. The polynomial is that of degree 10 nearest to
/// the logarithm, as far as it shows in the result.
#[inline(always)]
pub fn normal_cdf<S: Simd<Elem = f32>>(simd: S, x: S::Vec) -> S::Vec {
    let (one, last) = (simd.splat(1.0), simd.splat(5.7));
    let distance = simd.abs(x);
    let t = simd.min(last, distance);
    let p = polynomial(
        simd,
        t,
        [
            -2.443_142_6e-8,
            7.458_818e-7,
            -9.762_271e-6,
            6.952_362e-5,
            -2.563_122_5e-4,
            -4.680_145e-5,
            7.001_282_6e-3,
            -5.247_543_4e-2,
            -0.459_210_78,
            -1.151_105_2,
            -1.0,
        ],
    );
    let tail = simd.select(simd.less(last, distance), simd.zero(), exp2_inside(simd, p));
    simd.select(simd.less(x, simd.zero()), tail, simd.sub(one, tail))
}

#[cfg(test)]
mod tests {
    use super::super::level::Isa;
    use super::super::real::Real;
    use super::super::simd::LANES;
    use super::super::vector_loop::VectorLoop;
    use super::*;

    /// Largest errors in units of the last place, of the fused and of the twice rounded form.
    const MAX_EXP_ERROR: f64 = 1.1;
    const MAX_EXP_M1_ERROR: f64 = 1.7;
    const MAX_LN_ERROR: f64 = 1.1;
    const MAX_LN_1P_ERROR: f64 = 2.0;
    const MAX_EXP2_ERROR: f64 = 2.3;
    /// Largest error of the normal distribution function: absolute, and relative.
    const MAX_CDF_ERRORS: (f64, f64) = (1.2e-7, 6e-6);

    type Function = for<'a> fn(Isa, &'a mut [f32]);

    macro_rules! apply {
        ($function:ident) => {
            |isa, x| {
                struct Op<'a>(&'a mut [f32]);
                impl VectorLoop<f32> for Op<'_> {
                    type Output = ();
                    #[inline(always)]
                    fn run<S: Simd<Elem = f32>>(self, simd: S) {
                        for v in self.0.as_chunks_mut::<LANES>().0 {
                            simd.store(f32::$function(simd, simd.load(v)), v);
                        }
                    }
                }
                f32::dispatch(isa, Op(x));
            }
        };
    }

    /// Largest error of `function` over every `step`-th float between `low` and `high` (of one sign), in units of the
    /// last place of the result.
    fn largest_error(function: Function, exact: fn(f64) -> f64, low: f32, high: f32, isa: Isa) -> (f64, f32) {
        let (a, b) = (low.to_bits().min(high.to_bits()), low.to_bits().max(high.to_bits()));
        let step = ((b - a) / if cfg!(miri) { 200 } else { 2_000_000 }).max(1);
        let x: Vec<f32> = (a..=b).step_by(step as usize).map(f32::from_bits).collect();
        let x = &x[..x.len() / LANES * LANES];
        let mut y = x.to_vec();
        function(isa, &mut y);
        let mut worst = (0.0, 0.0);
        for (&x, &y) in x.iter().zip(&y) {
            let expected = exact(f64::from(x));
            let nearest = (expected as f32).abs().max(f32::MIN_POSITIVE);
            let unit = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
            let error = (f64::from(y) - expected).abs() / unit;
            if error > worst.0 {
                worst = (error, x);
            }
        }
        worst
    }

    fn assert_accurate(function: Function, exact: fn(f64) -> f64, ranges: &[(f32, f32)], limit: f64) {
        for isa in Isa::available() {
            for &(low, high) in ranges {
                let (error, at) = largest_error(function, exact, low, high, isa);
                assert!(error <= limit, "{}: {error} units at {at}", isa.name());
            }
        }
    }

    #[test]
    fn exp_is_accurate() {
        assert_accurate(apply!(exp_lanes), f64::exp, &[(1e-30, 88.7), (-87.3, -1e-30)], MAX_EXP_ERROR);
    }

    #[test]
    fn exp_has_its_limits() {
        for isa in Isa::available() {
            let function: Function = apply!(exp_lanes);
            let mut x = [0.0; LANES];
            x[..6].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 90.0, -1e9, -0.0]);
            function(isa, &mut x);
            assert_eq!((x[0], x[1], x[3], x[4], x[5]), (f32::INFINITY, 0.0, f32::INFINITY, 0.0, 1.0));
            assert!(x[2].is_nan());
        }
    }

    #[test]
    fn exp_m1_is_accurate() {
        assert_accurate(apply!(exp_m1_lanes), f64::exp_m1, &[(-100.0, -1e-30)], MAX_EXP_M1_ERROR);
    }

    #[test]
    fn ln_is_accurate() {
        assert_accurate(apply!(ln_lanes), f64::ln, &[(f32::MIN_POSITIVE, f32::MAX)], MAX_LN_ERROR);
    }

    #[test]
    fn ln_1p_is_accurate() {
        assert_accurate(apply!(ln_1p_lanes), f64::ln_1p, &[(1e-30, 1.0)], MAX_LN_1P_ERROR);
    }

    #[test]
    fn exp2_is_accurate() {
        assert_accurate(apply!(exp2_lanes), f64::exp2, &[(1e-30, 127.9), (-125.9, -1e-30)], MAX_EXP2_ERROR);
    }

    #[test]
    fn exp2_has_its_limits() {
        for isa in Isa::available() {
            let function: Function = apply!(exp2_lanes);
            let mut x = [0.0; LANES];
            x[..7].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 129.0, -1e9, -0.0, -151.0]);
            function(isa, &mut x);
            assert_eq!((x[0], x[1], x[3], x[4], x[5]), (f32::INFINITY, 0.0, f32::INFINITY, 0.0, 1.0));
            assert!(x[2].is_nan());
            assert_eq!(x[6], 0.0);
        }
    }

    #[test]
    fn normal_cdf_is_accurate() {
        let function: Function = apply!(normal_cdf_lanes);
        for isa in Isa::available() {
            let steps = if cfg!(miri) { 200 } else { 1_000_000 };
            let x: Vec<f32> = (0..=steps).map(|i| (i as f32 / steps as f32 - 0.5) * 14.0).collect();
            let x = &x[..x.len() / LANES * LANES];
            let mut y = x.to_vec();
            function(isa, &mut y);
            for (&x, &y) in x.iter().zip(&y) {
                let expected = 0.5 * libm::erfc(-f64::from(x) * std::f64::consts::FRAC_1_SQRT_2);
                let error = (f64::from(y) - expected).abs();
                assert!(error <= MAX_CDF_ERRORS.0, "{}: {error} at {x}", isa.name());
                let near = x.abs() <= 5.7;
                assert!(!near || error <= MAX_CDF_ERRORS.1 * expected, "{}: {y} at {x}", isa.name());
            }
            let mut x = [0.0; LANES];
            x[..4].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0]);
            function(isa, &mut x);
            assert_eq!((x[0], x[1], x[3]), (1.0, 0.0, 0.5));
            assert!(x[2].is_nan());
        }
    }

    #[test]
    fn the_normal_distribution_function_in_double_precision_has_known_values() {
        for (x, y) in [(-1.0, 0.158_655_253_931_457_05), (0.0, 0.5), (2.0, 0.977_249_868_051_820_8)] {
            let simd = super::super::portable::Portable::<f64>::new();
            assert!((f64::normal_cdf_lanes(simd, simd.splat(x))[0] - y).abs() < 2e-16);
        }
    }
}
