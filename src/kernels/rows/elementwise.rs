//! Element-wise activation functions and their derivatives.

use half::bf16;

use super::formulas::{self, Formula};
use crate::kernels::isa::{Isa, Real, Simd, VectorLoop, each_span};

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

/// Applies `function` to `x` in place.
pub fn elementwise<R: Real>(isa: Isa, function: Elementwise, x: &mut [R]) {
    R::dispatch(isa, Forward { function, x });
}

/// Multiplies `dy` by the derivative at `x` (the function's input), in place.
///
/// # Panics
/// If the lengths differ.
pub fn elementwise_backward<R: Real>(isa: Isa, function: Elementwise, x: &[R], dy: &mut [R]) {
    assert_eq!(x.len(), dy.len(), "as many inputs as gradients");
    R::dispatch(isa, Backward { function, x, dy });
}

/// [`elementwise_backward`], and the function's values into `values`.
///
/// # Panics
/// If the lengths differ.
pub fn elementwise_with_backward<R: Real>(
    isa: Isa,
    function: Elementwise,
    x: &[R],
    values: &mut [R],
    dy: &mut [R],
) {
    assert!(x.len() == dy.len() && x.len() == values.len(), "as many inputs as values and gradients");
    R::dispatch(isa, Both { function, x, values, dy });
}

/// Rounds `function` of `x` to bfloat16, into `out`; what is missing becomes zeros.
pub fn elementwise_to_bfloat16<R: Real>(isa: Isa, function: Elementwise, x: &[R], out: &mut [bf16]) {
    let (whole, padding) = out.split_at_mut(x.len());
    padding.fill(bf16::ZERO);
    R::dispatch(isa, ToBfloat16 { function, x, out: whole });
}

impl Elementwise {
    /// Calls `task` with this function's formula, so that the choice is made once and not per vector.
    #[inline(always)]
    fn with_formula(self, task: impl FormulaTask) {
        match self {
            Elementwise::Linear => task.run(formulas::Linear),
            Elementwise::GeluTanh => task.run(formulas::GeluTanh),
            Elementwise::GeluErf => task.run(formulas::GeluErf),
            Elementwise::Relu { max_value, negative_slope, threshold } => {
                task.run(formulas::Relu { max_value, negative_slope, threshold });
            }
            Elementwise::Sigmoid => task.run(formulas::Sigmoid),
            Elementwise::HardSigmoid => task.run(formulas::HardSigmoid),
            Elementwise::Silu => task.run(formulas::Silu),
            Elementwise::HardSwish => task.run(formulas::HardSwish),
            Elementwise::Tanh => task.run(formulas::Tanh),
            Elementwise::Elu { alpha } => task.run(formulas::Elu { alpha, scale: 1.0 }),
            Elementwise::Selu => task.run(formulas::Elu::SELU),
            Elementwise::Exponential => task.run(formulas::Exponential),
            Elementwise::Softplus => task.run(formulas::Softplus),
            Elementwise::Softsign => task.run(formulas::Softsign),
            Elementwise::Mish => task.run(formulas::Mish),
        }
    }
}

/// Work that needs a formula as a type.
trait FormulaTask {
    fn run<F: Formula>(self, formula: F);
}

struct Forward<'a, R> {
    function: Elementwise,
    x: &'a mut [R],
}

impl<R: Real> VectorLoop<R> for Forward<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<Elem = R>>(self, simd: S) {
        struct Task<'a, S: Simd>(S, &'a mut [S::Elem]);
        impl<S: Simd<Elem: Real>> FormulaTask for Task<'_, S> {
            #[inline(always)]
            fn run<F: Formula>(self, formula: F) {
                let Task(simd, x) = self;
                each_span(
                    x.len(),
                    #[inline(always)]
                    |at| at.store(simd, formula.value(simd, at.load(simd, x)), x),
                );
            }
        }
        self.function.with_formula(Task(simd, self.x));
    }
}

struct Backward<'a, R> {
    function: Elementwise,
    x: &'a [R],
    dy: &'a mut [R],
}

