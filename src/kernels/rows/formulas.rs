//! The formulas of [`Elementwise`](super::Elementwise) on vectors: a function's value and, next to it, its derivative.

use std::f64::consts::LOG2_E;

use crate::kernels::isa::{Real, Simd};

/// A function of one variable with its derivative.
pub trait Formula: Copy {
    /// f(x)
    fn value<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec;
    /// f'(x)
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec;
    /// Both, for less than each by itself where they have something in common.
    #[inline(always)]
    fn value_and_derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> (S::Vec, S::Vec) {
        (self.value(simd, x), self.derivative(simd, x))
    }
}

/// `1 / (1 + 2^t)`
#[inline(always)]
fn logistic_exp2<S: Simd<Elem: Real>>(simd: S, t: S::Vec) -> S::Vec {
    let one = simd.constant(1.0);
    simd.div(one, simd.add(one, S::Elem::exp2_lanes(simd, t)))
}

/// `1 / (1 + e^-x)`
#[inline(always)]
fn logistic<S: Simd<Elem: Real>>(simd: S, x: S::Vec) -> S::Vec {
    let one = simd.constant(1.0);
    simd.div(one, simd.add(one, S::Elem::exp_lanes(simd, simd.neg(x))))
}

/// `s (1 - s)`, the derivative of the logistic function where its value is `s`.
#[inline(always)]
fn logistic_slope<S: Simd<Elem: Real>>(simd: S, s: S::Vec) -> S::Vec {
    simd.sub(s, simd.mul(s, s))
}

/// `-t / (2 + t)` with `t = e^(-2|x|) - 1`, given the sign of `x`: no cancellation near 0.
#[inline(always)]
fn tanh<S: Simd<Elem: Real>>(simd: S, x: S::Vec) -> S::Vec {
    let t = S::Elem::exp_m1_lanes(simd, simd.mul(simd.abs(x), simd.constant(-2.0)));
    let magnitude = simd.abs(simd.div(t, simd.add(simd.constant(2.0), t)));
    simd.with_sign_of(magnitude, x)
}

/// `x` brought into `[low, high]`; NaN stays.
#[inline(always)]
fn clamp<S: Simd<Elem: Real>>(simd: S, x: S::Vec, low: f64, high: f64) -> S::Vec {
    simd.max(simd.constant(low), simd.min(simd.constant(high), x))
}

/// See [`Elementwise::Linear`](super::Elementwise::Linear).
#[derive(Clone, Copy)]
pub struct Linear;

impl Formula for Linear {
    #[inline(always)]
    fn value<S: Simd<Elem: Real>>(self, _simd: S, x: S::Vec) -> S::Vec {
        x
    }
    #[inline(always)]
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, _x: S::Vec) -> S::Vec {
        simd.constant(1.0)
    }
}

/// See [`Elementwise::GeluTanh`](super::Elementwise::GeluTanh). Computed as `x logistic(2 u)`, which is the same as
/// `x (1 + tanh u) / 2` without its cancellation, `u = COEFFICIENT (x + CUBIC x^3)`.
#[derive(Clone, Copy)]
pub struct GeluTanh;

impl GeluTanh {
    /// The reference's ten digits of `sqrt(2 / pi)`.
    const COEFFICIENT: f64 = 0.797_884_560_8;
    const CUBIC: f64 = 0.044_715;

    /// `log2 e^(-2 u)`
    #[inline(always)]
    fn exponent<S: Simd<Elem: Real>>(simd: S, x: S::Vec) -> S::Vec {
        let linear = simd.constant(-2.0 * Self::COEFFICIENT * LOG2_E);
        let cubic = simd.constant(-2.0 * Self::COEFFICIENT * Self::CUBIC * LOG2_E);
        simd.mul(x, simd.mul_add(simd.mul(x, x), cubic, linear))
    }

    /// The derivative, given the logistic function's value `s`.
    #[inline(always)]
    fn slope<S: Simd<Elem: Real>>(simd: S, x: S::Vec, s: S::Vec) -> S::Vec {
        let linear = simd.constant(2.0 * Self::COEFFICIENT);
        let cubic = simd.constant(6.0 * Self::COEFFICIENT * Self::CUBIC);
        let inner_slope = simd.mul_add(simd.mul(x, x), cubic, linear);
        simd.mul_add(simd.mul(x, logistic_slope(simd, s)), inner_slope, s)
    }
}

impl Formula for GeluTanh {
    #[inline(always)]
    fn value<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        simd.mul(x, logistic_exp2(simd, Self::exponent(simd, x)))
    }
    #[inline(always)]
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        self.value_and_derivative(simd, x).1
    }
    #[inline(always)]
    fn value_and_derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> (S::Vec, S::Vec) {
        let s = logistic_exp2(simd, Self::exponent(simd, x));
        (simd.mul(x, s), Self::slope(simd, x, s))
    }
}

