//! Per-row work: layer norm, softmax, sums. Statistics have a fixed order that depends only on the row length.

use super::simd::{LANES, Simd, VectorOp};
use super::spans::{each_span, largest, sum};
use super::{Isa, Real};

/// `dst += src`
///
/// # Panics
/// If the lengths differ.
pub fn add_in_place<R: Real>(isa: Isa, dst: &mut [R], src: &[R]) {
    axpy(isa, dst, R::ONE, src);
}

/// `dst += scale * src`
///
/// # Panics
/// If the lengths differ.
pub fn axpy<R: Real>(isa: Isa, dst: &mut [R], scale: R, src: &[R]) {
    struct Axpy<'a, R>(&'a mut [R], R, &'a [R]);
    impl<R: Real> VectorOp<R> for Axpy<'_, R> {
        type Output = ();
        #[inline(always)]
        fn eval<S: Simd<Elem = R>>(self, simd: S) {
            let Axpy(dst, scale, src) = self;
            let scale = simd.splat(scale);
            each_span(
                dst.len(),
                #[inline(always)]
                |at| {
                    let y = simd.mul_add(scale, at.load(simd, src), at.load(simd, dst));
                    at.store(simd, y, dst);
                },
            );
        }
    }
    assert_eq!(dst.len(), src.len(), "as many values to add as places to add them to");
    R::dispatch(isa, Axpy(dst, scale, src));
}

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

impl<R: Real> VectorOp<R> for LayerNorm<'_, R> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<Elem = R>>(mut self, simd: S) {
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

/// Undoes [`layer_norm`]: writes `dx`, adds to `dgamma` and `dbeta`, row after row.
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

impl<R: Real> VectorOp<R> for LayerNormBackward<'_, R> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<Elem = R>>(self, simd: S) {
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

/// Softmax of each row of `n` values, in place.
pub fn softmax_in_place<R: Real>(isa: Isa, x: &mut [R], n: usize) {
    struct Softmax<'a, R>(&'a mut [R], usize);
    impl<R: Real> VectorOp<R> for Softmax<'_, R> {
        type Output = ();
        #[inline(always)]
        fn eval<S: Simd<Elem = R>>(self, simd: S) {
            for row in self.0.chunks_exact_mut(self.1) {
                let top = simd.splat(largest(simd, row));
                each_span(
                    row.len(),
                    #[inline(always)]
                    |at| {
                        let e = R::exp_lanes(simd, simd.sub(at.load(simd, row), top));
                        at.store(simd, e, row);
                    },
                );
                let total = sum(
                    simd,
                    row.len(),
                    #[inline(always)]
                    |at| at.load(simd, row),
                );
                let scale = simd.splat(R::ONE / total);
                each_span(
                    row.len(),
                    #[inline(always)]
                    |at| at.store(simd, simd.mul(at.load(simd, row), scale), row),
                );
            }
        }
    }
    if n > 0 {
        R::dispatch(isa, Softmax(x, n));
    }
}

/// Undoes [`softmax_in_place`] given its result `p`: `dx = p * (dp - sum(p * dp))`, in place on `dp`.
///
/// # Panics
/// If the lengths differ.
pub fn softmax_backward<R: Real>(isa: Isa, p: &[R], dp: &mut [R], n: usize) {
    struct SoftmaxBackward<'a, R>(&'a [R], &'a mut [R], usize);
    impl<R: Real> VectorOp<R> for SoftmaxBackward<'_, R> {
        type Output = ();
        #[inline(always)]
        fn eval<S: Simd<Elem = R>>(self, simd: S) {
            let SoftmaxBackward(p, dp, n) = self;
            for (p, dp) in p.chunks_exact(n).zip(dp.chunks_exact_mut(n)) {
                let dot = sum(
                    simd,
                    n,
                    #[inline(always)]
                    |at| simd.mul(at.load(simd, p), at.load(simd, dp)),
                );
                let dot = simd.splat(dot);
                each_span(
                    n,
                    #[inline(always)]
                    |at| {
                        let d = simd.mul(at.load(simd, p), simd.sub(at.load(simd, dp), dot));
                        at.store(simd, d, dp);
                    },
                );
            }
        }
    }
    assert_eq!(p.len(), dp.len(), "as many gradients as probabilities");
    if n > 0 {
        R::dispatch(isa, SoftmaxBackward(p, dp, n));
    }
}

