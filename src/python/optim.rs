//! The native class of optimisers, and learning-rate schedules.

use std::sync::{Mutex, MutexGuard, PoisonError};

use numpy::{PyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::SCRATCH;
use super::convert::{floats, to_numpy};
use super::enter::{enter_core, to_py_err};
use super::gradients::Gradients;
use super::head::parse;
use super::part::{Locked, Owner, Part};
use crate::error::Error;
use crate::kernels::Isa;
use crate::optim::{self, Gradient, NamedArray, ParameterSpec, Rule, Schedule, Update};
use crate::runtime::{default_threads, never, run};

/// A rule and the moments of the weights of some parts.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct Optimizer(Mutex<optim::Optimizer<f32>>);

impl Optimizer {
    /// Held while an update is made: not to be called while attached to the interpreter.
    fn lock(&self) -> MutexGuard<'_, optim::Optimizer<f32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Optimizer {
    /// `parts` are encoders and heads, each with one flag per weight for decay and one for adaptation.
    #[new]
    fn new(rule: &str, parts: Vec<(Owner<'_>, Vec<bool>, Vec<bool>)>) -> PyResult<Self> {
        let rule: Rule = parse("rule", rule)?;
        let mut specs = Vec::new();
        for (owner, decay, adapt) in &parts {
            let part = owner.part();
            part.with_params(|params| {
                let flags = decay.iter().zip(adapt);
                for ((spec, param), (&decay, &adapt)) in part.specs().iter().zip(params).zip(flags) {
                    specs.push(ParameterSpec::of(spec, param, decay, adapt));
                }
            });
        }
        optim::Optimizer::new(rule, specs).map(|inner| Optimizer(Mutex::new(inner))).map_err(to_py_err)
    }

    /// One update. `parts` as in the constructor, each with its gradients and one flag per weight for whether it takes
    /// part. Returns the gradients' norm if it was needed.
    ///
    /// Cannot be interrupted, so that it is made wholly or not at all.
    fn apply(
        &self,
        py: Python<'_>,
        parts: Vec<(Owner<'_>, Bound<'_, Gradients>, Vec<bool>)>,
        learning_rate: f64,
        clip_norm: Option<f64>,
        gradient_scale: f64,
    ) -> PyResult<Option<f64>> {
        let how = optim::Step { learning_rate, clip_norm, gradient_scale };
        let mut resources = None;
        for (owner, gradients, _) in &parts {
            gradients.get().expect(owner.part().specs())?;
            if let Owner::Encoder(encoder) = owner {
                resources = Some(encoder.get().resources()?);
            }
        }
        let (isa, threads) = match resources {
            Some(resources) => resources,
            None => (Isa::detect().map_err(to_py_err)?, default_threads().map_err(to_py_err)?),
        };
        let parts: Vec<(Part<'_>, &Gradients, &[bool])> = parts
            .iter()
            .map(|(owner, gradients, takes_part)| (owner.part(), gradients.get(), &takes_part[..]))
            .collect();
        enter_core(py, |_| {
            run(isa, threads, &SCRATCH, &never, |_| {
                let mut optimizer = self.lock();
                let gradients: Vec<_> = parts.iter().map(|(_, gradients, _)| gradients.lock()).collect();
                let mut weights: Vec<Locked<'_>> = parts.iter().map(|(part, ..)| part.lock()).collect();
                let mut updates = Vec::with_capacity(optimizer.specs().len());
                for (((_, _, takes_part), gradients), weights) in
                    parts.iter().zip(&gradients).zip(&mut weights)
                {
                    let params = weights.params_mut().into_iter();
                    for ((param, gradient), &takes_part) in params.zip(&gradients.tensors).zip(*takes_part) {
                        let gradient = if takes_part { Gradient::Dense(gradient) } else { Gradient::None };
                        updates.push(Update::of(param, gradient)?);
                    }
                }
                optimizer.apply(&mut updates, how)
            })
        })
    }

    #[getter]
    fn step(&self, py: Python<'_>) -> PyResult<u64> {
        enter_core(py, |_| Ok(self.lock().step()))
    }

    /// Bytes of the moments.
    #[getter]
    fn state_bytes(&self, py: Python<'_>) -> PyResult<usize> {
        enter_core(py, |_| Ok(self.lock().state_bytes()))
    }

    /// Copies of the moments by name.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Vec<(String, Bound<'py, PyArrayDyn<f32>>)>> {
        let arrays = enter_core(py, |_| Ok(self.lock().state()))?;
        arrays.into_iter().map(|array| Ok((array.name, to_numpy(py, array.values, &array.shape)?))).collect()
    }

    /// Takes over moments from `state`.
    fn restore(&self, py: Python<'_>, step: u64, arrays: Vec<(String, Bound<'_, PyAny>)>) -> PyResult<()> {
        let arrays = arrays
            .into_iter()
            .map(|(name, array)| {
                let axes = array.cast::<PyArrayDyn<f32>>().map_or(0, |array| array.ndim());
                let values = floats(&name, &array, axes)?;
                Ok(NamedArray { name, shape: values.shape, values: values.data })
            })
            .collect::<PyResult<Vec<_>>>()?;
        enter_core(py, |_| self.lock().restore(step, &arrays))
    }
}

/// The learning rate of the schedule `config` (JSON) at `step`.
#[pyfunction]
pub fn learning_rate(config: &str, step: i64) -> PyResult<f64> {
    let schedule: Schedule = parse("schedule", config)?;
    schedule.validate().map_err(to_py_err)?;
    let step = u64::try_from(step)
        .map_err(|_| to_py_err(Error::value("step", format!("got {step}, expected at least 0"))))?;
    Ok(schedule.at(step))
}
