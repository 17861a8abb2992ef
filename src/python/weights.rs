//! Where the weights of an encoder come from: a file, Python, or an initialiser.

use std::borrow::Cow;

use pyo3::prelude::*;

use super::activation::Custom;
use super::checkpoint::LoadPlan;
use super::convert::floats;
use super::enter::{SCRATCH, callback_error, enter_core, to_py_err};
use crate::config::SparseMixerConfig;
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::network::{SparseMixer, specs};
use crate::params::{Spec, initial_values};
use crate::runtime::{Context, Interrupt, default_threads, run};

/// Encoders of fewer parameters are filled without starting threads.
const PARALLEL_PARAMETERS: usize = 1 << 20;

/// An encoder whose weights `provider(name, shape)` returns, one after the other.
pub fn provided(
    py: Python<'_>,
    config: SparseMixerConfig,
    custom: Custom,
    provider: &Py<PyAny>,
) -> PyResult<SparseMixer<f32>> {
    enter_core(py, |interrupt| {
        SparseMixer::load(config, custom, &mut |_, spec| {
            check(interrupt)?;
            Python::attach(|py| {
                let shape = pyo3::types::PyTuple::new(py, &spec.shape)?;
                let values = provider.call1(py, (&spec.name, shape))?;
                let values = floats(&spec.name, values.bind(py), spec.shape.len())?;
                values.expect_shape(&spec.name, &spec.shape)?;
                Ok(values.data.into())
            })
            .map_err(callback_error)
        })
    })
}

/// An encoder whose weights come straight from a file.
pub fn planned(
    py: Python<'_>,
    config: SparseMixerConfig,
    custom: Custom,
    isa: Isa,
    threads: usize,
    plan: &LoadPlan,
) -> PyResult<SparseMixer<f32>> {
    plan.require_source()?;
    let threads = loading_threads(&specs(&config), threads)?;
    enter_core(py, |interrupt| {
        run(isa, threads, &SCRATCH, interrupt, |context| {
            let mut reader = PlanReader::new(plan, context);
            SparseMixer::load(config, custom, &mut |index, spec| {
                let values = reader.read(index, spec)?;
                values.ok_or_else(|| Error::value(spec.name.as_str(), "the file does not have this weight"))
            })
        })
    })
}

/// Reads the weights of a plan in turn, dropping each when the next one is requested.
pub struct PlanReader<'a> {
    plan: &'a LoadPlan,
    context: &'a Context<'a, f32>,
    previous: Option<usize>,
}

impl<'a> PlanReader<'a> {
    pub fn new(plan: &'a LoadPlan, context: &'a Context<'a, f32>) -> Self {
        PlanReader { plan, context, previous: None }
    }

    pub fn read(&mut self, index: usize, spec: &Spec) -> Result<Option<Cow<'a, [f32]>>> {
        self.context.check()?;
        if let Some(previous) = self.previous.replace(index) {
            self.plan.release_weight(previous);
        }
        self.plan.read_weight(index, spec, &|| self.context.poll())
    }
}

/// The encoder `before` with the weights that `values` gives for their index and spec; `None` keeps a weight.
pub fn with_weights<'a>(
    before: Option<&SparseMixer<f32>>,
    config: &SparseMixerConfig,
    custom: &Custom,
    mut values: impl FnMut(usize, &Spec) -> Result<Option<Cow<'a, [f32]>>>,
) -> Result<SparseMixer<f32>> {
    let Some(before) = before else {
        return SparseMixer::load(config.clone(), custom.clone(), &mut |index, spec| {
            let missing = || Error::Internal(format!("{} is neither given nor there", spec.name));
            values(index, spec)?.ok_or_else(missing)
        });
    };
    let mut after = before.clone();
    for (index, spec) in before.weights().specs().iter().enumerate() {
        if let Some(values) = values(index, spec)? {
            after.weights_mut().set(index, values)?;
        }
    }
    after.refresh();
    Ok(after)
}

/// Threads for filling the weights `specs` of an encoder that is to run with `threads`, 0 for the default.
pub fn loading_threads(specs: &[Spec], threads: usize) -> PyResult<usize> {
    match threads {
        _ if specs.iter().map(Spec::len).sum::<usize>() < PARALLEL_PARAMETERS => Ok(1),
        0 => default_threads().map_err(to_py_err),
        threads => Ok(threads),
    }
}

/// An encoder with weights sampled by the configured initialiser.
pub fn initialised(
    py: Python<'_>,
    config: SparseMixerConfig,
    custom: Custom,
    isa: Isa,
    threads: usize,
) -> PyResult<SparseMixer<f32>> {
    let threads = loading_threads(&specs(&config), threads)?;
    enter_core(py, |interrupt| {
        run(isa, threads, &SCRATCH, interrupt, |context| {
            SparseMixer::load(config.clone(), custom, &mut |_, spec| {
                initial_values(&config, spec, &|| context.poll()).map(Into::into)
            })
        })
    })
}

/// Stops what takes long between two parts of it.
pub fn check(interrupt: Interrupt<'_>) -> Result<()> {
    if interrupt() { Err(Error::Interrupted) } else { Ok(()) }
}
