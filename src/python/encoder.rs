//! The Python class `Encoder`: configuration and weights of one encoder.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use numpy::PyArrayDyn;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::activation::{Custom, PyActivation};
use super::checkpoint::LoadPlan;
use super::convert::{integers, to_numpy};
use super::enter::{InternalError, SCRATCH, enter_core, guard, read_shared, to_py_err};
use super::gradient_memory::GradientHome;
use super::gradients::Gradients;
use super::inputs::RawInputs;
use super::outputs;
use super::threads::{ThreadCount, thread_count};
use super::weights::{
    GivenArrays, NewWeights, PlanReader, check, copy_rows, initialised, loading_threads, planned, provided,
    spec_at,
};
use crate::config::SparseMixerConfig;
use crate::error::Result;
use crate::kernels::{Dtype, Isa};
use crate::layers::CustomActivation;
use crate::network::{Grouping, SparseMixer, is_small, specs};
use crate::params::Spec;
use crate::runtime::parallel::with_threads;
use crate::runtime::{Shared, default_threads, run};

type Floats<'py> = Bound<'py, PyArrayDyn<f32>>;

/// Configuration and weights of one encoder. No per-call state; the weights are replaced whole.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct Encoder {
    /// Calls compute with the snapshot of the moment in which they begin. Optimisers, and assignments where nobody uses the
    /// weights, change them in place, under the lock.
    network: Shared<Arc<SparseMixer<f32>>>,
    config: SparseMixerConfig,
    gradients: Arc<GradientHome>,
    custom: Custom,
    isa: Isa,
    /// 0 stands for the process's default.
    threads: AtomicUsize,
}

impl Encoder {
    fn of(network: SparseMixer<f32>, custom: Custom, isa: Isa, threads: usize) -> Self {
        Encoder::sharing(Arc::new(network), custom, isa, threads)
    }

    fn sharing(network: Arc<SparseMixer<f32>>, custom: Custom, isa: Isa, threads: usize) -> Self {
        let config = network.config().clone();
        let gradients = Arc::new(GradientHome::new(specs(&config)));
        let network = Shared::new("weights", network);
        Encoder { network, config, gradients, custom, isa, threads: AtomicUsize::new(threads) }
    }

    /// The weights of this moment; waits for an update of an optimiser that is being made.
    pub(super) fn network(&self, py: Python<'_>) -> PyResult<Arc<SparseMixer<f32>>> {
        read_shared(py, &self.network)
    }

    /// The weights, to be changed in place.
    pub(super) fn shared_network(&self) -> &Shared<Arc<SparseMixer<f32>>> {
        &self.network
    }

    /// Names and shapes of the weights.
    pub(super) fn specs(&self) -> &[Spec] {
        self.gradients.specs()
    }

    /// What all gradients of the weights share.
    pub(super) fn gradient_home(&self) -> &Arc<GradientHome> {
        &self.gradients
    }

    /// Instruction set and threads of this moment's calls.
    pub(super) fn resources(&self) -> PyResult<(Isa, usize)> {
        Ok((self.isa, self.effective_threads()?))
    }

    /// Puts `new` weights in the place of those there, all at once; if they are all of them, also in that of weights that an
    /// error left broken.
    fn put(&self, py: Python<'_>, new: NewWeights) -> PyResult<()> {
        let whole = new.len() == self.specs().len();
        loop {
            let before = match self.network(py) {
                Err(error) if whole && error.is_instance_of::<InternalError>(py) => None,
                network => Some(network?),
            };
            let done = enter_core(py, |interrupt| {
                let Some(before) = &before else {
                    let values = new.iter().map(|(_, value)| value.clone()).collect();
                    let network = SparseMixer::of(self.config.clone(), self.custom.clone(), values)?;
                    return self.network.replace(interrupt, Arc::new(network)).map(|()| true);
                };
                let mut after = SparseMixer::clone(before);
                let changed = |index| new.binary_search_by_key(&index, |(index, _)| *index).is_ok();
                let weights = after.weights_mut(&changed);
                new.iter().for_each(|(index, value)| weights.set(*index, value.clone()));
                after.refresh();
                let mut after = Some(Arc::new(after));
                let old = self.network.with(interrupt, |current| {
                    // Another thread may have replaced the weights meanwhile; its work must not be lost.
                    if !Arc::ptr_eq(current, before) {
                        return None;
                    }
                    after.take().map(|after| std::mem::replace(current, after))
                })?;
                Ok(old.is_some())
            })?;
            if done {
                return Ok(());
            }
        }
    }

