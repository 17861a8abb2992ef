//! The Python class of optimisers, and learning-rate schedules.

use std::sync::{Arc, MutexGuard};

use numpy::{PyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::convert::{floats, parse, to_numpy};
use super::enter::{enter_core, guard, read_shared, to_py_err};
use super::gradient_memory::{GradientMemory, expect_not_leased};
use super::gradients::Gradients;
use super::part::{LockedWeights, PartObject, TrainablePart, expect_distinct};
use crate::error::{Error, Result};
use crate::optim::{self, Gradient, NamedArray, ParameterSpec, Rule, Schedule, Update};
use crate::params;
use crate::runtime::parallel::with_threads;
use crate::runtime::{Shared, catch, default_threads, lock_all};
use crate::sys::alloc_room;

/// A rule and the moments of the weights of some parts.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct Optimizer(Shared<Arc<optim::Optimizer<f32>>>);

impl Optimizer {
    /// Rule, moments and step count, to be changed in place.
    pub(super) fn shared(&self) -> &Shared<Arc<optim::Optimizer<f32>>> {
        &self.0
    }

    /// The same of this moment; waits for an update that is being made.
    fn snapshot(&self, py: Python<'_>) -> PyResult<Arc<optim::Optimizer<f32>>> {
        read_shared(py, &self.0)
    }
}

/// One part in an update: its weights, their gradients, and which of them take part.
struct UpdatedPart<'a> {
    part: TrainablePart<'a>,
    gradients: &'a Gradients,
    takes_part: &'a [bool],
}

/// A part's weights and gradients, locked, and which of its weights take part.
struct LockedPart<'a> {
    weights: LockedWeights<'a>,
    memory: MutexGuard<'a, GradientMemory>,
    updated: &'a UpdatedPart<'a>,
}

/// All that an update changes or reads, locked.
struct UpdateLocks<'a> {
    optimizer: MutexGuard<'a, Arc<optim::Optimizer<f32>>>,
    parts: Vec<LockedPart<'a>>,
}

impl<'a> UpdateLocks<'a> {
    fn try_lock(
        optimizer: &'a Shared<Arc<optim::Optimizer<f32>>>,
        parts: &'a [UpdatedPart<'a>],
    ) -> Result<Option<Self>> {
        let Some(optimizer) = optimizer.try_lock()? else { return Ok(None) };
        let mut locked = Vec::with_capacity(parts.len());
        for updated in parts {
            let Some(mut memory) = updated.gradients.shared().try_lock()? else { return Ok(None) };
            expect_not_leased(memory.read()?)?;
            let Some(weights) = updated.part.try_lock()? else { return Ok(None) };
            locked.push(LockedPart { weights, memory, updated });
        }
        Ok(Some(UpdateLocks { optimizer, parts: locked }))
    }

    /// Changes nothing if memory is refused, nor if anything else is wrong with the arguments.
    fn apply(&mut self, how: optim::Step) -> Result<Option<f64>> {
        let count = self.optimizer.specs().len();
        let mut updates = catch(|| Ok(alloc_room(count)))?;
        for LockedPart { weights, memory, updated } in &mut self.parts {
            let gradients: &params::Gradients<f32> = memory.read()?;
            // This may copy weights.
            catch(|| {
                let chosen = updated.takes_part.iter().zip(gradients.reached());
                let chosen: Vec<bool> = chosen.map(|(&takes_part, &reached)| takes_part && reached).collect();
                for (index, weight) in weights.choose_mut(&chosen).into_iter().enumerate() {
                    updates.push(match weight {
                        Some(weight) => {
                            Update::of(weight, Gradient::Dense(gradients.view(index).row_major()))?
                        }
                        None => Update::none(),
                    });
                }
                Ok(())
            })?;
        }
        // This may copy moments.
        let optimizer = catch(|| Ok(Arc::make_mut(&mut self.optimizer)));
        let result = optimizer.and_then(|optimizer| optimizer.apply(&mut updates, how));
        drop(updates);
        for LockedPart { weights, memory, updated } in &mut self.parts {
            // Without memory for it every call does the same for itself.
            let _ = catch(|| {
                weights.refresh();
                Ok(())
            });
            if result.is_ok() {
                memory.set_applied(updated.gradients.shared(), updated.part.gradient_home());
            }
        }
        result
    }
}

