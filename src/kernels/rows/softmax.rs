//! Softmax of rows and its logarithm. Sums have a fixed order that depends only on the row length.

use half::bf16;

use crate::kernels::isa::{Isa, LANES, Real, Simd, Span, VectorLoop, each_span, largest, sum};
use crate::sys::{Work, timed};

/// Exponentials of a row, relative to that of its largest value, each given to `put`; their sum.
#[inline(always)]
fn exponentials_of_row<S: Simd<Elem: Real>>(
    simd: S,
    row: &mut [S::Elem],
    mut put: impl FnMut(Span, S::Vec, &mut [S::Elem]),
) -> S::Elem {
    let top = simd.splat(largest(simd, row));
    let log2_e = simd.constant(std::f64::consts::LOG2_E);
    sum(
        simd,
        row.len(),
        #[inline(always)]
        |at| {
            let distance = simd.sub(at.load(simd, row), top);
            let e = S::Elem::exp2_lanes(simd, simd.mul(distance, log2_e));
            put(at, e, row);
            e
        },
    )
}

/// [`exponentials_of_row`] in the place of the row.
#[inline(always)]
fn exponentials_in_place<S: Simd<Elem: Real>>(simd: S, row: &mut [S::Elem]) -> S::Elem {
    exponentials_of_row(
        simd,
        row,
        #[inline(always)]
        |at, e, row| at.store(simd, e, row),
    )
}

/// Softmax of each row of `n` values, in place.
pub fn softmax_in_place<R: Real>(isa: Isa, x: &mut [R], n: usize) {
    struct Softmax<'a, R>(&'a mut [R], usize);
    impl<R: Real> VectorLoop<R> for Softmax<'_, R> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd<Elem = R>>(self, simd: S) {
            for row in self.0.chunks_exact_mut(self.1) {
                let total = exponentials_in_place(simd, row);
                let scale = simd.splat(R::ONE / total);
                each_span(
                    row.len(),
                    #[inline(always)]
                    |at| at.store(simd, simd.mul(at.load(simd, row), scale), row),
                );
            }
        }
    }
    let _time = timed(Work::Softmax);
    if n > 0 {
        R::dispatch(isa, Softmax(x, n));
    }
}

/// Softmax of each row of `n` values, in place, without the division by the sums, which go to `sums`.
pub fn exponentials<R: Real>(isa: Isa, x: &mut [R], n: usize, sums: &mut [R]) {
    let _time = timed(Work::Softmax);
    struct Exponentials<'a, R>(&'a mut [R], usize, &'a mut [R]);
    impl<R: Real> VectorLoop<R> for Exponentials<'_, R> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd<Elem = R>>(self, simd: S) {
            let Exponentials(x, n, sums) = self;
            for (row, total) in x.chunks_exact_mut(n).zip(sums) {
                *total = exponentials_in_place(simd, row);
            }
        }
    }
    if n > 0 {
        R::dispatch(isa, Exponentials(x, n, sums));
    }
}

/// [`exponentials`] of one row, rounded to bfloat16 as they are made, into `out`; what is missing becomes zeros. Returns the
/// sum of the unrounded ones.
pub fn exponentials_to_bfloat16<R: Real>(isa: Isa, row: &mut [R], out: &mut [bf16]) -> R {
    struct Exponentials<'a, R>(&'a mut [R], &'a mut [bf16]);
    impl<R: Real> VectorLoop<R> for Exponentials<'_, R> {
        type Output = R;
        const TO_BFLOAT16: bool = true;
        #[inline(always)]
        fn run<S: Simd<Elem = R>>(self, simd: S) -> R {
            let Exponentials(row, out) = self;
            let (whole, padding) = out.split_at_mut(row.len());
            padding.fill(bf16::ZERO);
            exponentials_of_row(
                simd,
                row,
                #[inline(always)]
                |at, e, _| at.store_bfloat16(simd, e, whole),
            )
        }
    }
    if row.is_empty() {
        out.fill(bf16::ZERO);
        return R::ZERO;
    }
    R::dispatch(isa, Exponentials(row, out))
}

/// Computes the backward of [`softmax_in_place`] given its result `p`: `dx = p * (dp - sum(p * dp))`, in place on `dp`.
///
/// # Panics
/// If the lengths differ.
pub fn softmax_backward<R: Real>(isa: Isa, p: &[R], dp: &mut [R], n: usize) {
    struct SoftmaxBackward<'a, R>(&'a [R], &'a mut [R], usize);
    impl<R: Real> VectorLoop<R> for SoftmaxBackward<'_, R> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd<Elem = R>>(self, simd: S) {
            let SoftmaxBackward(p, dp, n) = self;
            for (p, dp) in p.chunks_exact(n).zip(dp.chunks_exact_mut(n)) {
                let dot = simd.splat(dot(simd, p, dp));
                each_span(
                    n,
                    #[inline(always)]
                    |at| {
                        // Subtracting first rounds less than `p * dp - p * dot` where the two nearly cancel.
                        let d = simd.mul(at.load(simd, p), simd.sub(at.load(simd, dp), dot));
                        at.store(simd, d, dp);
                    },
                );
            }
        }
    }
    assert_eq!(p.len(), dp.len(), "as many gradients as probabilities");
    let _time = timed(Work::Softmax);
    if n > 0 {
        R::dispatch(isa, SoftmaxBackward(p, dp, n));
    }
}

