//! Where the weights of an encoder come from: a file, Python, or an initialiser.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::prelude::*;

use super::activation::Custom;
use super::checkpoint::LoadPlan;
use super::convert::{borrow_floats, contiguous, expect_floats, floats, with_floats};
use super::enter::{SCRATCH, callback_error, enter_core, to_py_err};
use crate::config::SparseMixerConfig;
use crate::error::{Error, Result};
use crate::kernels::{Dtype, Isa};
use crate::network::{SparseMixer, specs};
use crate::params::{Spec, Weight, initial_values};
use crate::runtime::parallel::with_threads;
use crate::runtime::{Context, Interrupt, Shared, catch, default_threads, inject_fault, run};
use crate::sys::alloc_zeroed;

/// Encoders of fewer parameters are filled without starting threads.
const PARALLEL_PARAMETERS: usize = 1 << 20;

/// Rows that are copied between two looks for an interrupt.
const POLLED_ROWS: usize = 1 << 14;

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
            let (mut reader, dtype) = (PlanReader::new(plan, context), config.dtype);
            let mut values = Vec::new();
            for (index, spec) in specs(&config).iter().enumerate() {
                let weight = reader.weight(index, spec, dtype)?;
                let missing = || Error::value(spec.name.as_str(), "the file does not have this weight");
                values.push(weight.ok_or_else(missing)?);
            }
            SparseMixer::of(config, custom, values)
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

    /// The weight at `index` as `dtype` stores it, if the file has it.
    pub fn weight(&mut self, index: usize, spec: &Spec, dtype: Dtype) -> Result<Option<Arc<Weight<f32>>>> {
        self.next(index)?;
        self.plan.weight(index, spec, dtype, &|| self.context.poll())
    }

    fn next(&mut self, index: usize) -> Result<()> {
        self.context.check()?;
        if let Some(previous) = self.previous.replace(index) {
            self.plan.release_weight(previous);
        }
        Ok(())
    }
}

/// New weights of a part, each with its number.
pub type NewWeights = Vec<(usize, Arc<Weight<f32>>)>;

/// Arrays for the weights of a part, of the right types and shapes, by the weights' numbers.
pub struct GivenArrays<'a> {
    specs: &'a [Spec],
    arrays: BTreeMap<usize, Py<PyAny>>,
    /// Threads that write weights of these sizes.
    threads: usize,
}

impl<'a> GivenArrays<'a> {
    /// The arrays `given`, each with the number of its weight; of two for one weight the last one counts. `threads` is what
    /// the part is to run with, 0 for the default.
    ///
    /// # Errors
    /// A number that no weight has; other arrays than float32 of the weight's shape.
    pub fn new(
        py: Python<'_>,
        specs: &'a [Spec],
        threads: usize,
        given: impl Iterator<Item = (usize, Py<PyAny>)>,
    ) -> PyResult<Self> {
        let mut arrays = BTreeMap::new();
        for (index, array) in given {
            let spec = spec_at(specs, index)?;
            expect_floats(&spec.name, array.bind(py), &spec.shape)?;
            arrays.insert(index, array);
        }
        let threads = loading_threads(arrays.keys().map(|&index| &specs[index]), threads)?;
        Ok(GivenArrays { specs, arrays, threads })
    }

    /// The arrays as weights of `dtype`, without those that `known` says are there already. Nobody sees them yet.
    ///
    /// # Errors
    /// Those of memory and of interrupts.
    pub fn store(
        &self,
        py: Python<'_>,
        dtype: Dtype,
        known: impl Fn(usize, &[f32]) -> bool + Sync,
    ) -> PyResult<NewWeights> {
        enter_core(py, |interrupt| {
            with_threads(self.threads, || {
                let store = |(&index, array): (&usize, &Py<PyAny>)| {
                    check(interrupt)?;
                    let spec = &self.specs[index];
                    // Read in place, which is why nobody may run Python meanwhile.
                    Python::attach(|py| {
                        with_floats(&spec.name, array.bind(py), &spec.shape, |values| {
                            if known(index, values) {
                                return Ok(None);
                            }
                            Ok(Some((index, Weight::store(spec, values.into(), dtype)?)))
                        })
                    })
                };
                self.arrays.iter().filter_map(|given| store(given).transpose()).collect()
            })
        })
    }

