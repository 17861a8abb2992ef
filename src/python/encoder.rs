//! The native class: configuration and weights of one encoder.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard, TryLockError};

use numpy::PyArrayDyn;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::SCRATCH;
use super::activation::PyActivation;
use super::checkpoint::{LoadPlan, write_encoder};
use super::convert::{expect_floats, floats, to_numpy};
use super::enter::{callback_error, enter_core, to_py_err};
use super::inputs::Given;
use super::outputs;
use crate::config::{Dtype, SparseMixerConfig};
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::layers::CustomActivation;
use crate::network::{SparseMixer, forward_bytes, specs};
use crate::params::{Spec, initial_values};
use crate::runtime::{Interrupt, default_threads, run};

type Floats<'py> = Bound<'py, PyArrayDyn<f32>>;
type Custom = Option<Arc<dyn CustomActivation<f32>>>;

/// Encoders of fewer parameters are initialised without starting threads.
const PARALLEL_PARAMETERS: usize = 1 << 20;
/// More than any machine has, few enough to be refused by no system.
const MAX_THREADS: i64 = 4096;

/// Configuration and weights of one encoder. No per-call state; the weights are replaced whole.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct Encoder {
    /// Locked for the time of copying or replacing the pointer, while attached to the interpreter, so that a process
    /// forked meanwhile finds it free; and by an optimiser for as long as it changes the weights in place.
    network: RwLock<Arc<SparseMixer<f32>>>,
    specs: Vec<Spec>,
    custom: Custom,
    isa: Isa,
    /// 0 stands for the process's default.
    threads: AtomicUsize,
}

impl Encoder {
    fn of(network: SparseMixer<f32>, custom: Custom, isa: Isa, threads: usize) -> Self {
        let specs = specs(network.config());
        Encoder {
            network: RwLock::new(Arc::new(network)),
            specs,
            custom,
            isa,
            threads: AtomicUsize::new(threads),
        }
    }

