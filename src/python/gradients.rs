//! Gradients of the weights of one encoder or head, in memory that is used again.

use numpy::PyArrayDyn;
use pyo3::prelude::*;

use super::convert::{floats, to_numpy};
use super::enter::{SCRATCH, enter_core, guard, to_py_err};
use super::weights::spec_at;
use crate::error::Error;
use crate::optim::{Gradient, global_norm};
use crate::params::{self, Spec};
use crate::runtime::parallel::with_threads;
use crate::runtime::{Shared, catch, default_threads};

/// One gradient per weight.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct Gradients {
    specs: Vec<Spec>,
    values: Shared<params::Gradients<f32>>,
}

impl Gradients {
    /// Zeros, one gradient for each of the weights `specs`.
    pub(super) fn zeros(py: Python<'_>, specs: &[Spec]) -> PyResult<Self> {
        let specs = specs.to_vec();
        let threads = default_threads().map_err(to_py_err)?;
        let zeros = enter_core(py, |_| {
            catch(|| Ok(with_threads(threads, || params::Gradients::zeros_in(&specs, &SCRATCH))))
        })?;
        Ok(Gradients { specs, values: Shared::new("gradients", zeros) })
    }

    /// The gradients. Computations that add to them hold the lock as long as they run.
    pub(super) fn shared(&self) -> &Shared<params::Gradients<f32>> {
        &self.values
    }

    /// Does `work` with the gradients, to which it takes long but needs no interpreter.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut params::Gradients<f32>) -> T + Send,
    ) -> PyResult<T> {
        enter_core(py, |interrupt| {
            let mut values = self.values.lock(interrupt)?;
            // Without memory for a copy there is none; the gradients are as before.
            catch(|| Ok(work(&mut values)))
        })
    }

    /// Checks that these are gradients of weights `specs`.
    pub(super) fn expect(&self, specs: &[Spec]) -> PyResult<()> {
        if self.specs == specs {
            return Ok(());
        }
        Err(to_py_err(Error::value("gradients", "they belong to weights of other names or shapes")))
    }

    fn spec(&self, index: usize) -> PyResult<&Spec> {
        spec_at(&self.specs, index)
    }
}

#[pymethods]
impl Gradients {
    fn get<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        guard(|| {
            let spec = self.spec(index)?;
            let values = self.with(py, |gradients| gradients.view(index).row_major().to_vec())?;
            to_numpy(py, values, &spec.shape)
        })
    }

    fn set(&self, py: Python<'_>, index: usize, value: &Bound<'_, PyAny>) -> PyResult<()> {
        guard(|| {
            let spec = self.spec(index)?;
            let value = floats(&spec.name, value, spec.shape.len())?;
            value.expect_shape(&spec.name, &spec.shape)?;
            self.with(py, |gradients| gradients.view_mut(index).row_major().copy_from_slice(&value.data))
        })
    }

    /// Which gradients something has been added to, one flag per weight.
    fn reached(&self, py: Python<'_>) -> PyResult<Vec<bool>> {
        guard(|| self.with(py, |gradients| gradients.reached().to_vec()))
    }

    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        guard(|| {
            let threads = default_threads().map_err(to_py_err)?;
            self.with(py, |gradients| with_threads(threads, || gradients.clear()))
        })
    }

    fn global_norm(&self, py: Python<'_>) -> PyResult<f64> {
        guard(|| {
            self.with(py, |gradients| {
                global_norm(gradients.iter().map(|view| Gradient::Dense(view.row_major())))
            })
        })
    }
}
