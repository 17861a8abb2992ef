//! Products of a circulant or Toeplitz matrix with vectors, by fast Fourier transforms.
//!
//! With `M[p, q] = c[(p - q) mod n]` the product `M x` is the circular convolution of `c` and `x`. A Toeplitz matrix is a
//! corner of a circulant one of at least `2 n - 1` rows.

use std::sync::Arc;

use crate::kernels::{Real, RealFft};
use crate::sys::alloc_zeroed;

/// Multiplies vectors by one circulant matrix.
#[derive(Clone, Debug)]
pub struct Convolution<R> {
    fft: Arc<dyn RealFft<R>>,
    /// Of the first column over the length of the transform, in pairs; shared by clones.
    spectrum: Arc<[R]>,
}

impl<R: Real> Convolution<R> {
    /// Products with the circulant matrix of first column `column`, which is not empty.
    pub fn new(mut column: Vec<R>) -> Self {
        let fft = R::real_fft(column.len());
        let scale = R::ONE / R::from_f64(column.len() as f64);
        let mut spectrum = alloc_zeroed(2 * (column.len() / 2 + 1));
        fft.forward(&mut column, &mut spectrum, &mut alloc_zeroed(fft.scratch_len()));
        spectrum.iter_mut().for_each(|value| *value *= scale);
        Convolution { fft, spectrum: spectrum.into() }
    }

    /// Numbers that `apply` needs as scratch.
    pub fn scratch_len(&self) -> usize {
        self.fft.size() + self.spectrum.len() + self.fft.scratch_len()
    }

    /// Replaces `x`, a vector or the beginning of one whose rest is zeros, by as much of the product with it.
    pub fn apply(&self, x: &mut [R], scratch: &mut [R]) {
        let (padded, rest) = scratch.split_at_mut(self.fft.size());
        let (values, scratch) = rest.split_at_mut(self.spectrum.len());
        padded[..x.len()].copy_from_slice(x);
        padded[x.len()..].fill(R::ZERO);
        self.fft.forward(padded, values, scratch);
        for (value, factor) in values.chunks_exact_mut(2).zip(self.spectrum.chunks_exact(2)) {
            let [re, im] = [value[0], value[1]];
            value[0] = re * factor[0] - im * factor[1];
            value[1] = re * factor[1] + im * factor[0];
        }
        self.fft.inverse(values, padded, scratch);
        x.copy_from_slice(&padded[..x.len()]);
    }
}
