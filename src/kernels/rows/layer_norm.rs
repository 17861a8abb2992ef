//! Layer normalisation of rows. Statistics have a fixed order that depends only on the row length.

use crate::kernels::isa::{Isa, Real, Simd, VectorLoop, each_span, sum};

/// Layer normalisation of rows of `gamma.len()` values: `(x - mean) / sqrt(var + epsilon) * gamma + beta`, population
/// variance in two passes. `stats`, when given, receives `[mean, 1 / sqrt(var + epsilon)]` of each row.
///
/// Source: Keras `LayerNormalization`.
///
/// # Panics
/// If the lengths do not agree.
pub fn layer_norm<R: Real>(
    isa: Isa,
    x: &[R],
    gamma: &[R],
    beta: &[R],
    epsilon: f64,
    out: &mut [R],
    stats: Option<&mut [R]>,
) {
    assert_eq!(x.len(), out.len(), "as many results as values");
    assert_eq!(gamma.len(), beta.len(), "a shift for each scale");
    R::dispatch(isa, LayerNorm { x, gamma, beta, epsilon: R::from_f64(epsilon), out, stats });
}

struct LayerNorm<'a, R> {
    x: &'a [R],
    gamma: &'a [R],
    beta: &'a [R],
    epsilon: R,
    out: &'a mut [R],
    stats: Option<&'a mut [R]>,
}

impl<R: Real> VectorLoop<R> for LayerNorm<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<Elem = R>>(mut self, simd: S) {
        let n = self.gamma.len();
        let count = R::from_f64(n as f64);
        for (r, (x, out)) in self.x.chunks_exact(n).zip(self.out.chunks_exact_mut(n)).enumerate() {
            let total = sum(
                simd,
                n,
                #[inline(always)]
                |at| at.load(simd, x),
            );
            let mean = total / count;
            let means = simd.splat(mean);
            let squares = sum(
                simd,
                n,
                #[inline(always)]
                |at| {
                    let d = simd.sub(at.load(simd, x), means);
                    simd.mul(d, d)
                },
            );
            let inverse = R::ONE / (squares / count + self.epsilon).sqrt();
            let inverses = simd.splat(inverse);
            each_span(
                n,
                #[inline(always)]
                |at| {
                    let d = simd.sub(at.load(simd, x), means);
                    let scale = simd.mul(inverses, at.load(simd, self.gamma));
                    at.store(simd, simd.mul_add(d, scale, at.load(simd, self.beta)), out);
                },
            );
            if let Some(stats) = self.stats.as_deref_mut() {
                stats[2 * r] = mean;
                stats[2 * r + 1] = inverse;
            }
        }
    }
}

/// Computes the backward of [`layer_norm`]: writes `dx`, adds to `dgamma` and `dbeta`, row after row.
///
/// # Panics
/// If the lengths do not agree.
pub fn layer_norm_backward<R: Real>(
    isa: Isa,
    dy: &[R],
    x: &[R],
    stats: &[R],
    gamma: &[R],
    dx: &mut [R],
    dgamma: &mut [R],
    dbeta: &mut [R],
) {
    assert!(dy.len() == x.len() && dx.len() == x.len(), "as many gradients as values");
    assert!(dgamma.len() == gamma.len() && dbeta.len() == gamma.len(), "as many gradients as parameters");
    R::dispatch(isa, LayerNormBackward { dy, x, stats, gamma, dx, dgamma, dbeta });
}

struct LayerNormBackward<'a, R> {
    dy: &'a [R],
    x: &'a [R],
    stats: &'a [R],
    gamma: &'a [R],
    dx: &'a mut [R],
    dgamma: &'a mut [R],
    dbeta: &'a mut [R],
}