    fn given_arrays(
        &self,
        py: Python<'_>,
        indices: Vec<usize>,
        weights: Vec<Py<PyAny>>,
    ) -> PyResult<GivenArrays<'_>> {
        let threads = self.threads.load(Ordering::Relaxed);
        GivenArrays::new(py, self.specs(), threads, indices.into_iter().zip(weights))
    }

    /// Threads for a call on so many inputs: as many as the encoder was given; by default the caller's alone for little
    /// work.
    pub(super) fn threads_for(&self, batch: usize, seq: usize) -> PyResult<usize> {
        match self.threads.load(Ordering::Relaxed) {
            0 if is_small(&self.config, batch, seq) => Ok(1),
            _ => self.effective_threads(),
        }
    }

    fn effective_threads(&self) -> PyResult<usize> {
        match self.threads.load(Ordering::Relaxed) {
            0 => default_threads().map_err(to_py_err),
            threads => Ok(threads),
        }
    }

    fn spec(&self, index: usize) -> PyResult<&Spec> {
        spec_at(self.specs(), index)
    }
}

#[pymethods]
impl Encoder {
    #[new]
    #[pyo3(signature = (config, provider=None, *, activation=None, activation_derivative=None, num_threads=None, isa=None))]
    fn new(
        py: Python<'_>,
        config: &str,
        provider: Option<Py<PyAny>>,
        activation: Option<Py<PyAny>>,
        activation_derivative: Option<Py<PyAny>>,
        num_threads: Option<ThreadCount>,
        isa: Option<&str>,
    ) -> PyResult<Self> {
        guard(|| {
            let config = SparseMixerConfig::from_json(config).map_err(to_py_err)?;
            let threads = thread_count(num_threads);
            let isa = isa.map_or_else(Isa::detect, |name| Isa::parse(name, "isa")).map_err(to_py_err)?;
            let custom: Custom = activation.map(|function| {
                Arc::new(PyActivation::new(function, activation_derivative)) as Arc<dyn CustomActivation<f32>>
            });
            let network = match provider {
                Some(provider) => match provider.bind(py).cast::<LoadPlan>() {
                    Ok(plan) => planned(py, config, custom.clone(), isa, threads, plan.get())?,
                    Err(_) => provided(py, config, custom.clone(), &provider)?,
                },
                None => initialised(py, config, custom.clone(), isa, threads)?,
            };
            Ok(Encoder::of(network, custom, isa, threads))
        })
    }

