//! Products of a circulant or Toeplitz matrix with vectors, by fast Fourier transforms.
//!
//! With `M[p, q] = c[(p - q) mod n]` the product `M x` is the circular convolution of `c` and `x`. A Toeplitz matrix is a
//! corner of a circulant one of at least `2 n - 1` rows.

use std::any::{Any, TypeId};
use std::fmt;
use std::sync::Arc;

use bytemuck::Pod;
use num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use rustfft::FftNum;

use crate::error::{Error, Result};
use crate::kernels::Real;

use super::spectral::complex;

/// Multiplies vectors by one matrix.
pub trait Convolution<R>: Send + Sync + fmt::Debug {
    /// Numbers that `apply` needs as scratch.
    fn scratch_len(&self) -> usize;
    /// Replaces `x` by the product with it.
    fn apply(&self, x: &mut [R], scratch: &mut [R]);
}

struct Plan<T: FftNum> {
    forward: Arc<dyn RealToComplex<T>>,
    inverse: Arc<dyn ComplexToReal<T>>,
    /// Of the first column, over the length of the transform.
    spectrum: Vec<Complex<T>>,
}

impl<T: FftNum> fmt::Debug for Plan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plan({})", self.forward.len())
    }
}

impl<T: FftNum> Plan<T> {
    fn new(mut column: Vec<T>) -> Self {
        let mut planner = RealFftPlanner::new();
        let forward = planner.plan_fft_forward(column.len());
        let inverse = planner.plan_fft_inverse(column.len());
        let scale = T::one() / T::from_usize(column.len()).unwrap_or_else(T::one);
        let mut spectrum = forward.make_output_vec();
        // Lengths are those of the plan, the one thing it checks.
        let _ = forward.process(&mut column, &mut spectrum);
        spectrum.iter_mut().for_each(|value| *value = *value * scale);
        Plan { forward, inverse, spectrum }
    }
}

impl<T: FftNum + Pod> Convolution<T> for Plan<T> {
    fn scratch_len(&self) -> usize {
        let own = self.forward.get_scratch_len().max(self.inverse.get_scratch_len());
        self.forward.len() + 2 * (self.spectrum.len() + own)
    }

    fn apply(&self, x: &mut [T], scratch: &mut [T]) {
        let (padded, rest) = scratch.split_at_mut(self.forward.len());
        let (values, scratch) = complex(rest).split_at_mut(self.spectrum.len());
        padded[..x.len()].copy_from_slice(x);
        padded[x.len()..].fill(T::zero());
        let _ = self.forward.process_with_scratch(padded, values, scratch);
        values.iter_mut().zip(&self.spectrum).for_each(|(value, factor)| *value = *value * *factor);
        // A real result has real first and, for even lengths, last values; rounding must not say otherwise.
        let last = values.len() - 1;
        values[0].im = T::zero();
        if padded.len().is_multiple_of(2) {
            values[last].im = T::zero();
        }
        let _ = self.inverse.process_with_scratch(values, padded, scratch);
        x.copy_from_slice(&padded[..x.len()]);
    }
}

/// Products with the circulant matrix of first column `column`.
///
/// # Errors
/// [`Error::Internal`] if `R` is neither `f32` nor `f64`.
pub fn convolution<R: Real>(column: &[R]) -> Result<Arc<dyn Convolution<R>>> {
    let plan: Box<dyn Any> = if TypeId::of::<R>() == TypeId::of::<f32>() {
        let column = column.iter().map(|value| value.to_f32()).collect();
        Box::new(Arc::new(Plan::<f32>::new(column)) as Arc<dyn Convolution<f32>>)
    } else {
        let column = column.iter().map(|value| value.to_f64()).collect();
        Box::new(Arc::new(Plan::<f64>::new(column)) as Arc<dyn Convolution<f64>>)
    };
    match plan.downcast::<Arc<dyn Convolution<R>>>() {
        Ok(plan) => Ok(*plan),
        Err(_) => Err(Error::Internal("no Fourier transform for this element type".into())),
    }
}