impl<R: Real> VectorLoop<R> for Backward<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<Elem = R>>(self, simd: S) {
        struct Task<'a, S: Simd>(S, &'a [S::Elem], &'a mut [S::Elem]);
        impl<S: Simd<Elem: Real>> FormulaTask for Task<'_, S> {
            #[inline(always)]
            fn run<F: Formula>(self, formula: F) {
                let Task(simd, x, dy) = self;
                each_span(
                    x.len(),
                    #[inline(always)]
                    |at| {
                        let slope = formula.derivative(simd, at.load(simd, x));
                        at.store(simd, simd.mul(at.load(simd, dy), slope), dy);
                    },
                );
            }
        }
        self.function.with_formula(Task(simd, self.x, self.dy));
    }
}

struct Both<'a, R> {
    function: Elementwise,
    x: &'a [R],
    values: &'a mut [R],
    dy: &'a mut [R],
}

impl<R: Real> VectorLoop<R> for Both<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<Elem = R>>(self, simd: S) {
        struct Task<'a, S: Simd>(S, &'a [S::Elem], &'a mut [S::Elem], &'a mut [S::Elem]);
        impl<S: Simd<Elem: Real>> FormulaTask for Task<'_, S> {
            #[inline(always)]
            fn run<F: Formula>(self, formula: F) {
                let Task(simd, x, values, dy) = self;
                each_span(
                    x.len(),
                    #[inline(always)]
                    |at| {
                        let (value, slope) = formula.value_and_derivative(simd, at.load(simd, x));
                        at.store(simd, value, values);
                        at.store(simd, simd.mul(at.load(simd, dy), slope), dy);
                    },
                );
            }
        }
        self.function.with_formula(Task(simd, self.x, self.values, self.dy));
    }
}

struct ToBfloat16<'a, R> {
    function: Elementwise,
    x: &'a [R],
    out: &'a mut [bf16],
}

impl<R: Real> VectorLoop<R> for ToBfloat16<'_, R> {
    type Output = ();
    const TO_BFLOAT16: bool = true;
    #[inline(always)]
    fn run<S: Simd<Elem = R>>(self, simd: S) {
        struct Task<'a, S: Simd>(S, &'a [S::Elem], &'a mut [bf16]);
        impl<S: Simd<Elem: Real>> FormulaTask for Task<'_, S> {
            #[inline(always)]
            fn run<F: Formula>(self, formula: F) {
                let Task(simd, x, out) = self;
                each_span(
                    x.len(),
                    #[inline(always)]
                    |at| at.store_bfloat16(simd, formula.value(simd, at.load(simd, x)), out),
                );
            }
        }
        self.function.with_formula(Task(simd, self.x, self.out));
    }
}

#[cfg(test)]
mod tests {
    use libm::erf;

    use super::*;

    /// Largest difference from the plain formula, relative to the larger of 1 and the result.
    const TOLERANCE: f64 = 2e-6;

    const ALL: [Elementwise; 16] = [
        Elementwise::Linear,
        Elementwise::GeluTanh,
        Elementwise::GeluErf,
        Elementwise::Relu { max_value: f64::INFINITY, negative_slope: 0.0, threshold: 0.0 },
        Elementwise::Relu { max_value: 6.0, negative_slope: 0.25, threshold: 0.5 },
        Elementwise::Sigmoid,
        Elementwise::HardSigmoid,
        Elementwise::Silu,
        Elementwise::HardSwish,
        Elementwise::Tanh,
        Elementwise::Elu { alpha: 0.7 },
        Elementwise::Selu,
        Elementwise::Exponential,
        Elementwise::Softplus,
        Elementwise::Softsign,
        Elementwise::Mish,
    ];

