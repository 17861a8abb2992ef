//! Activations given as Python functions.

use std::sync::Arc;

use numpy::PyArrayDyn;
use pyo3::prelude::*;

use super::convert::{floats, to_numpy};
use super::enter::callback_error;
use crate::error::{Error, Result};
use crate::layers::CustomActivation;

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

/// Calls `function` on a copy of `x`, rows of `width`.
fn call(py: Python<'_>, function: &Py<PyAny>, x: &[f32], width: usize) -> PyResult<Vec<f32>> {
    let shape = [x.len() / width.max(1), width];
    let argument: Bound<'_, PyArrayDyn<f32>> = to_numpy(py, x.to_vec(), &shape)?;
    let result = floats("inner_activation", function.call1(py, (argument,))?.bind(py), 2)?;
    result.expect_shape("inner_activation", &shape)?;
    Ok(result.data)
}

impl CustomActivation<f32> for PyActivation {
    fn forward(&self, x: &mut [f32], width: usize) -> Result<()> {
        let y = Python::attach(|py| call(py, &self.function, x, width)).map_err(callback_error)?;
        x.copy_from_slice(&y);
        Ok(())
    }

    fn backward(&self, x: &[f32], dy: &mut [f32], width: usize) -> Result<()> {
        let Some(derivative) = &self.derivative else {
            return Err(Error::value(
                "inner_activation",
                "a callable without derivative cannot be trained; use sparse_mixer.Activation(function, derivative)",
            ));
        };
        let slope = Python::attach(|py| call(py, derivative, x, width)).map_err(callback_error)?;
        for (d, s) in dy.iter_mut().zip(slope) {
            *d *= s;
        }
        Ok(())
    }
}