/// `out[r] = log(sum(exp(row r)))` of each row of `n` values.
///
/// # Panics
/// If `n` is 0.
pub fn log_sum_exp<R: Real>(isa: Isa, x: &[R], n: usize, out: &mut [R]) {
    struct LogSumExp<'a, R>(&'a [R], usize, &'a mut [R]);
    impl<R: Real> VectorOp<R> for LogSumExp<'_, R> {
        type Output = ();
        #[inline(always)]
        fn eval<S: Simd<Elem = R>>(self, simd: S) {
            let LogSumExp(x, n, out) = self;
            for (row, out) in x.chunks_exact(n).zip(out) {
                let top = largest(simd, row);
                let tops = simd.splat(top);
                let total = sum(
                    simd,
                    n,
                    #[inline(always)]
                    |at| R::exp_lanes(simd, simd.sub(at.load(simd, row), tops)),
                );
                let mut log = [R::ZERO; LANES];
                simd.store(R::ln_lanes(simd, simd.splat(total)), &mut log);
                *out = log[0] + top;
            }
        }
    }
    R::dispatch(isa, LogSumExp(x, n, out));
}

/// `out[c * out_stride + r] = x[r * x_stride + c]` for `rows` x `cols`.
///
/// # Panics
/// If a slice is too short.
pub fn transpose<R: Real>(
    isa: Isa,
    x: &[R],
    rows: usize,
    cols: usize,
    x_stride: usize,
    out: &mut [R],
    out_stride: usize,
) {
    R::dispatch(isa, Transpose { x, rows, cols, x_stride, out, out_stride });
}

struct Transpose<'a, R> {
    x: &'a [R],
    rows: usize,
    cols: usize,
    x_stride: usize,
    out: &'a mut [R],
    out_stride: usize,
}

