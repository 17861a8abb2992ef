//! Activations given as Python functions.

use std::sync::Arc;

use numpy::PyArrayDyn;
use pyo3::prelude::*;

use super::convert::{read_floats, to_numpy};
use super::enter::callback_error;
use crate::error::{Error, Result};
use crate::layers::CustomActivation;
use crate::sys::{alloc_collect, alloc_zeroed};

/// A Python function as the activation of the feed-forward layers, if that is what it is.
pub type Custom = Option<Arc<dyn CustomActivation<f32>>>;

/// A function from float32 arrays `[rows, width]` to the same, and its derivative.
#[derive(Debug)]
pub struct PyActivation {
    function: Py<PyAny>,
    derivative: Option<Py<PyAny>>,
}

impl PyActivation {
    /// `function` and `derivative` return C-contiguous float32 arrays of their argument's shape.
    pub fn new(function: Py<PyAny>, derivative: Option<Py<PyAny>>) -> Self {
        PyActivation { function, derivative }
    }
}

/// Calls `function` on a copy of `x`, rows of `width`, and writes the result to `out`.
fn call(function: &Py<PyAny>, x: Vec<f32>, width: usize, out: &mut [f32]) -> Result<()> {
    Python::attach(|py| {
        let shape = [x.len() / width.max(1), width];
        let argument: Bound<'_, PyArrayDyn<f32>> = to_numpy(py, x, &shape)?;
        let result = function.call1(py, (argument,))?;
        read_floats("inner_activation", result.bind(py), &shape, out)
    })
    .map_err(callback_error)
}

impl CustomActivation<f32> for PyActivation {
    fn forward(&self, x: &mut [f32], width: usize) -> Result<()> {
        call(&self.function, alloc_collect(x.iter().copied()), width, x)
    }

    fn copies(&self) -> usize {
        // The function's argument and its result.
        2
    }

    fn backward(&self, x: &[f32], dy: &mut [f32], width: usize) -> Result<()> {
        let Some(derivative) = &self.derivative else {
            return Err(Error::value(
                "inner_activation",
                "a callable without derivative cannot be trained; use sparse_mixer.Activation(function, derivative)",
            ));
        };
        let mut slope = alloc_zeroed(x.len());
        call(derivative, alloc_collect(x.iter().copied()), width, &mut slope)?;
        for (d, s) in dy.iter_mut().zip(slope) {
            *d *= s;
        }
        Ok(())
    }
}
