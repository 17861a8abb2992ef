//! Per-row work: layer norm, softmax, sums. Statistics have a fixed order that depends only on the row length.

use super::{Isa, Real};

/// `dst += src`
pub fn add_in_place<R: Real>(_isa: Isa, dst: &mut [R], src: &[R]) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d += *s;
    }
}

/// `dst += scale * src`
pub fn axpy<R: Real>(_isa: Isa, dst: &mut [R], scale: R, src: &[R]) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d += scale * *s;
    }
}

/// Layer normalisation of rows of `gamma.len()` values: `(x - mean) / sqrt(var + epsilon) * gamma + beta`, population
/// variance in two passes. `stats`, when given, receives `[mean, 1 / sqrt(var + epsilon)]` of each row.
///
/// Source: Keras `LayerNormalization`.
pub fn layer_norm<R: Real>(
    _isa: Isa,
    x: &[R],
    gamma: &[R],
    beta: &[R],
    epsilon: f64,
    out: &mut [R],
    mut stats: Option<&mut [R]>,
) {
    let n = gamma.len();
    let count = R::from_f64(n as f64);
    for (r, (x, out)) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)).enumerate() {
        let mean = x.iter().fold(R::ZERO, |s, &v| s + v) / count;
        let var = x.iter().fold(R::ZERO, |s, &v| s + (v - mean) * (v - mean)) / count;
        let inverse = R::ONE / (var + R::from_f64(epsilon)).sqrt();
        for (((o, &v), &g), &b) in out.iter_mut().zip(x).zip(gamma).zip(beta) {
            *o = (v - mean) * (inverse * g) + b;
        }
        if let Some(stats) = stats.as_deref_mut() {
            stats[2 * r] = mean;
            stats[2 * r + 1] = inverse;
        }
    }
}

/// Undoes [`layer_norm`]: writes `dx`, adds to `dgamma` and `dbeta`, row after row.
pub fn layer_norm_backward<R: Real>(
    _isa: Isa,
    dy: &[R],
    x: &[R],
    stats: &[R],
    gamma: &[R],
    dx: &mut [R],
    dgamma: &mut [R],
    dbeta: &mut [R],
) {
    let n = gamma.len();
    let count = R::from_f64(n as f64);
    for (r, ((dy, x), dx)) in
        dy.chunks_exact(n).zip(x.chunks_exact(n)).zip(dx.chunks_exact_mut(n)).enumerate()
    {
        let (mean, inverse) = (stats[2 * r], stats[2 * r + 1]);
        let (mut sum, mut dot) = (R::ZERO, R::ZERO);
        for c in 0..n {
            let normal = (x[c] - mean) * inverse;
            let d = dy[c] * gamma[c];
            sum += d;
            dot += d * normal;
            dgamma[c] += dy[c] * normal;
            dbeta[c] += dy[c];
        }
        for c in 0..n {
            let normal = (x[c] - mean) * inverse;
            dx[c] = (dy[c] * gamma[c] - sum / count - normal * (dot / count)) * inverse;
        }
    }
}

/// Softmax of each row of `n` values, in place.
pub fn softmax_in_place<R: Real>(_isa: Isa, x: &mut [R], n: usize) {
    for row in x.chunks_exact_mut(n) {
        let largest = row.iter().fold(row[0], |m, &v| m.max(v));
        let mut sum = R::ZERO;
        for v in row.iter_mut() {
            *v = (*v - largest).exp();
            sum += *v;
        }
        for v in row.iter_mut() {
            *v = *v / sum;
        }
    }
}

/// Undoes [`softmax_in_place`] given its result `p`: `dx = p * (dp - sum(p * dp))`, in place on `dp`.
pub fn softmax_backward<R: Real>(_isa: Isa, p: &[R], dp: &mut [R], n: usize) {
    for (p, dp) in p.chunks_exact(n).zip(dp.chunks_exact_mut(n)) {
        let dot = p.iter().zip(dp.iter()).fold(R::ZERO, |s, (&p, &d)| s + p * d);
        for (d, &p) in dp.iter_mut().zip(p) {
            *d = p * (*d - dot);
        }
    }
}

/// `out[r] = log(sum(exp(row r)))` of each row of `n` values.
pub fn log_sum_exp<R: Real>(_isa: Isa, x: &[R], n: usize, out: &mut [R]) {
    for (row, out) in x.chunks_exact(n).zip(out) {
        let largest = row.iter().fold(row[0], |m, &v| m.max(v));
        *out = row.iter().fold(R::ZERO, |s, &v| s + (v - largest).exp()).ln() + largest;
    }
}

/// `out[c * out_stride + r] = x[r * x_stride + c]` for `rows` x `cols`.
pub fn transpose<R: Real>(
    _isa: Isa,
    x: &[R],
    rows: usize,
    cols: usize,
    x_stride: usize,
    out: &mut [R],
    out_stride: usize,
) {
    for r in 0..rows {
        for c in 0..cols {
            out[c * out_stride + r] = x[r * x_stride + c];
        }
    }
}