impl<R: Real> VectorLoop<R> for LayerNormBackward<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<Elem = R>>(self, simd: S) {
        let n = self.gamma.len();
        let count = R::from_f64(n as f64);
        let rows = self.dy.chunks_exact(n).zip(self.x.chunks_exact(n)).zip(self.dx.chunks_exact_mut(n));
        for (r, ((dy, x), dx)) in rows.enumerate() {
            let mean = simd.splat(self.stats[2 * r]);
            let inverse = simd.splat(self.stats[2 * r + 1]);
            // dx holds (x - mean) * inverse between the passes.
            each_span(
                n,
                #[inline(always)]
                |at| {
                    let normal = simd.mul(simd.sub(at.load(simd, x), mean), inverse);
                    at.store(simd, normal, dx);
                    let d = at.load(simd, dy);
                    let scale = simd.mul_add(d, normal, at.load(simd, self.dgamma));
                    at.store(simd, scale, self.dgamma);
                    at.store(simd, simd.add(d, at.load(simd, self.dbeta)), self.dbeta);
                },
            );
            let total = sum(
                simd,
                n,
                #[inline(always)]
                |at| simd.mul(at.load(simd, dy), at.load(simd, self.gamma)),
            );
            let dot = sum(
                simd,
                n,
                #[inline(always)]
                |at| {
                    let d = simd.mul(at.load(simd, dy), at.load(simd, self.gamma));
                    simd.mul(d, at.load(simd, dx))
                },
            );
            let mean_d = simd.splat(total / count);
            let mean_dot = simd.splat(dot / count);
            each_span(
                n,
                #[inline(always)]
                |at| {
                    let d = simd.mul(at.load(simd, dy), at.load(simd, self.gamma));
                    let along = simd.mul(at.load(simd, dx), mean_dot);
                    let d = simd.sub(simd.sub(d, mean_d), along);
                    at.store(simd, simd.mul(d, inverse), dx);
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{LENGTHS, assert_close, cast, for_all, numbers};

    fn check_layer_norm<R: Real>(isa: Isa) {
        for n in LENGTHS {
            let (x, gamma, beta) = (numbers(3 * n, 1), numbers(n, 2), numbers(n, 3));
            let dy = numbers(3 * n, 4);
            let (mut y, mut dx, mut stats) = (vec![0.0; 3 * n], vec![0.0; 3 * n], vec![0.0; 6]);
            let (mut dgamma, mut dbeta) = (vec![1.0; n], vec![2.0; n]);
            for r in 0..3 {
                let row = r * n..(r + 1) * n;
                let mean = x[row.clone()].iter().sum::<f64>() / n as f64;
                let var = x[row.clone()].iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
                let inverse = 1.0 / (var + 1e-3).sqrt();
                (stats[2 * r], stats[2 * r + 1]) = (mean, inverse);
                let normal: Vec<f64> = x[row.clone()].iter().map(|v| (v - mean) * inverse).collect();
                let d: Vec<f64> = (0..n).map(|c| dy[r * n + c] * gamma[c]).collect();
                let mean_d = d.iter().sum::<f64>() / n as f64;
                let mean_dot = d.iter().zip(&normal).map(|(d, x)| d * x).sum::<f64>() / n as f64;
                for c in 0..n {
                    y[r * n + c] = normal[c] * gamma[c] + beta[c];
                    dx[r * n + c] = (d[c] - mean_d - normal[c] * mean_dot) * inverse;
                    dgamma[c] += dy[r * n + c] * normal[c];
                    dbeta[c] += dy[r * n + c];
                }
            }
            let what = format!("{} layer norm of {n}", isa.name());
            let (rx, rgamma, rbeta) = (cast::<R>(&x), cast::<R>(&gamma), cast::<R>(&beta));
            let (mut out, mut out_stats) = (vec![R::ZERO; 3 * n], vec![R::ZERO; 6]);
            layer_norm(isa, &rx, &rgamma, &rbeta, 1e-3, &mut out, Some(&mut out_stats));
            assert_close(&out, &y, &what);
            let mut out_dx = vec![R::ZERO; 3 * n];
            let (mut out_dgamma, mut out_dbeta) = (vec![R::ONE; n], vec![R::ONE + R::ONE; n]);
            layer_norm_backward(
                isa,
                &cast(&dy),
                &rx,
                &out_stats,
                &rgamma,
                &mut out_dx,
                &mut out_dgamma,
                &mut out_dbeta,
            );
            // A row of equal values has a large 1/std, which magnifies rounding.
            if n > 2 {
                assert_close(&out_dx, &dx, &what);
            }
            assert_close(&out_dgamma, &dgamma, &what);
            assert_close(&out_dbeta, &dbeta, &what);
        }
    }

    #[test]
    fn layer_norm_follows_the_formula_forward_and_backward() {
        for_all!(check_layer_norm);
    }

    #[test]
    fn fused_instruction_sets_agree_to_the_bit() {
        let run = |isa| {
            let (x, gamma) = (cast::<f32>(&numbers(5 * 77, 10)), cast::<f32>(&numbers(77, 11)));
            let mut out = x.clone();
            layer_norm(isa, &x, &gamma, &gamma, 1e-12, &mut out, None);
            out
        };
        let fused: Vec<_> = Isa::available().into_iter().filter(|&isa| isa != Isa::PORTABLE).collect();
        for pair in fused.windows(2) {
            assert_eq!(run(pair[0]), run(pair[1]), "{pair:?}");
        }
    }
}