    /// Writes the arrays, without those that are there already if `only_changed`, over the weights of `network`: without new
    /// memory, and wholly or not at all. Not if another call uses the weights, or if some cannot be written over; returns
    /// whether it did.
    ///
    /// # Errors
    /// Those of interrupts that come before it begins.
    pub fn overwrite(
        &self,
        py: Python<'_>,
        network: &Shared<Arc<SparseMixer<f32>>>,
        only_changed: bool,
    ) -> PyResult<bool> {
        enter_core(py, |interrupt| {
            let mut locked = match network.lock(interrupt) {
                // An error left them unusable, which new memory mends.
                Err(Error::Internal(_)) => return Ok(false),
                locked => locked?,
            };
            let Some(network) = Arc::get_mut(&mut locked) else { return Ok(false) };
            if !self.arrays.keys().all(|&index| network.weights().can_be_overwritten(index)) {
                return Ok(false);
            }
            // Read in place, which is why nobody may run Python meanwhile.
            Python::attach(|py| {
                let borrow = |(&index, array): (&usize, &Py<PyAny>)| {
                    let spec = &self.specs[index];
                    Ok((index, borrow_floats(&spec.name, array.bind(py), &spec.shape)?))
                };
                let borrowed =
                    self.arrays.iter().map(borrow).collect::<PyResult<Vec<_>>>().map_err(callback_error)?;
                with_threads(self.threads, || {
                    // Nothing has been changed yet: a bug in here must not leave the weights unusable.
                    let new = catch(|| {
                        let mut new = Vec::with_capacity(borrowed.len());
                        for (index, values) in &borrowed {
                            inject_fault();
                            let values =
                                contiguous(&self.specs[*index].name, values).map_err(callback_error)?;
                            if !(only_changed && network.weights().get(*index).holds(values)) {
                                new.push((*index, values));
                            }
                        }
                        Ok(new)
                    })?;
                    if new.is_empty() {
                        return Ok(true);
                    }
                    let changed = |index| new.binary_search_by_key(&index, |(index, _)| *index).is_ok();
                    network.weights_mut(&changed).overwrite(&new);
                    // Without memory for it every call does the same for itself.
                    let _ = catch(|| {
                        network.refresh();
                        Ok(())
                    });
                    Ok(true)
                })
            })
        })
    }
}

/// The weight at `index`.
///
/// # Errors
/// `ValueError` for a number that no weight has.
pub fn spec_at(specs: &[Spec], index: usize) -> PyResult<&Spec> {
    specs.get(index).ok_or_else(|| {
        to_py_err(Error::value("index", format!("got {index}, expected less than {}", specs.len())))
    })
}

/// Threads for filling the weights `specs` of an encoder that is to run with `threads`, 0 for the default.
pub fn loading_threads<'a>(specs: impl IntoIterator<Item = &'a Spec>, threads: usize) -> PyResult<usize> {
    match threads {
        _ if specs.into_iter().map(Spec::len).sum::<usize>() < PARALLEL_PARAMETERS => Ok(1),
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

/// The rows `ids` of a table, and their width.
///
/// # Errors
/// [`Error::Value`]: the weight is no table, or has no such row; [`Error::Memory`]; [`Error::Interrupted`].
pub fn copy_rows(weight: &Weight<f32>, ids: &[i64], interrupt: Interrupt<'_>) -> Result<(Vec<f32>, usize)> {
    let Weight::Table(table) = weight else {
        return Err(Error::value("index", "only tables are read by rows"));
    };
    let (rows, width) = (table.rows(), table.width());
    if let Some(id) = ids.iter().find(|&&id| usize::try_from(id).map_or(true, |id| id >= rows)) {
        return Err(Error::value("ids", format!("got {id}, expected 0 <= id < {rows}")));
    }
    let mut values: Vec<f32> = catch(|| Ok(alloc_zeroed(ids.len().saturating_mul(width))))?;
    for (number, (&id, out)) in ids.iter().zip(values.chunks_exact_mut(width)).enumerate() {
        if number % POLLED_ROWS == 0 {
            check(interrupt)?;
        }
        table.copy_row(id as usize, out);
    }
    Ok((values, width))
}

/// Stops what takes long between two parts of it.
pub fn check(interrupt: Interrupt<'_>) -> Result<()> {
    if interrupt() { Err(Error::Interrupted) } else { Ok(()) }
}