/// See [`Elementwise::GeluErf`](super::Elementwise::GeluErf).
#[derive(Clone, Copy)]
pub struct GeluErf;

impl GeluErf {
    /// The normal distribution's density.
    #[inline(always)]
    fn density<S: Simd<Elem: Real>>(simd: S, x: S::Vec) -> S::Vec {
        const INVERSE_SQRT_2_PI: f64 = 0.398_942_280_401_432_7;
        let e = S::Elem::exp2_lanes(simd, simd.mul(simd.mul(x, x), simd.constant(-0.5 * LOG2_E)));
        simd.mul(e, simd.constant(INVERSE_SQRT_2_PI))
    }
}

impl Formula for GeluErf {
    #[inline(always)]
    fn value<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        simd.mul(x, S::Elem::normal_cdf_lanes(simd, x))
    }
    #[inline(always)]
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        self.value_and_derivative(simd, x).1
    }
    #[inline(always)]
    fn value_and_derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> (S::Vec, S::Vec) {
        let cdf = S::Elem::normal_cdf_lanes(simd, x);
        (simd.mul(x, cdf), simd.mul_add(x, Self::density(simd, x), cdf))
    }
}

/// See [`Elementwise::Relu`](super::Elementwise::Relu).
#[derive(Clone, Copy)]
pub struct Relu {
    pub max_value: f64,
    pub negative_slope: f64,
    pub threshold: f64,
}

impl Formula for Relu {
    #[inline(always)]
    fn value<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        let threshold = simd.constant(self.threshold);
        let max_value = simd.constant(self.max_value);
        let below = simd.mul(simd.constant(self.negative_slope), simd.sub(x, threshold));
        let y = simd.select(simd.less_or_equal(threshold, x), x, below);
        simd.select(simd.less_or_equal(max_value, x), max_value, y)
    }
    /// At the threshold that of the lower branch, as in Keras.
    #[inline(always)]
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        let above = simd.less(simd.constant(self.threshold), x);
        let slope = simd.select(above, simd.constant(1.0), simd.constant(self.negative_slope));
        simd.select(simd.less_or_equal(simd.constant(self.max_value), x), simd.zero(), slope)
    }
}

/// See [`Elementwise::Sigmoid`](super::Elementwise::Sigmoid).
#[derive(Clone, Copy)]
pub struct Sigmoid;

impl Formula for Sigmoid {
    #[inline(always)]
    fn value<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        logistic(simd, x)
    }
    #[inline(always)]
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        logistic_slope(simd, logistic(simd, x))
    }
}

/// See [`Elementwise::HardSigmoid`](super::Elementwise::HardSigmoid).
#[derive(Clone, Copy)]
pub struct HardSigmoid;

impl HardSigmoid {
    const SLOPE: f64 = 0.2;

    #[inline(always)]
    fn line<S: Simd<Elem: Real>>(simd: S, x: S::Vec) -> S::Vec {
        simd.add(simd.mul(x, simd.constant(Self::SLOPE)), simd.constant(0.5))
    }
}

impl Formula for HardSigmoid {
    #[inline(always)]
    fn value<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        clamp(simd, Self::line(simd, x), 0.0, 1.0)
    }
    /// At the bounds that of the line, as TensorFlow's `clip_by_value` has it.
    #[inline(always)]
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        let y = Self::line(simd, x);
        let slope = simd.select(simd.less(y, simd.zero()), simd.zero(), simd.constant(Self::SLOPE));
        simd.select(simd.less(simd.constant(1.0), y), simd.zero(), slope)
    }
}

/// See [`Elementwise::Silu`](super::Elementwise::Silu).
#[derive(Clone, Copy)]
pub struct Silu;

impl Formula for Silu {
    #[inline(always)]
    fn value<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        simd.mul(x, logistic(simd, x))
    }
    #[inline(always)]
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        let s = logistic(simd, x);
        simd.mul_add(x, logistic_slope(simd, s), s)
    }
}

/// See [`Elementwise::HardSwish`](super::Elementwise::HardSwish).
#[derive(Clone, Copy)]
pub struct HardSwish;

impl HardSwish {
    #[inline(always)]
    fn gate<S: Simd<Elem: Real>>(simd: S, x: S::Vec) -> S::Vec {
        let sixth = simd.constant(1.0 / 6.0);
        simd.mul(clamp(simd, simd.add(x, simd.constant(3.0)), 0.0, 6.0), sixth)
    }
}

impl Formula for HardSwish {
    #[inline(always)]
    fn value<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        simd.mul(x, Self::gate(simd, x))
    }
    /// At the bounds that of the flat parts, as TensorFlow's `relu6` has it.
    #[inline(always)]
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        let inner = simd.mul(x, simd.constant(1.0 / 6.0));
        let inside = simd.less(simd.abs(x), simd.constant(3.0));
        simd.add(Self::gate(simd, x), simd.select(inside, inner, simd.zero()))
    }
}