    #[pyo3(signature = (
        word_ids=None, mask=None, type_ids=None, *, word_embeddings=None, dense_inputs=None, dense_mask=None,
        dense_type_ids=None, training=false, seed=0,
        outputs=None, check_finite=false
    ))]
    fn forward<'py>(
        &self,
        py: Python<'py>,
        word_ids: Option<&Bound<'py, PyAny>>,
        mask: Option<&Bound<'py, PyAny>>,
        type_ids: Option<&Bound<'py, PyAny>>,
        word_embeddings: Option<&Bound<'py, PyAny>>,
        dense_inputs: Option<&Bound<'py, PyAny>>,
        dense_mask: Option<&Bound<'py, PyAny>>,
        dense_type_ids: Option<&Bound<'py, PyAny>>,
        training: bool,
        seed: u64,
        outputs: Option<Vec<String>>,
        check_finite: bool,
    ) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyDict>)> {
        guard(|| {
            let network = self.network(py)?;
            let given = RawInputs {
                word_ids,
                mask,
                type_ids,
                word_embeddings,
                dense_inputs,
                dense_mask,
                dense_type_ids,
            };
            let inputs = given.read(network.config())?;
            let requested = outputs::requested(outputs.as_deref(), check_finite)?;
            let threads = self.threads_for(inputs.batch, inputs.seq)?;
            let results = enter_core(py, |interrupt| {
                run(self.isa, threads, &SCRATCH, interrupt, |context| {
                    network.forward(context, &inputs.view(), training.then_some(seed), requested)
                })
            })?;
            let aux = outputs::aux_to_python(py, &results.metrics, network.config())?;
            Ok((outputs::to_python(py, results, requested, inputs.batch, network.config())?, aux))
        })
    }

    fn weight_specs(&self) -> Vec<(String, Vec<usize>)> {
        self.specs().iter().map(|spec| (spec.name.clone(), spec.shape.clone())).collect()
    }

    #[pyo3(signature = (indices=None))]
    fn get_weights<'py>(&self, py: Python<'py>, indices: Option<Vec<usize>>) -> PyResult<Vec<Floats<'py>>> {
        guard(|| {
            let indices = indices.unwrap_or_else(|| (0..self.specs().len()).collect());
            let specs = indices.iter().map(|&index| self.spec(index)).collect::<PyResult<Vec<_>>>()?;
            let network = self.network(py)?;
            let threads = loading_threads(specs.iter().copied(), self.threads.load(Ordering::Relaxed))?;
            let values = enter_core(py, |interrupt| {
                let copy = |&index: &usize| check(interrupt).map(|()| network.weights().get(index).to_vec());
                with_threads(threads, || indices.iter().map(copy).collect::<Result<Vec<_>>>())
            })?;
            values.into_iter().zip(specs).map(|(values, spec)| to_numpy(py, values, &spec.shape)).collect()
        })
    }

    /// Gradients of the weights, all zero. Those that `pass_on` hand their memory on once they have been applied.
    #[pyo3(signature = (pass_on=false))]
    fn gradients(&self, py: Python<'_>, pass_on: bool) -> PyResult<Gradients> {
        guard(|| Gradients::new(py, &self.gradients, pass_on))
    }

    /// Those of the weights at `indices` that are stored as float16 and hold an infinity.
    fn infinite(&self, py: Python<'_>, indices: Vec<usize>) -> PyResult<Vec<usize>> {
        guard(|| {
            indices.iter().try_for_each(|&index| self.spec(index).map(|_| ()))?;
            let network = self.network(py)?;
            enter_core(py, |interrupt| {
                let mut found = Vec::new();
                for &index in &indices {
                    check(interrupt)?;
                    if network.weights().overflows(index) {
                        found.push(index);
                    }
                }
                Ok(found)
            })
        })
    }

    fn get_weight<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Floats<'py>> {
        guard(|| Ok(self.get_weights(py, Some(vec![index]))?.swap_remove(0)))
    }

    /// Rows `ids` of the table at `index`, copied.
    fn get_rows<'py>(&self, py: Python<'py>, index: usize, ids: &Bound<'py, PyAny>) -> PyResult<Floats<'py>> {
        guard(|| {
            self.spec(index)?;
            let ids = integers("ids", ids, 1)?.data;
            let network = self.network(py)?;
            let (values, width) =
                enter_core(py, |interrupt| copy_rows(network.weights().get(index), &ids, interrupt))?;
            to_numpy(py, values, &[ids.len(), width])
        })
    }

    fn assign(&self, py: Python<'_>, indices: Vec<usize>, weights: Vec<Py<PyAny>>) -> PyResult<()> {
        guard(|| {
            let given = self.given_arrays(py, indices, weights)?;
            if given.overwrite(py, &self.network, false)? {
                return Ok(());
            }
            self.put(py, given.store(py, self.config.dtype, |_, _| false)?)
        })
    }

    /// As `assign`, without those that are there already, bit by bit. Only weights that are stored unrounded can be
    /// compared; others are replaced in any case.
    fn assign_changed(&self, py: Python<'_>, indices: Vec<usize>, weights: Vec<Py<PyAny>>) -> PyResult<()> {
        guard(|| {
            let given = self.given_arrays(py, indices, weights)?;
            if given.overwrite(py, &self.network, true)? {
                return Ok(());
            }
            let network = self.network(py)?;
            let known = |index: usize, values: &[f32]| network.weights().get(index).holds(values);
            let new = given.store(py, self.config.dtype, known)?;
            drop(network);
            if new.is_empty() { Ok(()) } else { self.put(py, new) }
        })
    }

    fn load_planned(&self, py: Python<'_>, plan: &Bound<'_, LoadPlan>) -> PyResult<()> {
        guard(|| {
            let plan = plan.get();
            plan.require_source()?;
            let threads = loading_threads(self.specs(), self.threads.load(Ordering::Relaxed))?;
            let new = enter_core(py, |interrupt| {
                run(self.isa, threads, &SCRATCH, interrupt, |context| {
                    let mut reader = PlanReader::new(plan, context);
                    let mut new = NewWeights::new();
                    for (index, spec) in self.specs().iter().enumerate() {
                        if let Some(weight) = reader.weight(index, spec, self.config.dtype)? {
                            new.push((index, weight));
                        }
                    }
                    Ok(new)
                })
            })?;
            self.put(py, new)
        })
    }

    fn astype(&self, py: Python<'_>, dtype: &str) -> PyResult<Self> {
        guard(|| {
            let dtype = Dtype::parse(dtype).map_err(to_py_err)?;
            let network = self.network(py)?;
            let threads = self.threads.load(Ordering::Relaxed);
            if dtype == self.config.dtype {
                // Whoever changes weights in place copies shared ones first: two encoders can share them.
                return Ok(Encoder::sharing(network, self.custom.clone(), self.isa, threads));
            }
            let threads = loading_threads(self.specs(), threads)?;
            let converted = enter_core(py, |interrupt| {
                run(self.isa, threads, &SCRATCH, interrupt, |context| {
                    network.to_dtype(dtype, &|| context.poll())
                })
            })?;
            Ok(Encoder::of(converted, self.custom.clone(), self.isa, threads))
        })
    }

    fn set_num_threads(&self, num_threads: Option<ThreadCount>) -> PyResult<()> {
        self.threads.store(thread_count(num_threads), Ordering::Relaxed);
        Ok(())
    }

    #[getter]
    fn num_threads(&self) -> PyResult<usize> {
        self.effective_threads()
    }

    #[getter]
    fn config(&self) -> String {
        self.config.to_json()
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.config.dtype.name()
    }

    #[getter]
    fn isa(&self) -> &'static str {
        self.isa.name()
    }

    #[pyo3(signature = (batch, outputs=None, seq=None))]
    fn memory_estimate(
        &self,
        py: Python<'_>,
        batch: usize,
        outputs: Option<Vec<String>>,
        seq: Option<usize>,
    ) -> PyResult<usize> {
        guard(|| {
            let requested = outputs::requested(outputs.as_deref(), false)?;
            let seq = seq.unwrap_or(self.config.max_sequence_length);
            self.config.check_length(seq, "sequence_length", &format!("got {seq}")).map_err(to_py_err)?;
            let threads = self.threads_for(batch, seq)?;
            let network = self.network(py)?;
            enter_core(py, |_| network.memory_estimate(batch, seq, requested, threads))
        })
    }

    fn grouping(&self, batch: usize) -> PyResult<(usize, usize, usize)> {
        guard(|| {
            let grouping = Grouping::new(&self.config, batch, self.config.max_sequence_length, false);
            let grouping = grouping.map_err(to_py_err)?;
            Ok((grouping.groups, grouping.tokens, grouping.slots()))
        })
    }

    /// A number that every change of the weights raises.
    #[getter]
    fn weights_version(&self, py: Python<'_>) -> PyResult<u64> {
        guard(|| Ok(self.network(py)?.version()))
    }

    /// Bytes of the weights that stay in a mapped file.
    #[getter]
    fn mapped_bytes(&self, py: Python<'_>) -> PyResult<usize> {
        guard(|| Ok(self.network(py)?.weights().mapped_bytes()))
    }

    #[getter]
    fn weight_bytes(&self, py: Python<'_>) -> PyResult<usize> {
        guard(|| Ok(self.network(py)?.weights().bytes()))
    }
}