impl<R: Real> VectorOp<R> for Transpose<'_, R> {
    type Output = ();
    #[inline(always)]
    fn eval<S: Simd<Elem = R>>(self, simd: S) {
        let Transpose { x, rows, cols, x_stride, out, out_stride } = self;
        let (whole_rows, whole_cols) = (rows / LANES * LANES, cols / LANES * LANES);
        for r in (0..whole_rows).step_by(LANES) {
            for c in (0..whole_cols).step_by(LANES) {
                let mut block = [simd.zero(); LANES];
                for (i, v) in block.iter_mut().enumerate() {
                    let (row, _) = x[(r + i) * x_stride + c..].split_first_chunk().expect("x is too short");
                    *v = simd.load(row);
                }
                for (i, v) in simd.transpose(block).into_iter().enumerate() {
                    let at = (c + i) * out_stride + r;
                    let (row, _) = out[at..].split_first_chunk_mut().expect("out is too short");
                    simd.store(v, row);
                }
            }
        }
        for r in 0..rows {
            let first = if r < whole_rows { whole_cols } else { 0 };
            for c in first..cols {
                out[c * out_stride + r] = x[r * x_stride + c];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest difference between `f32` results and the plain formula in `f64`.
    const TOLERANCE: f64 = 2e-6;

    const LENGTHS: [usize; 12] = [1, 2, 3, 15, 16, 17, 40, 63, 64, 65, 130, 512];

    fn numbers(len: usize, seed: usize) -> Vec<f64> {
        (0..len).map(|i| f64::from((((i + seed * 977) * 7919) % 2003) as f32 / 1000.0 - 1.0)).collect()
    }

    fn cast<R: Real>(x: &[f64]) -> Vec<R> {
        x.iter().map(|&x| R::from_f64(x)).collect()
    }

    fn assert_close<R: Real>(got: &[R], expected: &[f64], what: &str) {
        assert_eq!(got.len(), expected.len());
        let tolerance = if R::f32_slice(got).is_some() { TOLERANCE } else { 1e-12 };
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            let error = (got.to_f64() - expected).abs() / expected.abs().max(1.0);
            assert!(error <= tolerance, "{what}: {got:?} not {expected} at {i}");
        }
    }

    /// Runs `check` for each instruction set in `f32`, and in `f64`.
    macro_rules! for_all {
        ($check:ident) => {
            for isa in Isa::available() {
                $check::<f32>(isa);
            }
            $check::<f64>(Isa::PORTABLE);
        };
    }

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

    fn check_softmax<R: Real>(isa: Isa) {
        for n in LENGTHS {
            let x: Vec<f64> = numbers(2 * n, 5).iter().map(|x| 8.0 * x).collect();
            let dp = numbers(2 * n, 6);
            let (mut p, mut dx, mut logs) = (vec![], vec![], vec![]);
            for (x, dp) in x.chunks_exact(n).zip(dp.chunks_exact(n)) {
                let total: f64 = x.iter().map(|x| x.exp()).sum();
                logs.push(total.ln());
                let row: Vec<f64> = x.iter().map(|x| x.exp() / total).collect();
                let dot: f64 = row.iter().zip(dp).map(|(p, d)| p * d).sum();
                dx.extend(row.iter().zip(dp).map(|(p, d)| p * (d - dot)));
                p.extend(row);
            }
            let what = format!("{} softmax of {n}", isa.name());
            let mut out_logs = vec![R::ZERO; 2];
            log_sum_exp(isa, &cast::<R>(&x), n, &mut out_logs);
            assert_close(&out_logs, &logs, &what);
            let (mut out, mut d) = (cast::<R>(&x), cast::<R>(&dp));
            softmax_in_place(isa, &mut out, n);
            assert_close(&out, &p, &what);
            softmax_backward(isa, &out, &mut d, n);
            assert_close(&d, &dx, &what);
        }
    }

    #[test]
    fn softmax_and_log_sum_exp_follow_the_formula() {
        for_all!(check_softmax);
    }

    #[test]
    fn masked_entries_get_exactly_zero() {
        for isa in Isa::available() {
            let mut x = vec![0.25f32; 40];
            x[7..].fill(-1e9);
            softmax_in_place(isa, &mut x, 40);
            assert!(x[..7].iter().all(|&p| (p - 1.0 / 7.0).abs() < 1e-7));
            assert!(x[7..].iter().all(|&p| p == 0.0));
        }
    }

    fn check_sums<R: Real>(isa: Isa) {
        for n in LENGTHS {
            let (x, y) = (numbers(n, 7), numbers(n, 8));
            let mut out = cast::<R>(&y);
            axpy(isa, &mut out, R::from_f64(0.5), &cast(&x));
            let expected: Vec<f64> = x.iter().zip(&y).map(|(x, y)| 0.5 * x + y).collect();
            assert_close(&out, &expected, "axpy");
            add_in_place(isa, &mut out, &cast(&x));
            let expected: Vec<f64> = x.iter().zip(&y).map(|(x, y)| 1.5 * x + y).collect();
            assert_close(&out, &expected, "add");
        }
    }

    #[test]
    fn sums_follow_the_formula() {
        for_all!(check_sums);
    }

    fn check_transpose<R: Real>(isa: Isa) {
        for (rows, cols, gap) in [(1, 1, 0), (16, 16, 0), (17, 33, 3), (40, 5, 1), (64, 48, 2)] {
            let x: Vec<R> = cast(&numbers(rows * (cols + gap), 9));
            let stride = rows + gap;
            let mut out = vec![R::ONE + R::ONE; cols * stride];
            transpose(isa, &x, rows, cols, cols + gap, &mut out, stride);
            for c in 0..cols {
                for r in 0..stride {
                    let expected = if r < rows { x[r * (cols + gap) + c] } else { R::ONE + R::ONE };
                    assert_eq!(out[c * stride + r], expected, "{} {rows} x {cols}", isa.name());
                }
            }
        }
    }

    #[test]
    fn transposes_leave_gaps_alone() {
        for_all!(check_transpose);
    }

    #[test]
    fn fused_instruction_sets_agree_to_the_bit() {
        let run = |isa| {
            let (x, gamma) = (cast::<f32>(&numbers(5 * 77, 10)), cast::<f32>(&numbers(77, 11)));
            let mut out = x.clone();
            layer_norm(isa, &x, &gamma, &gamma, 1e-12, &mut out, None);
            softmax_in_place(isa, &mut out, 77);
            out
        };
        let fused: Vec<_> = Isa::available().into_iter().filter(|&isa| isa != Isa::PORTABLE).collect();
        for pair in fused.windows(2) {
            assert_eq!(run(pair[0]), run(pair[1]), "{pair:?}");
        }
    }
}
