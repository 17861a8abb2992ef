//! Gradients of the weights of one encoder or head, in memory that is used again.

use numpy::PyArrayDyn;
use pyo3::prelude::*;

use super::convert::{floats, to_numpy};
use super::enter::{SCRATCH, enter_core, guard, to_py_err};
use super::exchange::GradientLease;
use super::weights::spec_at;
use crate::error::{Error, Result};
use crate::optim::{Gradient, global_norm};
use crate::params::{self, Spec};
use crate::runtime::parallel::with_threads;
use crate::runtime::{Shared, catch, default_threads, lock_all};

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
            expect_not_leased(&values)?;
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

/// Checks that nobody has the gradients on lease.
///
/// # Errors
/// [`Error::Value`] if somebody has.
pub(super) fn expect_not_leased(gradients: &params::Gradients<f32>) -> Result<()> {
    if gradients.is_leased() {
        return Err(Error::value("gradients", "they are on lease; drop the lease and what it gave first"));
    }
    Ok(())
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

    /// Counts the weights with flags as reached.
    fn reach(&self, py: Python<'_>, weights: Vec<bool>) -> PyResult<()> {
        guard(|| self.with(py, |gradients| gradients.reach(&weights)))
    }

    /// Adds other gradients of the same weights.
    fn add(&self, py: Python<'_>, other: &Bound<'_, Gradients>) -> PyResult<()> {
        guard(|| {
            let other = other.get();
            other.expect(&self.specs)?;
            if std::ptr::eq(self, other) {
                return Err(to_py_err(Error::value("other", "they are these gradients themselves")));
            }
            let threads = default_threads().map_err(to_py_err)?;
            enter_core(py, |interrupt| {
                let mut locks = lock_all(interrupt, || {
                    let Some(own) = self.values.try_lock()? else { return Ok(None) };
                    Ok(other.values.try_lock()?.map(|other| (own, other)))
                })?;
                let (own, other) = &mut *locks;
                expect_not_leased(own)?;
                expect_not_leased(other)?;
                catch(|| {
                    with_threads(threads, || own.add(other));
                    Ok(())
                })
            })
        })
    }

    /// Lends the gradients out as backward finishes them.
    fn lease(&self, py: Python<'_>) -> PyResult<GradientLease> {
        guard(|| {
            let lease = self.with(py, |gradients| gradients.lease())?;
            // `with` has refused those that are lent already.
            lease
                .map(GradientLease::new)
                .ok_or_else(|| to_py_err(Error::value("gradients", "they are on lease")))
        })
    }

    /// Whether somebody has them on lease, or an array of what was lent.
    fn is_leased(&self, py: Python<'_>) -> PyResult<bool> {
        guard(|| enter_core(py, |interrupt| Ok(self.values.lock(interrupt)?.is_leased())))
    }

    /// Declares all of them finished, for whoever has them on lease.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        guard(|| {
            enter_core(py, |interrupt| {
                self.values.lock(interrupt)?.finish_from(0);
                Ok(())
            })
        })
    }
}
