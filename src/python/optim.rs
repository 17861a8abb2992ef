//! The native class of optimisers, and learning-rate schedules.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use numpy::{PyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::convert::{floats, to_numpy};
use super::enter::{enter_core, guard, to_py_err};
use super::gradients::Gradients;
use super::head::parse;
use super::part::{Owner, Place, TakenWeights};
use crate::error::{Error, Result};
use crate::optim::{self, Gradient, NamedArray, ParameterSpec, Rule, Schedule, Update};
use crate::params;
use crate::runtime::{Exclusive, Progress, Taken, default_threads, run_to_end, take_whole};

/// A rule and the moments of the weights of some parts.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct Optimizer(Arc<Exclusive<optim::Optimizer<f32>>>);

impl Optimizer {
    /// Does `work`, which needs no interpreter, between updates.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut optim::Optimizer<f32>) -> Result<T> + Send,
    ) -> PyResult<T> {
        enter_core(py, |interrupt| work(&mut **take_whole(interrupt, || self.0.try_take())?))
    }
}

/// One part in an update: its weights, their gradients, and which of them take part.
type UpdatedPart = (Place, Arc<Exclusive<params::Gradients<f32>>>, Vec<bool>);

/// All that an update changes or reads, taken from where others find it.
struct Taking {
    weights: Vec<(TakenWeights, Taken<params::Gradients<f32>>, Vec<bool>)>,
    optimizer: Taken<optim::Optimizer<f32>>,
}

impl Taking {
    fn try_take(
        optimizer: &Arc<Exclusive<optim::Optimizer<f32>>>,
        parts: &[UpdatedPart],
    ) -> Result<Option<Self>> {
        let Some(optimizer) = optimizer.try_take()? else { return Ok(None) };
        let mut weights = Vec::with_capacity(parts.len());
        for (place, gradients, takes_part) in parts {
            let Some(gradients) = gradients.try_take()? else { return Ok(None) };
            let Some(place) = place.try_take()? else { return Ok(None) };
            weights.push((place, gradients, takes_part.clone()));
        }
        Ok(Some(Taking { weights, optimizer }))
    }

    fn apply(&mut self, how: optim::Step, progress: &Progress) -> Result<Option<f64>> {
        let mut updates = Vec::with_capacity(self.optimizer.specs().len());
        for (weights, gradients, takes_part) in &mut self.weights {
            let params = weights.params_mut().into_iter();
            let gradients = gradients.tensors.iter().zip(&gradients.reached);
            for ((param, (gradient, &reached)), &takes_part) in params.zip(gradients).zip(&*takes_part) {
                let gradient = if takes_part && reached { Gradient::Dense(gradient) } else { Gradient::None };
                updates.push(Update::of(param, gradient)?);
            }
        }
        let norm = self.optimizer.apply_if(&mut updates, how, || progress.begin())?;
        drop(updates);
        self.weights.iter_mut().try_for_each(|(weights, ..)| weights.refresh())?;
        Ok(norm)
    }
}

#[pymethods]
impl Optimizer {
    /// `parts` are encoders and heads, each with one flag per weight for decay and one for adaptation.
    #[new]
    fn new(py: Python<'_>, rule: &str, parts: Vec<(Owner<'_>, Vec<bool>, Vec<bool>)>) -> PyResult<Self> {
        guard(|| {
            let rule: Rule = parse("rule", rule)?;
            let mut specs = Vec::new();
            for (owner, decay, adapt) in &parts {
                let part = owner.part();
                let weights = part.snapshot(py)?;
                let flags = decay.iter().zip(adapt);
                for ((spec, param), (&decay, &adapt)) in part.specs().iter().zip(weights.params()).zip(flags)
                {
                    specs.push(ParameterSpec::of(spec, &param, decay, adapt));
                }
            }
            let optimizer = optim::Optimizer::new(rule, specs).map_err(to_py_err)?;
            Ok(Optimizer(Exclusive::new("moments", optimizer)))
        })
    }

    /// One update. `parts` as in the constructor, each with its gradients and one flag per weight for whether it takes
    /// part. Returns the gradients' norm if it was needed.
    ///
    /// An interrupt before the first change stops it; after that the caller gets away, and the update goes on to its end
    /// without it: whoever uses the weights or moments next waits for that. `hurried` is for callers that put off
    /// interrupts: once it returns true, an update that has begun is left alone, and None is returned.
    #[pyo3(signature = (parts, learning_rate, clip_norm, gradient_scale, hurried=None))]
    fn apply(
        &self,
        py: Python<'_>,
        parts: Vec<(Owner<'_>, Bound<'_, Gradients>, Vec<bool>)>,
        learning_rate: f64,
        clip_norm: Option<f64>,
        gradient_scale: f64,
        hurried: Option<Py<PyAny>>,
    ) -> PyResult<Option<f64>> {
        guard(|| {
            let how = optim::Step { learning_rate, clip_norm, gradient_scale };
            let mut threads = None;
            let mut taken: Vec<UpdatedPart> = Vec::with_capacity(parts.len());
            for (owner, gradients, takes_part) in parts {
                let place = owner.part().place();
                gradients.get().expect(owner.part().specs())?;
                if taken.iter().any(|(other, ..)| other.is(&place)) {
                    return Err(to_py_err(Error::value("parts", "the same encoder or head is there twice")));
                }
                if taken.iter().any(|(_, other, _)| Arc::ptr_eq(other, gradients.get().place())) {
                    return Err(to_py_err(Error::value("gradients", "the same are there for two parts")));
                }
                if let Owner::Encoder(encoder) = &owner {
                    threads = Some(encoder.get().resources()?.1);
                }
                taken.push((place, gradients.get().place().clone(), takes_part));
            }
            let threads = threads.map_or_else(|| default_threads().map_err(to_py_err), Ok)?;
            let progress = Arc::<Progress>::default();
            let left_alone = AtomicBool::new(false);
            let norm = enter_core(py, |interrupt| {
                let mut taking = take_whole(interrupt, || Taking::try_take(&self.0, &taken))?;
                let hurry = || {
                    let hurried = hurried.as_ref()?;
                    Python::attach(|py| hurried.call0(py).and_then(|hurry| hurry.is_truthy(py)).ok())
                };
                let interrupt = || {
                    if interrupt() {
                        return true;
                    }
                    let hurry = hurry() == Some(true);
                    left_alone.store(hurry, Ordering::Relaxed);
                    hurry
                };
                run_to_end(threads, &interrupt, &progress, move |progress| taking.apply(how, progress))
            });
            if left_alone.load(Ordering::Relaxed) && progress.has_begun() { Ok(None) } else { norm }
        })
    }

    #[getter]
    fn step(&self, py: Python<'_>) -> PyResult<u64> {
        guard(|| self.with(py, |optimizer| Ok(optimizer.step())))
    }

    /// Bytes of the moments.
    #[getter]
    fn state_bytes(&self, py: Python<'_>) -> PyResult<usize> {
        guard(|| self.with(py, |optimizer| Ok(optimizer.state_bytes())))
    }

    /// Copies of the moments by name.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Vec<(String, Bound<'py, PyArrayDyn<f32>>)>> {
        guard(|| {
            let arrays = self.with(py, |optimizer| Ok(optimizer.state()))?;
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
            self.with(py, |optimizer| optimizer.restore(step, &arrays))
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
