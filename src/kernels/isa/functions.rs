//! exp, log and erf on vectors of `f32`, by polynomials.
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

/// The error function.
///
/// Source: N. Juffa, <https://stackoverflow.com/a/35148199> (BSD licence): a minimax polynomial near 0, else
/// `1 - exp(polynomial)`.
#[inline(always)]
pub fn erf<S: Simd<Elem = f32>>(simd: S, v: S::Vec) -> S::Vec {
    let t = simd.abs(v);
    let s = simd.mul(v, v);
    let p = polynomial(
        simd,
        s,
        [-5.967_617e-4, 4.991_194_2e-3, -2.676_813_5e-2, 0.112_819_925, -0.376_125_34, 0.128_379_17],
    );
    let near = simd.mul_add(p, v, v);
    let r = simd.mul_add(simd.splat(-1.728_534_7e-5), t, simd.splat(3.831_971_3e-4));
    let u = simd.mul_add(simd.splat(-3.883_964_4e-3), t, simd.splat(2.425_462_2e-2));
    let r = simd.mul_add(r, s, u);
    let r = simd.mul_add(r, t, simd.splat(-0.106_777_88));
    let r = simd.mul_add(r, t, simd.splat(-0.634_846_7));
    let r = simd.mul_add(r, t, simd.splat(-0.128_717_51));
    let r = simd.mul_add(r, t, simd.sub(simd.zero(), t));
    // exp(r) - 1 keeps the digits that 1 - exp(r) has.
    let far = simd.sub(simd.zero(), exp_m1(simd, r));
    // erf rounds to 1 from 4 on; the polynomial rises again far out.
    let far = simd.select(simd.less(simd.splat(4.0), t), simd.splat(1.0), far);
    let far = simd.with_sign_of(far, v);
    simd.select(simd.less(t, simd.splat(0.927_734_4)), near, far)
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
    const MAX_ERF_ERROR: f64 = 1.7;

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
    fn erf_is_accurate() {
        assert_accurate(apply!(erf_lanes), libm::erf, &[(1e-30, 1e30), (-1e30, -1e-30)], MAX_ERF_ERROR);
    }

    #[test]
    fn erf_in_double_precision_has_known_values() {
        for (x, y) in
            [(0.5, 0.520_499_877_813_046_5), (1.0, 0.842_700_792_949_714_9), (3.0, 0.999_977_909_503_001_4)]
        {
            assert!((libm::erf(x) - y).abs() < 2e-16 && (libm::erf(-x) + y).abs() < 2e-16);
        }
    }
}