    /// The weights of this moment.
    pub(super) fn network(&self) -> Arc<SparseMixer<f32>> {
        match self.network.try_read() {
            Ok(network) => network.clone(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().clone(),
            // An optimiser is at work: let other Python threads run while we wait for it.
            Err(TryLockError::WouldBlock) => Python::attach(|py| {
                py.detach(|| self.network.read().unwrap_or_else(PoisonError::into_inner).clone())
            }),
        }
    }

    /// Locks the weights for a change in place. Other calls wait: this must not be called while attached to the
    /// interpreter, and nothing that is done with the lock held may wait for the interpreter.
    pub(super) fn lock_network(&self) -> RwLockWriteGuard<'_, Arc<SparseMixer<f32>>> {
        self.network.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names and shapes of the weights.
    pub(super) fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// Instruction set and threads of this moment's calls.
    pub(super) fn resources(&self) -> PyResult<(Isa, usize)> {
        Ok((self.isa, self.effective_threads()?))
    }

    /// Replaces the weights at once by what `values` gives for index and spec of each; `None` keeps a weight.
    fn replace(
        &self,
        py: Python<'_>,
        values: impl Fn(Interrupt<'_>, usize, &Spec) -> Result<Option<Vec<f32>>> + Sync,
    ) -> PyResult<()> {
        loop {
            let before = self.network();
            let after = enter_core(py, |interrupt| {
                let params = before.params();
                let mut number = 0..;
                SparseMixer::load(before.config().clone(), self.custom.clone(), &mut |spec| {
                    let index = number.next().unwrap_or_default();
                    Ok(values(interrupt, index, spec)?.unwrap_or_else(|| params[index].to_vec()))
                })
            })?;
            let mut current = self.network.write().unwrap_or_else(PoisonError::into_inner);
            // Another thread may have replaced the weights meanwhile; its work must not be lost.
            if Arc::ptr_eq(&current, &before) {
                *current = Arc::new(after);
                return Ok(());
            }
        }
    }

    fn effective_threads(&self) -> PyResult<usize> {
        match self.threads.load(Ordering::Relaxed) {
            0 => default_threads().map_err(to_py_err),
            threads => Ok(threads),
        }
    }

    fn spec(&self, index: usize) -> PyResult<&Spec> {
        self.specs.get(index).ok_or_else(|| {
            let message = format!("got {index}, expected less than {}", self.specs.len());
            to_py_err(Error::value("index", message))
        })
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
        num_threads: Option<i64>,
        isa: Option<&str>,
    ) -> PyResult<Self> {
        let config = SparseMixerConfig::from_json(config).map_err(to_py_err)?;
        let threads = checked_threads(num_threads)?.unwrap_or(0);
        let isa = isa.map_or_else(Isa::detect, |name| Isa::parse(name, "isa")).map_err(to_py_err)?;
        let custom: Custom = activation.map(|function| {
            Arc::new(PyActivation::new(function, activation_derivative)) as Arc<dyn CustomActivation<f32>>
        });
        let network = match provider {
            Some(provider) => match provider.bind(py).cast::<LoadPlan>() {
                Ok(plan) => planned(py, config, custom.clone(), plan.get())?,
                Err(_) => provided(py, config, custom.clone(), &provider)?,
            },
            None => drawn(py, config, custom.clone(), isa, threads)?,
        };
        Ok(Encoder::of(network, custom, isa, threads))
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
        let network = self.network();
        let given =
            Given { word_ids, mask, type_ids, word_embeddings, dense_inputs, dense_mask, dense_type_ids };
        let inputs = given.read(network.config())?;
        let wanted = outputs::wanted(outputs.as_deref(), check_finite)?;
        let threads = self.effective_threads()?;
        let results = enter_core(py, |interrupt| {
            run(self.isa, threads, &SCRATCH, interrupt, |context| {
                network.forward(context, &inputs.view(), training.then_some(seed), wanted)
            })
        })?;
        let aux = outputs::aux_to_python(py, &results.metrics, network.config())?;
        Ok((outputs::to_python(py, results, wanted, inputs.batch, network.config())?, aux))
    }

    fn weight_specs(&self) -> Vec<(String, Vec<usize>)> {
        self.specs.iter().map(|spec| (spec.name.clone(), spec.shape.clone())).collect()
    }

    #[pyo3(signature = (indices=None))]
    fn get_weights<'py>(&self, py: Python<'py>, indices: Option<Vec<usize>>) -> PyResult<Vec<Floats<'py>>> {
        let indices = indices.unwrap_or_else(|| (0..self.specs.len()).collect());
        let specs = indices.iter().map(|&index| self.spec(index)).collect::<PyResult<Vec<_>>>()?;
        let network = self.network();
        let values = enter_core(py, |_| {
            let params = network.params();
            Ok(indices.iter().map(|&index| params[index].to_vec()).collect::<Vec<_>>())
        })?;
        values.into_iter().zip(specs).map(|(values, spec)| to_numpy(py, values, &spec.shape)).collect()
    }

    fn get_weight<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Floats<'py>> {
        let spec = self.spec(index)?;
        let network = self.network();
        let values = enter_core(py, |_| Ok(network.params()[index].to_vec()))?;
        to_numpy(py, values, &spec.shape)
    }

    fn set_weights(&self, py: Python<'_>, weights: Vec<Py<PyAny>>) -> PyResult<()> {
        if weights.len() != self.specs.len() {
            let message = format!("expected {} arrays, got {}", self.specs.len(), weights.len());
            return Err(to_py_err(Error::value("weights", message)));
        }
        self.assign(py, (0..weights.len()).collect(), weights)
    }

    fn assign(&self, py: Python<'_>, indices: Vec<usize>, weights: Vec<Py<PyAny>>) -> PyResult<()> {
        let mut replaced: Vec<Option<&Py<PyAny>>> = vec![None; self.specs.len()];
        for (&index, weight) in indices.iter().zip(&weights) {
            let spec = self.spec(index)?;
            expect_floats(&spec.name, weight.bind(py), &spec.shape)?;
            replaced[index] = Some(weight);
        }
        self.replace(py, |_, index, spec| {
            let Some(weight) = replaced[index] else { return Ok(None) };
            Python::attach(|py| {
                let values = floats(&spec.name, weight.bind(py), spec.shape.len()).map_err(callback_error)?;
                Ok(Some(values.data))
            })
        })
    }

    fn load_planned(&self, py: Python<'_>, plan: &Bound<'_, LoadPlan>) -> PyResult<()> {
        let plan = plan.get();
        plan.require_source()?;
        self.replace(py, |interrupt, index, spec| plan.read_weight(index, spec, interrupt))
    }

    fn save(
        &self,
        py: Python<'_>,
        path: PathBuf,
        file_format: &str,
        metadata: BTreeMap<String, String>,
    ) -> PyResult<()> {
        let network = self.network();
        enter_core(py, |interrupt| {
            write_encoder(&network, &self.specs, &path, file_format, &metadata, interrupt)
        })
    }

    fn astype(&self, py: Python<'_>, dtype: &str) -> PyResult<Self> {
        let dtype = Dtype::parse(dtype).map_err(to_py_err)?;
        let network = self.network();
        let threads = self.threads.load(Ordering::Relaxed);
        if dtype == network.config().dtype {
            // Weights are replaced, never changed: two encoders can share them.
            let specs = self.specs.clone();
            let network = RwLock::new(network);
            let custom = self.custom.clone();
            return Ok(Encoder { network, specs, custom, isa: self.isa, threads: AtomicUsize::new(threads) });
        }
        let converted = enter_core(py, |_| network.to_dtype(dtype))?;
        Ok(Encoder::of(converted, self.custom.clone(), self.isa, threads))
    }

    fn set_num_threads(&self, num_threads: Option<i64>) -> PyResult<()> {
        self.threads.store(checked_threads(num_threads)?.unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }

    #[getter]
    fn num_threads(&self) -> PyResult<usize> {
        self.effective_threads()
    }

    #[getter]
    fn config(&self) -> String {
        self.network().config().to_json()
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.network().config().dtype.name()
    }

    #[getter]
    fn isa(&self) -> &'static str {
        self.isa.name()
    }

    fn memory_estimate(&self, batch: usize) -> usize {
        let network = self.network();
        network.weight_bytes() + forward_bytes(network.config(), batch)
    }

    #[getter]
    fn weight_bytes(&self) -> usize {
        self.network().weight_bytes()
    }
}

