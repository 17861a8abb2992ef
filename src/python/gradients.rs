//! Gradients of the weights of one encoder or head, in memory that is used again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use numpy::PyArrayDyn;
use pyo3::prelude::*;

use super::convert::{floats, to_numpy};
use super::enter::{enter_core, to_py_err};
use super::part::Owner;
use crate::error::Error;
use crate::optim::{Gradient, global_norm};
use crate::params::{self, Spec};

/// One gradient per weight, row-major.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct Gradients {
    specs: Vec<Spec>,
    values: Mutex<params::Gradients<f32>>,
}

impl Gradients {
    /// The gradients. Computations hold the lock while they run: this must not be called while attached to the
    /// interpreter.
    pub(super) fn lock(&self) -> MutexGuard<'_, params::Gradients<f32>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that these are gradients of weights `specs`.
    pub(super) fn expect(&self, specs: &[Spec]) -> PyResult<()> {
        if self.specs == specs {
            return Ok(());
        }
        Err(to_py_err(Error::value("gradients", "they belong to weights of other names or shapes")))
    }

    fn spec(&self, index: usize) -> PyResult<&Spec> {
        self.specs.get(index).ok_or_else(|| {
            let message = format!("got {index}, expected less than {}", self.specs.len());
            to_py_err(Error::value("index", message))
        })
    }
}

#[pymethods]
impl Gradients {
    #[new]
    fn new(owner: Owner<'_>) -> Self {
        let specs = owner.part().specs().to_vec();
        let values = Mutex::new(params::Gradients::zeros(&specs));
        Gradients { specs, values }
    }

    fn get<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let spec = self.spec(index)?;
        let values = enter_core(py, |_| Ok(self.lock().tensors[index].clone()))?;
        to_numpy(py, values, &spec.shape)
    }

    fn set(&self, py: Python<'_>, index: usize, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let spec = self.spec(index)?;
        let value = floats(&spec.name, value, spec.shape.len())?;
        value.expect_shape(&spec.name, &spec.shape)?;
        enter_core(py, |_| {
            self.lock().tensors[index] = value.data;
            Ok(())
        })
    }

    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        enter_core(py, |_| {
            self.lock().clear();
            Ok(())
        })
    }

    fn global_norm(&self, py: Python<'_>) -> PyResult<f64> {
        enter_core(py, |_| Ok(global_norm(self.lock().tensors.iter().map(|tensor| Gradient::Dense(tensor)))))
    }
}