#[pymethods]
impl Optimizer {
    /// `parts` are encoders and heads, each with one flag per weight for decay and one for adaptation.
    #[new]
    fn new(py: Python<'_>, rule: &str, parts: Vec<(PartObject<'_>, Vec<bool>, Vec<bool>)>) -> PyResult<Self> {
        guard(|| {
            let rule: Rule = parse("rule", rule)?;
            let mut specs = Vec::new();
            for (object, decay, adapt) in &parts {
                let part = object.part();
                let weights = part.weights(py)?;
                let flags = decay.iter().zip(adapt);
                let weights = part.specs().iter().zip(weights.weights().iter());
                for ((spec, weight), (&decay, &adapt)) in weights.zip(flags) {
                    specs.push(ParameterSpec::of(spec, weight, decay, adapt));
                }
            }
            let optimizer = optim::Optimizer::new(rule, specs).map_err(to_py_err)?;
            Ok(Optimizer(Shared::new("moments", Arc::new(optimizer))))
        })
    }

    /// One update. `parts` as in the constructor, each with its gradients and one flag per weight for whether it takes
    /// part. Returns the gradients' norm if it was needed.
    ///
    /// Wholly or not at all: an interrupt stops the wait for locks, and an update that has begun is made.
    fn apply(
        &self,
        py: Python<'_>,
        parts: Vec<(PartObject<'_>, Bound<'_, Gradients>, Vec<bool>)>,
        learning_rate: f64,
        clip_norm: Option<f64>,
        gradient_scale: f64,
    ) -> PyResult<Option<f64>> {
        guard(|| {
            let how = optim::Step { learning_rate, clip_norm, gradient_scale };
            expect_distinct(parts.iter().map(|(object, ..)| object.part()))?;
            let mut threads = None;
            let mut updated: Vec<UpdatedPart<'_>> = Vec::with_capacity(parts.len());
            for (object, gradients, takes_part) in &parts {
                let (part, gradients) = (object.part(), gradients.get());
                gradients.expect(part.specs())?;
                if updated.iter().any(|other| std::ptr::eq(other.gradients, gradients)) {
                    return Err(to_py_err(Error::value("gradients", "the same are there for two parts")));
                }
                if let TrainablePart::Encoder(encoder) = part {
                    threads = Some(encoder.resources()?.1);
                }
                updated.push(UpdatedPart { part, gradients, takes_part });
            }
            let threads = threads.map_or_else(|| default_threads().map_err(to_py_err), Ok)?;
            enter_core(py, |interrupt| {
                let mut locks = lock_all(interrupt, || UpdateLocks::try_lock(&self.0, &updated))?;
                with_threads(threads, || locks.apply(how))
            })
        })
    }

    #[getter]
    fn step(&self, py: Python<'_>) -> PyResult<u64> {
        guard(|| Ok(self.snapshot(py)?.step()))
    }

    /// Bytes of the moments.
    #[getter]
    fn state_bytes(&self, py: Python<'_>) -> PyResult<usize> {
        guard(|| Ok(self.snapshot(py)?.state_bytes()))
    }

    /// Copies of the moments by name.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Vec<(String, Bound<'py, PyArrayDyn<f32>>)>> {
        guard(|| {
            let snapshot = self.snapshot(py)?;
            let arrays = enter_core(py, |_| Ok(snapshot.state()))?;
            arrays
                .into_iter()
                .map(|array| Ok((array.name, to_numpy(py, array.values, &array.shape)?)))
                .collect()
        })
    }

    /// Takes over moments from `state`.
    fn restore(&self, py: Python<'_>, step: u64, arrays: Vec<(String, Bound<'_, PyAny>)>) -> PyResult<()> {
        guard(|| {
            let arrays = arrays
                .into_iter()
                .map(|(name, array)| {
                    py.check_signals()?;
                    let axes = array.cast::<PyArrayDyn<f32>>().map_or(0, |array| array.ndim());
                    let values = floats(&name, &array, axes)?;
                    Ok(NamedArray { name, shape: values.shape, values: values.data })
                })
                .collect::<PyResult<Vec<_>>>()?;
            enter_core(py, |interrupt| {
                let mut optimizer = self.0.lock(interrupt)?;
                // Whatever fails here for lack of memory has changed nothing.
                catch(|| Arc::make_mut(&mut optimizer).restore(step, &arrays))
            })
        })
    }
}

/// The learning rate of the schedule `config` (JSON) at `step`.
#[pyfunction]
pub fn learning_rate(config: &str, step: f64) -> PyResult<f64> {
    guard(|| {
        let schedule: Schedule = parse("schedule", config)?;
        schedule.validate().map_err(to_py_err)?;
        if step >= 0.0 {
            return Ok(schedule.at(step));
        }
        Err(to_py_err(Error::value("step", format!("got {step}, expected at least 0"))))
    })
}
