//! Fast Fourier transforms, planned once per length and process (by `rustfft` and `realfft`).
//!
//! Complex numbers are pairs of reals here, so that scratch memory has one element type.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use bytemuck::Pod;
use num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use rustfft::{Fft, FftNum, FftPlanner};

/// Plans that are remembered of each kind; with one more, all are forgotten and made again when asked for.
const MAX_PLANS: usize = 64;

/// Transforms of real vectors of one length, and back. Unscaled: there and back multiplies by the length.
pub trait RealFft<R>: Send + Sync + fmt::Debug {
    /// Numbers of a vector, `n`. Its spectrum has `n / 2 + 1` pairs; the others are their mirror images.
    fn size(&self) -> usize;
    /// Numbers that both directions need as scratch.
    fn scratch_len(&self) -> usize;
    /// Writes the spectrum of `values`, which are used as scratch.
    fn forward(&self, values: &mut [R], spectrum: &mut [R], scratch: &mut [R]);
    /// Writes the vector of which `spectrum` is the spectrum; the latter is used as scratch. Parts that must be zero in
    /// the spectrum of a real vector (the imaginary part of the first value, and of the last for even lengths) are taken
    /// as zero.
    fn inverse(&self, spectrum: &mut [R], values: &mut [R], scratch: &mut [R]);
}

/// Transforms of complex vectors of one length. Unscaled.
pub trait ComplexFft<R>: Send + Sync + fmt::Debug {
    /// Numbers that [`ComplexFft::forward`] needs as scratch.
    fn scratch_len(&self) -> usize;
    /// Replaces a vector by its spectrum.
    fn forward(&self, pairs: &mut [R], scratch: &mut [R]);
}

/// Pairs of reals as complex numbers.
fn complex<T: Pod>(pairs: &mut [T]) -> &mut [Complex<T>] {
    bytemuck::cast_slice_mut(pairs)
}

struct RealPlan<T: FftNum> {
    forward: Arc<dyn RealToComplex<T>>,
    inverse: Arc<dyn ComplexToReal<T>>,
}

impl<T: FftNum> fmt::Debug for RealPlan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RealPlan({})", self.forward.len())
    }
}

impl<T: FftNum + Pod> RealFft<T> for RealPlan<T> {
    fn size(&self) -> usize {
        self.forward.len()
    }

    fn scratch_len(&self) -> usize {
        2 * self.forward.get_scratch_len().max(self.inverse.get_scratch_len())
    }

    fn forward(&self, values: &mut [T], spectrum: &mut [T], scratch: &mut [T]) {
        // Lengths are all that can be wrong.
        let done = self.forward.process_with_scratch(values, complex(spectrum), complex(scratch));
        done.expect("a vector and a spectrum of the plan's length");
    }

    fn inverse(&self, spectrum: &mut [T], values: &mut [T], scratch: &mut [T]) {
        let spectrum = complex(spectrum);
        let last = spectrum.len() - 1;
        spectrum[0].im = T::zero();
        if values.len().is_multiple_of(2) {
            spectrum[last].im = T::zero();
        }
        let done = self.inverse.process_with_scratch(spectrum, values, complex(scratch));
        done.expect("a vector and a spectrum of the plan's length");
    }
}

struct ComplexPlan<T>(Arc<dyn Fft<T>>);

impl<T: FftNum> fmt::Debug for ComplexPlan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ComplexPlan({})", self.0.len())
    }
}

impl<T: FftNum + Pod> ComplexFft<T> for ComplexPlan<T> {
    fn scratch_len(&self) -> usize {
        2 * self.0.get_inplace_scratch_len()
    }

    fn forward(&self, pairs: &mut [T], scratch: &mut [T]) {
        self.0.process_with_scratch(complex(pairs), complex(scratch));
    }
}

/// The plans of this process for one element type.
pub struct FftPlans<T> {
    real: PlanCache<dyn RealFft<T>>,
    complex: PlanCache<dyn ComplexFft<T>>,
}

impl<T: FftNum + Pod> FftPlans<T> {
    /// None yet.
    #[allow(clippy::new_without_default, reason = "made once, as a static")]
    pub const fn new() -> Self {
        FftPlans { real: PlanCache::new(), complex: PlanCache::new() }
    }

