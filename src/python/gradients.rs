//! Gradients of the weights of one encoder or head, in memory that is used again.

use std::sync::Arc;

use numpy::PyArrayDyn;
use pyo3::prelude::*;

use super::convert::{floats, to_numpy};
use super::enter::{enter_core, guard, to_py_err};
use super::exchange::GradientLease;
use super::gradient_memory::{GradientHome, GradientMemory, expect_not_leased};
use super::weights::spec_at;
use crate::error::{Error, Result};
use crate::optim::{Gradient, global_norm};
use crate::params::{self, Spec};
use crate::runtime::parallel::with_threads;
use crate::runtime::{Shared, catch, default_threads, lock_all};

/// One gradient per weight.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct Gradients {
    memory: Arc<Shared<GradientMemory>>,
    home: Arc<GradientHome>,
}

impl Gradients {
    /// Zeros, one gradient for each of the weights of `home`.
    pub(super) fn new(py: Python<'_>, home: &Arc<GradientHome>, pass_on: bool) -> PyResult<Self> {
        let threads = default_threads().map_err(to_py_err)?;
        let memory = enter_core(py, |_| {
            catch(|| Ok(with_threads(threads, || GradientMemory::new(home.clone(), pass_on))))
        })?;
        Ok(Gradients { memory: Arc::new(Shared::new("gradients", memory)), home: home.clone() })
    }

    /// The gradients. Computations that add to them hold the lock as long as they run.
    pub(super) fn shared(&self) -> &Arc<Shared<GradientMemory>> {
        &self.memory
    }

    /// Does `work` with the memory of the gradients, which takes long but needs no interpreter.
    fn with_memory<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut GradientMemory) -> Result<T> + Send,
    ) -> PyResult<T> {
        enter_core(py, |interrupt| {
            let mut memory = self.memory.lock(interrupt)?;
            // Without memory for a copy there is none; the gradients are as before.
            catch(|| work(&mut memory))
        })
    }

    /// Does `work` with the gradients, which it only reads.
    fn read<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&params::Gradients<f32>) -> T + Send,
    ) -> PyResult<T> {
        self.with_memory(py, |memory| {
            let gradients = memory.read()?;
            expect_not_leased(gradients)?;
            Ok(work(gradients))
        })
    }

    /// Does `work` with the gradients, which it may change.
    fn change<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut params::Gradients<f32>) -> T + Send,
    ) -> PyResult<T> {
        self.with_memory(py, |memory| {
            let gradients = memory.write()?;
            expect_not_leased(gradients)?;
            Ok(work(gradients))
        })
    }

    /// Checks that these are gradients of weights `specs`.
    pub(super) fn expect(&self, specs: &[Spec]) -> PyResult<()> {
        if self.home.specs() == specs {
            return Ok(());
        }
        Err(to_py_err(Error::value("gradients", "they belong to weights of other names or shapes")))
    }

    fn spec(&self, index: usize) -> PyResult<&Spec> {
        spec_at(self.home.specs(), index)
    }
}

#[pymethods]
impl Gradients {
    fn get<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        guard(|| {
            let spec = self.spec(index)?;
            let values = self.read(py, |gradients| gradients.view(index).row_major().to_vec())?;
            to_numpy(py, values, &spec.shape)
        })
    }

    fn set(&self, py: Python<'_>, index: usize, value: &Bound<'_, PyAny>) -> PyResult<()> {
        guard(|| {
            let spec = self.spec(index)?;
            let value = floats(&spec.name, value, spec.shape.len())?;
            value.expect_shape(&spec.name, &spec.shape)?;
            self.change(py, |gradients| gradients.view_mut(index).row_major().copy_from_slice(&value.data))
        })
    }

    /// Which gradients something has been added to, one flag per weight.
    fn reached(&self, py: Python<'_>) -> PyResult<Vec<bool>> {
        guard(|| self.read(py, |gradients| gradients.reached().to_vec()))
    }

    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        guard(|| {
            let threads = default_threads().map_err(to_py_err)?;
            self.with_memory(py, |memory| with_threads(threads, || memory.clear()))
        })
    }

    fn global_norm(&self, py: Python<'_>) -> PyResult<f64> {
        guard(|| {
            self.read(py, |gradients| {
                global_norm(gradients.iter().map(|view| Gradient::Dense(view.row_major())))
            })
        })
    }

    /// Counts the weights with flags as reached.
    fn reach(&self, py: Python<'_>, weights: Vec<bool>) -> PyResult<()> {
        guard(|| self.change(py, |gradients| gradients.reach(&weights)))
    }

    /// Adds other gradients of the same weights.
    fn add(&self, py: Python<'_>, other: &Bound<'_, Gradients>) -> PyResult<()> {
        guard(|| {
            let other = other.get();
            other.expect(self.home.specs())?;
            if std::ptr::eq(self, other) {
                return Err(to_py_err(Error::value("other", "they are these gradients themselves")));
            }
            let threads = default_threads().map_err(to_py_err)?;
            enter_core(py, |interrupt| {
                let mut locks = lock_all(interrupt, || {
                    let Some(own) = self.memory.try_lock()? else { return Ok(None) };
                    Ok(other.memory.try_lock()?.map(|other| (own, other)))
                })?;
                let (own, other) = &mut *locks;
                let (own, other) = (own.write()?, other.read()?);
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
            let lease = self.change(py, |gradients| gradients.lease())?;
            // `change` has refused those that are lent already.
            lease
                .map(GradientLease::new)
                .ok_or_else(|| to_py_err(Error::value("gradients", "they are on lease")))
        })
    }

    /// Whether somebody has them on lease, or an array of what was lent.
    fn is_leased(&self, py: Python<'_>) -> PyResult<bool> {
        guard(|| {
            self.with_memory(py, |memory| Ok(memory.present().is_some_and(|gradients| gradients.is_leased())))
        })
    }

    /// Declares all of them finished, for whoever has them on lease.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        guard(|| {
            self.with_memory(py, |memory| {
                if let Some(gradients) = memory.present() {
                    gradients.finish_from(0);
                }
                Ok(())
            })
        })
    }
}
