//! Element-wise activation functions and their derivatives.

use super::{Isa, Real};

/// An element-wise function. Formulas are Keras 2's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Elementwise {
    /// `x`
    Linear,
    /// `0.5 x (1 + tanh(0.7978845608 (x + 0.044715 x^3)))`
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt 2))`
    GeluErf,
    /// Keras `ReLU`: `max_value` if `x >= max_value`; `x` if `x >= threshold`; else `negative_slope (x - threshold)`
    Relu {
        /// Upper bound, infinite for none.
        max_value: f64,
        /// Slope below the threshold.
        negative_slope: f64,
        /// Values from here on pass.
        threshold: f64,
    },
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `clip(0.2 x + 0.5, 0, 1)`
    HardSigmoid,
    /// `x sigmoid(x)`
    Silu,
    /// `x clip(x + 3, 0, 6) / 6`
    HardSwish,
    /// `tanh(x)`
    Tanh,
    /// `x` if `x > 0`, else `alpha (exp(x) - 1)`
    Elu {
        /// Scale of the negative part.
        alpha: f64,
    },
    /// `1.0507009873554805 (x` if `x > 0`, else `1.6732632423543772 (exp(x) - 1))`
    Selu,
    /// `exp(x)`
    Exponential,
    /// `log(1 + exp(x))`
    Softplus,
    /// `x / (1 + |x|)`
    Softsign,
    /// `x tanh(softplus(x))`
    Mish,
}

const SELU_SCALE: f64 = 1.050_700_987_355_480_5;
const SELU_ALPHA: f64 = 1.673_263_242_354_377_2;
const GELU_COEFFICIENT: f64 = 0.797_884_560_8;
const GELU_CUBIC: f64 = 0.044_715;

impl Elementwise {
    /// The value at `x`, and the derivative there.
    pub fn value_and_derivative(self, x: f64) -> (f64, f64) {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        match self {
            Elementwise::Linear => (x, 1.0),
            Elementwise::GeluTanh => {
                let t = (GELU_COEFFICIENT * (x + GELU_CUBIC * x * x * x)).tanh();
                let inner = GELU_COEFFICIENT * (1.0 + 3.0 * GELU_CUBIC * x * x);
                (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner)
            }
            Elementwise::GeluErf => {
                let cdf = 0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
                let pdf = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                (x * cdf, cdf + x * pdf)
            }
            Elementwise::Relu { max_value, negative_slope, threshold } => {
                if x >= max_value {
                    (max_value, 0.0)
                } else if x >= threshold {
                    // Keras's derivative at the kink is that of the lower branch.
                    (x, if x > threshold { 1.0 } else { negative_slope })
                } else {
                    (negative_slope * (x - threshold), negative_slope)
                }
            }
            Elementwise::Sigmoid => {
                let s = sigmoid(x);
                (s, s * (1.0 - s))
            }
            Elementwise::HardSigmoid => {
                let y = 0.2 * x + 0.5;
                (y.clamp(0.0, 1.0), if (0.0..1.0).contains(&y) { 0.2 } else { 0.0 })
            }
            Elementwise::Silu => {
                let s = sigmoid(x);
                (x * s, s + x * s * (1.0 - s))
            }
            Elementwise::HardSwish => {
                let gate = (x + 3.0).clamp(0.0, 6.0) / 6.0;
                (x * gate, gate + if x > -3.0 && x < 3.0 { x / 6.0 } else { 0.0 })
            }
            Elementwise::Tanh => {
                let t = x.tanh();
                (t, 1.0 - t * t)
            }
            Elementwise::Elu { alpha } => {
                if x > 0.0 {
                    (x, 1.0)
                } else {
                    (alpha * x.exp_m1(), alpha * x.exp())
                }
            }
            Elementwise::Selu => {
                if x > 0.0 {
                    (SELU_SCALE * x, SELU_SCALE)
                } else {
                    (SELU_SCALE * SELU_ALPHA * x.exp_m1(), SELU_SCALE * SELU_ALPHA * x.exp())
                }
            }
            Elementwise::Exponential => (x.exp(), x.exp()),
            Elementwise::Softplus => (softplus(x), sigmoid(x)),
            Elementwise::Softsign => {
                let d = 1.0 + x.abs();
                (x / d, 1.0 / (d * d))
            }
            Elementwise::Mish => {
                let t = softplus(x).tanh();
                (x * t, t + x * (1.0 - t * t) * sigmoid(x))
            }
        }
    }
}

/// The error function, to about 1e-16, by its Taylor series near 0 and a continued fraction elsewhere.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    let y = if a < 2.5 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-17 * sum.abs() {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
            if n > 200.0 {
                break;
            }
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else if a < 6.0 {
        let mut fraction = 0.0;
        for n in (1..=60).rev() {
            fraction = f64::from(n) * 0.5 / (a + fraction);
        }
        1.0 - (-a * a).exp() / ((a + fraction) * std::f64::consts::PI.sqrt())
    } else {
        1.0
    };
    y.copysign(x)
}

/// Applies `function` to `x` in place.
pub fn elementwise<R: Real>(_isa: Isa, function: Elementwise, x: &mut [R]) {
    for v in x {
        *v = R::from_f64(function.value_and_derivative(v.to_f64()).0);
    }
}

/// Multiplies `dy` by the derivative at `x` (the function's input), in place.
pub fn elementwise_backward<R: Real>(_isa: Isa, function: Elementwise, x: &[R], dy: &mut [R]) {
    for (d, v) in dy.iter_mut().zip(x) {
        *d *= R::from_f64(function.value_and_derivative(v.to_f64()).1);
    }
}