    /// The value at `x`, and the derivative there, by the formulas of [`Elementwise`] as they stand.
    fn reference(function: Elementwise, x: f64) -> (f64, f64) {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        match function {
            Elementwise::Linear => (x, 1.0),
            Elementwise::GeluTanh => {
                let t = (0.797_884_560_8 * (x + 0.044_715 * x * x * x)).tanh();
                let inner = 0.797_884_560_8 * (1.0 + 3.0 * 0.044_715 * x * x);
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
                (y.clamp(0.0, 1.0), if (0.0..=1.0).contains(&y) { 0.2 } else { 0.0 })
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
                    (1.050_700_987_355_480_5 * x, 1.050_700_987_355_480_5)
                } else {
                    (
                        1.050_700_987_355_480_5 * 1.673_263_242_354_377_2 * x.exp_m1(),
                        1.050_700_987_355_480_5 * 1.673_263_242_354_377_2 * x.exp(),
                    )
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

    /// From far below to far above, the kinks and their surroundings, in a number that leaves a remainder.
    fn inputs() -> Vec<f64> {
        let steps = if cfg!(miri) { 40 } else { 4000 };
        let mut x: Vec<f64> = (0..=steps).map(|i| f64::from(i) / f64::from(steps) * 80.0 - 40.0).collect();
        x.extend([0.0, 0.5, 6.0, -3.0, 3.0, -2.5, 2.5, 1e-6, -1e-6, 1e-20]);
        x.iter().map(|&x| f64::from(x as f32)).collect()
    }

    fn check<R: Real>(isa: Isa, tolerance: f64) {
        let x = inputs();
        for function in ALL {
            let mut values: Vec<R> = x.iter().map(|&x| R::from_f64(x)).collect();
            let inputs = values.clone();
            let mut slopes = vec![R::ONE; x.len()];
            elementwise(isa, function, &mut values);
            elementwise_backward(isa, function, &inputs, &mut slopes);
            let (mut both, mut slopes_of_both) = (vec![R::ZERO; x.len()], vec![R::ONE; x.len()]);
            elementwise_with_backward(isa, function, &inputs, &mut both, &mut slopes_of_both);
            assert_eq!((both, slopes_of_both), (values.clone(), slopes.clone()), "{function:?}");
            let mut rounded = vec![bf16::ONE; x.len() + 3];
            elementwise_to_bfloat16(isa, function, &inputs, &mut rounded);
            for (&value, rounded) in values.iter().zip(&rounded) {
                let subnormal = value.to_f32().abs() < f32::MIN_POSITIVE;
                assert!(subnormal || bf16::from_f32(value.to_f32()) == *rounded, "{function:?} of {value:?}");
            }
            assert!(rounded[x.len()..].iter().all(|&x| x == bf16::ZERO));
            for ((&x, value), slope) in x.iter().zip(values).zip(slopes) {
                let expected = reference(function, x);
                for (got, expected) in [(value.to_f64(), expected.0), (slope.to_f64(), expected.1)] {
                    let error = (got - expected).abs() / expected.abs().max(1.0);
                    assert!(error <= tolerance, "{} {function:?} at {x}: {got} not {expected}", isa.name());
                }
            }
        }
    }

    #[test]
    fn values_and_derivatives_follow_the_formulas() {
        for isa in Isa::available() {
            check::<f32>(isa, TOLERANCE);
        }
    }

    #[test]
    fn double_precision_is_exact_enough_for_finite_differences() {
        check::<f64>(Isa::PORTABLE, 1e-14);
    }

    #[test]
    fn rounding_is_that_of_half_but_for_subnormal_numbers() {
        // Ties, one to the even number below and one to that above.
        let mut values = vec![1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
        values.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, f32::MAX, 1e-40]);
        values.extend((0..100).map(|i| 1.7f32.powi(i - 50)));
        for isa in Isa::available() {
            let mut rounded = vec![bf16::ONE; values.len()];
            elementwise_to_bfloat16(isa, Elementwise::Linear, &values, &mut rounded);
            for (&x, rounded) in values.iter().zip(&rounded) {
                let expected = bf16::from_f32(x);
                assert!(rounded.to_bits() == expected.to_bits() || x.is_subnormal(), "{} of {x}", isa.name());
            }
        }
    }

    #[test]
    fn a_value_does_not_depend_on_its_place() {
        for isa in Isa::available() {
            for function in ALL {
                let x: Vec<f32> = inputs().iter().map(|&x| x as f32).collect();
                let mut whole = x.clone();
                elementwise(isa, function, &mut whole);
                let mut part = x[5..33].to_vec();
                elementwise(isa, function, &mut part);
                assert_eq!(part, whole[5..33], "{} {function:?}", isa.name());
            }
        }
    }
}