/// See [`Elementwise::Tanh`](super::Elementwise::Tanh).
#[derive(Clone, Copy)]
pub struct Tanh;

impl Formula for Tanh {
    #[inline(always)]
    fn value<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        tanh(simd, x)
    }
    #[inline(always)]
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        let t = tanh(simd, x);
        simd.sub(simd.constant(1.0), simd.mul(t, t))
    }
}

/// See [`Elementwise::Elu`](super::Elementwise::Elu) and [`Elementwise::Selu`](super::Elementwise::Selu): `scale` times
/// `x` or `alpha (e^x - 1)`.
#[derive(Clone, Copy)]
pub struct Elu {
    pub alpha: f64,
    pub scale: f64,
}

impl Elu {
    /// Source: Klambauer et al. 2017, "Self-Normalizing Neural Networks".
    pub const SELU: Elu = Elu { alpha: 1.673_263_242_354_377_2, scale: 1.050_700_987_355_480_5 };
}

impl Formula for Elu {
    #[inline(always)]
    fn value<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        let negative = S::Elem::exp_m1_lanes(simd, simd.min(simd.zero(), x));
        let below = simd.mul(negative, simd.constant(self.scale * self.alpha));
        let above = simd.mul(x, simd.constant(self.scale));
        simd.select(simd.less(simd.zero(), x), above, below)
    }
    #[inline(always)]
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        let below = simd.mul(S::Elem::exp_lanes(simd, x), simd.constant(self.scale * self.alpha));
        simd.select(simd.less(simd.zero(), x), simd.constant(self.scale), below)
    }
}

/// See [`Elementwise::Exponential`](super::Elementwise::Exponential).
#[derive(Clone, Copy)]
pub struct Exponential;

impl Formula for Exponential {
    #[inline(always)]
    fn value<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        S::Elem::exp_lanes(simd, x)
    }
    #[inline(always)]
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        S::Elem::exp_lanes(simd, x)
    }
}

/// See [`Elementwise::Softplus`](super::Elementwise::Softplus).
#[derive(Clone, Copy)]
pub struct Softplus;

impl Formula for Softplus {
    #[inline(always)]
    fn value<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        let e = S::Elem::exp_lanes(simd, simd.neg(simd.abs(x)));
        simd.add(simd.max(simd.zero(), x), S::Elem::ln_1p_lanes(simd, e))
    }
    #[inline(always)]
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        logistic(simd, x)
    }
}

/// See [`Elementwise::Softsign`](super::Elementwise::Softsign).
#[derive(Clone, Copy)]
pub struct Softsign;

impl Formula for Softsign {
    #[inline(always)]
    fn value<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        simd.div(x, simd.add(simd.constant(1.0), simd.abs(x)))
    }
    #[inline(always)]
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        let d = simd.add(simd.constant(1.0), simd.abs(x));
        simd.div(simd.constant(1.0), simd.mul(d, d))
    }
}

/// See [`Elementwise::Mish`](super::Elementwise::Mish). With `e = e^x`, `tanh(log(1 + e)) = n / (n + 2)`,
/// `n = e (e + 2)`: one exponential and no logarithm.
#[derive(Clone, Copy)]
pub struct Mish;

impl Mish {
    /// `(e, n)`, with `x` held below 30: from there on `n / (n + 2)` rounds to 1, and `n` must not overflow.
    #[inline(always)]
    fn parts<S: Simd<Elem: Real>>(simd: S, x: S::Vec) -> (S::Vec, S::Vec) {
        let e = S::Elem::exp_lanes(simd, simd.min(simd.constant(30.0), x));
        (e, simd.mul(e, simd.add(e, simd.constant(2.0))))
    }
}

impl Formula for Mish {
    #[inline(always)]
    fn value<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        let (_, n) = Self::parts(simd, x);
        simd.mul(x, simd.div(n, simd.add(n, simd.constant(2.0))))
    }
    /// `t + x (1 - t^2) logistic(x)` with `1 - t^2 = 4 (n + 1) / (n + 2)^2` and `n + 1 = (e + 1)^2`.
    #[inline(always)]
    fn derivative<S: Simd<Elem: Real>>(self, simd: S, x: S::Vec) -> S::Vec {
        let (e, n) = Self::parts(simd, x);
        let d = simd.add(n, simd.constant(2.0));
        let t = simd.div(n, d);
        let numerator = simd.mul(simd.mul(simd.constant(4.0), e), simd.add(e, simd.constant(1.0)));
        let slope = simd.div(simd.div(numerator, d), d);
        simd.mul_add(x, slope, t)
    }
}