/// An encoder whose weights `provider(name, shape)` returns, one after the other.
fn provided(
    py: Python<'_>,
    config: SparseMixerConfig,
    custom: Custom,
    provider: &Py<PyAny>,
) -> PyResult<SparseMixer<f32>> {
    enter_core(py, |_| {
        SparseMixer::load(config, custom, &mut |spec| {
            Python::attach(|py| {
                let shape = pyo3::types::PyTuple::new(py, &spec.shape)?;
                let values = provider.call1(py, (&spec.name, shape))?;
                let values = floats(&spec.name, values.bind(py), spec.shape.len())?;
                values.expect_shape(&spec.name, &spec.shape)?;
                Ok(values.data)
            })
            .map_err(callback_error)
        })
    })
}

/// An encoder whose weights come straight from a file.
fn planned(
    py: Python<'_>,
    config: SparseMixerConfig,
    custom: Custom,
    plan: &LoadPlan,
) -> PyResult<SparseMixer<f32>> {
    plan.require_source()?;
    enter_core(py, |interrupt| {
        let mut number = 0..;
        SparseMixer::load(config, custom, &mut |spec| {
            let index = number.next().unwrap_or_default();
            let values = plan.read_weight(index, spec, interrupt)?;
            values.ok_or_else(|| Error::value(spec.name.as_str(), "the file does not have this weight"))
        })
    })
}

/// An encoder with weights drawn by the configured initialiser.
fn drawn(
    py: Python<'_>,
    config: SparseMixerConfig,
    custom: Custom,
    isa: Isa,
    threads: usize,
) -> PyResult<SparseMixer<f32>> {
    let parameters: usize = specs(&config).iter().map(Spec::len).sum();
    let threads = match threads {
        _ if parameters < PARALLEL_PARAMETERS => 1,
        0 => default_threads().map_err(to_py_err)?,
        threads => threads,
    };
    enter_core(py, |interrupt| {
        run(isa, threads, &SCRATCH, interrupt, |_| {
            let mut number = 0..;
            SparseMixer::load(config.clone(), custom, &mut |spec| {
                Ok(initial_values(&config, number.next().unwrap_or_default(), spec))
            })
        })
    })
}

/// Checks a number of threads from Python.
pub fn checked_threads(num_threads: Option<i64>) -> PyResult<Option<usize>> {
    match num_threads {
        None => Ok(None),
        Some(n) if (1..=MAX_THREADS).contains(&n) => Ok(usize::try_from(n).ok()),
        Some(n) => {
            let message = format!("got {n}, expected 1 to {MAX_THREADS}, or None for the default");
            Err(to_py_err(Error::value("num_threads", message)))
        }
    }
}