    /// The plan for real vectors of `len` (at least 1) numbers.
    pub fn real(&self, len: usize) -> Arc<dyn RealFft<T>> {
        self.real.get(len, || {
            let mut planner = RealFftPlanner::new();
            Arc::new(RealPlan {
                forward: planner.plan_fft_forward(len),
                inverse: planner.plan_fft_inverse(len),
            })
        })
    }

    /// The plan for complex vectors of `len` pairs.
    pub fn complex(&self, len: usize) -> Arc<dyn ComplexFft<T>> {
        self.complex.get(len, || Arc::new(ComplexPlan(FftPlanner::new().plan_fft_forward(len))))
    }
}

/// Plans by length.
struct PlanCache<P: ?Sized>(Mutex<BTreeMap<usize, Arc<P>>>);

impl<P: ?Sized> PlanCache<P> {
    const fn new() -> Self {
        PlanCache(Mutex::new(BTreeMap::new()))
    }

    /// The plan for `len`, made by `make` if it is not there.
    ///
    /// Never waits: where another thread is just looking, or was when this process forked, a plan is made and not kept.
    fn get(&self, len: usize, make: impl FnOnce() -> Arc<P>) -> Arc<P> {
        if let Ok(plans) = self.0.try_lock()
            && let Some(plan) = plans.get(&len)
        {
            return plan.clone();
        }
        let plan = make();
        if let Ok(mut plans) = self.0.try_lock() {
            if plans.len() >= MAX_PLANS {
                plans.clear();
            }
            plans.insert(len, plan.clone());
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;
    use crate::kernels::isa::Real;

    #[test]
    fn real_transforms_follow_the_definition_and_lead_back() {
        for len in [1, 2, 3, 8, 15, 48] {
            let fft = f64::real_fft(len);
            let values: Vec<f64> = (0..len).map(|i| ((i * 7919) % 101) as f64 / 50.0 - 1.0).collect();
            let mut spectrum = vec![0.0; 2 * (len / 2 + 1)];
            let mut scratch = vec![0.0; fft.scratch_len()];
            fft.forward(&mut values.clone(), &mut spectrum, &mut scratch);
            for (k, pair) in spectrum.chunks_exact(2).enumerate() {
                let angle = |i: usize| -TAU * ((i * k) % len) as f64 / len as f64;
                let real: f64 = values.iter().enumerate().map(|(i, x)| x * angle(i).cos()).sum();
                let imaginary: f64 = values.iter().enumerate().map(|(i, x)| x * angle(i).sin()).sum();
                assert!((pair[0] - real).abs() < 1e-12 && (pair[1] - imaginary).abs() < 1e-12, "{len} {k}");
            }
            let mut back = vec![0.0; len];
            fft.inverse(&mut spectrum, &mut back, &mut scratch);
            assert!(back.iter().zip(&values).all(|(b, x)| (b / len as f64 - x).abs() < 1e-12), "{len}");
        }
    }

    #[test]
    fn complex_transforms_agree_with_real_ones() {
        let (real, complex) = (f32::real_fft(12), f32::complex_fft(12));
        let values: Vec<f32> = (0..12).map(|i| (i * i % 7) as f32).collect();
        let mut pairs: Vec<f32> = values.iter().flat_map(|&x| [x, 0.0]).collect();
        complex.forward(&mut pairs, &mut vec![0.0; complex.scratch_len()]);
        let mut spectrum = vec![0.0; 14];
        real.forward(&mut values.clone(), &mut spectrum, &mut vec![0.0; real.scratch_len()]);
        assert!(spectrum.iter().zip(&pairs).all(|(a, b)| (a - b).abs() < 1e-5), "{spectrum:?} {pairs:?}");
    }

    #[test]
    fn a_length_is_planned_once_also_where_many_are_used() {
        let plans = FftPlans::<f32>::new();
        let first = plans.real(32);
        assert!(Arc::ptr_eq(&first, &plans.real(32)));
        assert!(Arc::ptr_eq(&plans.complex(9), &plans.complex(9)));
        (1..=3 * MAX_PLANS).for_each(|len| assert_eq!(plans.real(len).size(), len));
        assert!(plans.real.0.lock().unwrap().len() <= MAX_PLANS, "memory has a bound");
    }

    #[test]
    fn a_lock_that_is_held_for_ever_stops_nobody() {
        let plans = FftPlans::<f32>::new();
        let held = plans.real.0.lock().unwrap();
        assert_eq!(plans.real(10).size(), 10);
        drop(held);
    }
}