/// The same with dropout after the softmax: `dropped` is what that made of `p`, and `dp`, in place, the gradient of `dropped`.
///
/// # Panics
/// If the lengths differ.
pub fn dropped_softmax_backward<R: Real>(isa: Isa, p: &[R], dropped: &[R], dp: &mut [R], n: usize) {
    struct DroppedSoftmaxBackward<'a, R>([&'a [R]; 2], &'a mut [R], usize);
    impl<R: Real> VectorLoop<R> for DroppedSoftmaxBackward<'_, R> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd<Elem = R>>(self, simd: S) {
            let DroppedSoftmaxBackward([p, dropped], dp, n) = self;
            let rows = p.chunks_exact(n).zip(dropped.chunks_exact(n));
            for ((p, dropped), dp) in rows.zip(dp.chunks_exact_mut(n)) {
                // Dropout multiplies by 0 or by a factor, back as well as forth: what is left of `p * d p` is `dropped * dp`.
                let minus_dot = simd.splat(-dot(simd, dropped, dp));
                each_span(
                    n,
                    #[inline(always)]
                    |at| {
                        let own = simd.mul(at.load(simd, dropped), at.load(simd, dp));
                        at.store(simd, simd.mul_add(at.load(simd, p), minus_dot, own), dp);
                    },
                );
            }
        }
    }
    assert!(p.len() == dp.len() && dropped.len() == dp.len(), "as many gradients as probabilities");
    let _time = timed(Work::Softmax);
    if n > 0 {
        R::dispatch(isa, DroppedSoftmaxBackward([p, dropped], dp, n));
    }
}

/// `sum(a * b)`.
#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[S::Elem], b: &[S::Elem]) -> S::Elem {
    sum(
        simd,
        a.len(),
        #[inline(always)]
        |at| simd.mul(at.load(simd, a), at.load(simd, b)),
    )
}

/// `out[r] = log(sum(exp(row r)))` of each row of `n` values: infinite if one of them is `+inf`, `-inf` if all are `-inf`,
/// NaN if one is.
///
/// Source: TensorFlow's `reduce_logsumexp`.
///
/// # Panics
/// If `n` is 0.
pub fn log_sum_exp<R: Real>(isa: Isa, x: &[R], n: usize, out: &mut [R]) {
    struct LogSumExp<'a, R>(&'a [R], usize, &'a mut [R]);
    impl<R: Real> VectorLoop<R> for LogSumExp<'_, R> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd<Elem = R>>(self, simd: S) {
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
                if !total.is_finite() {
                    // Differences of infinities, or NaN among the values.
                    *out = row.iter().copied().find(|x| x.is_nan()).unwrap_or(top);
                    continue;
                }
                let mut log = [R::ZERO; LANES];
                simd.store(R::ln_lanes(simd, simd.splat(total)), &mut log);
                *out = log[0] + top;
            }
        }
    }
    R::dispatch(isa, LogSumExp(x, n, out));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{LENGTHS, assert_close, cast, for_all, numbers};

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
            check_dropped_softmax_backward::<R>(isa, n);
        }
    }

    /// Some are dropped, the others doubled.
    fn check_dropped_softmax_backward<R: Real>(isa: Isa, n: usize) {
        let (p, dp) = (numbers(n, 7), numbers(n, 8));
        let factor = |i: usize| if i % 3 == 1 { 0.0 } else { 2.0 };
        let products: Vec<f64> = (0..n).map(|i| factor(i) * p[i] * dp[i]).collect();
        let dot: f64 = products.iter().sum();
        let expected: Vec<f64> = products.iter().zip(&p).map(|(own, p)| own - p * dot).collect();
        let dropped: Vec<f64> = p.iter().enumerate().map(|(i, p)| factor(i) * p).collect();
        let mut got = cast::<R>(&dp);
        dropped_softmax_backward(isa, &cast::<R>(&p), &cast::<R>(&dropped), &mut got, n);
        assert_close(&got, &expected, &format!("{} dropped softmax of {n}", isa.name()));
    }

    #[test]
    fn softmax_and_log_sum_exp_follow_the_formula() {
        for_all!(check_softmax);
    }

    fn check_log_sum_exp_of_infinities<R: Real>(isa: Isa) {
        let [infinity, nan] = [f64::INFINITY, f64::NAN].map(R::from_f64);
        for n in LENGTHS {
            for at in [0, n / 2, n - 1] {
                let log_of = |values: &dyn Fn(usize) -> R| {
                    let row: Vec<R> = (0..n).map(values).collect();
                    let mut out = [R::ZERO];
                    log_sum_exp(isa, &row, n, &mut out);
                    out[0]
                };
                let what = format!("{} {n} {at}", isa.name());
                let number = |i: usize| R::from_f64(i as f64 - 3.0);
                assert_eq!(log_of(&|i| if i == at { infinity } else { number(i) }), infinity, "{what}");
                assert_eq!(log_of(&|_| infinity), infinity, "{what}");
                assert_eq!(log_of(&|_| -infinity), -infinity, "{what}");
                let alone = log_of(&|i| if i == at { R::ONE } else { -infinity });
                assert!((alone.to_f64() - 1.0).abs() < 1e-6, "{what}: {alone:?}");
                assert!(log_of(&|i| if i == at { nan } else { number(i) }).is_nan(), "{what}");
                assert!(log_of(&|i| if i == at { nan } else { infinity }).is_nan(), "{what}");
            }
        }
    }

    #[test]
    fn log_sum_exp_of_infinities_is_that_of_tensorflow() {
        for_all!(check_log_sum_exp_of_infinities);
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

    #[test]
    fn fused_instruction_sets_agree_to_the_bit() {
        let run = |isa| {
            let mut out = cast::<f32>(&numbers(5 * 77, 10));
            softmax_in_place(isa, &mut out, 77);
            out
        };
        let fused: Vec<_> = Isa::available().into_iter().filter(|&isa| isa != Isa::PORTABLE).collect();
        for pair in fused.windows(2) {
            assert_eq!(run(pair[0]), run(pair[1]), "{pair:?}");
        }
    }
}
