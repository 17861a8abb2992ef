//! The Python class of heads, and the loss of classifiers.

use std::sync::Arc;

use numpy::PyArrayDyn;
use pyo3::prelude::*;

use super::convert::{floats, integers, parse, to_numpy};
use super::core_array::{CoreArray, FloatArray};
use super::encoder::Encoder;
use super::enter::{SCRATCH, enter_core, guard, read_shared, to_py_err};
use super::gradient_memory::GradientHome;
use super::gradients::Gradients;
use super::weights::{GivenArrays, spec_at};
use crate::config::InitializerConfig;
use crate::error::{Error, Result};
use crate::heads::{self, HeadConfig, HeadKind, LossSums, MaskedLmGradients, Predictions};
use crate::kernels::Dtype;
use crate::params::{Spec, sample};
use crate::random::Purpose;
use crate::runtime::parallel::with_threads;
use crate::runtime::{Shared, lock_all, run};
use crate::sys::alloc_zeroed;

type Floats<'py> = Bound<'py, PyArrayDyn<f32>>;
/// Loss, weight and correct predictions; see [`LossSums`].
type Sums = (f64, f64, f64);

/// Configuration and weights of one head. Computes with the threads and instruction set of the encoder it is given.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct Head {
    config: HeadConfig,
    gradients: Arc<GradientHome>,
    /// As [`Encoder`]'s.
    weights: Shared<Arc<heads::Head<f32>>>,
}

impl Head {
    /// The weights of this moment; waits for an update of an optimiser that is being made.
    pub(super) fn weights(&self, py: Python<'_>) -> PyResult<Arc<heads::Head<f32>>> {
        read_shared(py, &self.weights)
    }

    /// The weights, to be changed in place.
    pub(super) fn shared_weights(&self) -> &Shared<Arc<heads::Head<f32>>> {
        &self.weights
    }

    /// Names and shapes of the weights.
    pub(super) fn specs(&self) -> &[Spec] {
        self.gradients.specs()
    }

    /// What all gradients of the weights share.
    pub(super) fn gradient_home(&self) -> &Arc<GradientHome> {
        &self.gradients
    }

    fn expect_flags(&self, requested: &[bool]) -> PyResult<()> {
        let (got, expected) = (requested.len(), self.specs().len());
        if got == expected {
            return Ok(());
        }
        Err(to_py_err(Error::value("requested", format!("got {got} flags for {expected} weights"))))
    }

    fn spec(&self, index: usize) -> PyResult<&Spec> {
        spec_at(self.specs(), index)
    }
}

#[pymethods]
impl Head {
    #[new]
    fn new(py: Python<'_>, config: &str, initializer: &str, seed: u64) -> PyResult<Self> {
        guard(|| {
            let config: HeadConfig = parse("config", config)?;
            config.validate().map_err(to_py_err)?;
            let initializer: InitializerConfig = parse("initializer", initializer)?;
            let weights = enter_core(py, |interrupt| {
                heads::Head::load(&config, &mut |_, spec| {
                    sample(&initializer, seed, Purpose::HeadWeight, spec, &interrupt).map(Into::into)
                })
            })?;
            let gradients = Arc::new(GradientHome::new(weights.weights.specs().to_vec()));
            Ok(Head { gradients, config, weights: Shared::new("weights", Arc::new(weights)) })
        })
    }

    fn weight_specs(&self) -> Vec<(String, Vec<usize>)> {
        self.specs().iter().map(|spec| (spec.name.clone(), spec.shape.clone())).collect()
    }

    #[pyo3(signature = (indices=None))]
    fn get_weights<'py>(&self, py: Python<'py>, indices: Option<Vec<usize>>) -> PyResult<Vec<Floats<'py>>> {
        guard(|| {
            let weights = self.weights(py)?;
            indices
                .unwrap_or_else(|| (0..self.specs().len()).collect())
                .into_iter()
                .map(|index| {
                    let spec = self.spec(index)?;
                    to_numpy(py, weights.weights.get(index).to_vec(), &spec.shape)
                })
                .collect()
        })
    }

    /// As [`Encoder`]'s.
    #[pyo3(signature = (pass_on=false))]
    fn gradients(&self, py: Python<'_>, pass_on: bool) -> PyResult<Gradients> {
        guard(|| Gradients::new(py, &self.gradients, pass_on))
    }

    fn get_weight<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Floats<'py>> {
        guard(|| {
            let spec = self.spec(index)?;
            to_numpy(py, self.weights(py)?.weights.get(index).to_vec(), &spec.shape)
        })
    }

    fn assign(&self, py: Python<'_>, indices: Vec<usize>, weights: Vec<Py<PyAny>>) -> PyResult<()> {
        guard(|| {
            let given = GivenArrays::new(py, self.specs(), 0, indices.into_iter().zip(weights))?;
            let new = given.store(py, Dtype::Float32, |_, _| false)?;
            enter_core(py, |interrupt| {
                if new.len() == self.specs().len() {
                    // All of them: whatever was there before, also if an error left that broken.
                    let values = new.into_iter().map(|(_, value)| value).collect();
                    let head = heads::Head::of(&self.config, values)?;
                    return self.weights.replace(interrupt, Arc::new(head));
                }
                let mut current = self.weights.lock(interrupt)?;
                // Where another call uses them, this copies the list of weights, not their values.
                let current = Arc::make_mut(&mut current);
                new.into_iter().for_each(|(index, value)| current.weights.set(index, value));
                Ok(())
            })
        })
    }

    /// Logits `[rows, num_classes]` of features `[..., width]`; of those at one position, if given, of `[B, S, width]`.
    #[pyo3(signature = (encoder, features, seed=None, position=None))]
    fn project<'py>(
        &self,
        py: Python<'py>,
        encoder: &Bound<'py, Encoder>,
        features: FloatArray<'py>,
        seed: Option<u64>,
        position: Option<usize>,
    ) -> PyResult<Floats<'py>> {
        guard(|| {
            let (isa, threads) = encoder.get().resources()?;
            let features = at_position(features.read("features")?, position)?;
            let weights = self.weights(py)?;
            let logits = enter_core(py, |interrupt| {
                let head = projection(&weights)?;
                run(isa, threads, &SCRATCH, interrupt, |context| {
                    head.forward(context, &weights.weights, features.values(), seed)
                })
            })?;
            let rows = rows_of(&features);
            let classes = logits.len().checked_div(rows).unwrap_or(0);
            to_numpy(py, logits, &[rows, classes])
        })
    }

    /// Gradient of the features, or of those at the position; adds those of the weights whose flags in `requested` are set
    /// to `into`.
    #[pyo3(signature = (encoder, features, d_logits, seed, into, requested, position=None))]
    fn project_backward<'py>(
        &self,
        py: Python<'py>,
        encoder: &Bound<'py, Encoder>,
        features: FloatArray<'py>,
        d_logits: &Bound<'py, PyAny>,
        seed: Option<u64>,
        into: &Bound<'py, Gradients>,
        requested: Vec<bool>,
        position: Option<usize>,
    ) -> PyResult<CoreArray> {
        guard(|| {
            self.expect_flags(&requested)?;
            let (isa, threads) = encoder.get().resources()?;
            let features = at_position(features.read("features")?, position)?;
            let d_logits = floats("d_logits", d_logits, 2)?;
            into.get().expect(self.specs())?;
            let (into, weights) = (into.get(), self.weights(py)?);
            let d_features = enter_core(py, |interrupt| {
                let head = projection(&weights)?;
                let mut into = into.shared().lock(interrupt)?;
                let into = into.for_adding()?;
                into.request(&requested);
                run(isa, threads, &SCRATCH, interrupt, |context| {
                    let (features, d_logits) = (features.values(), &d_logits.data);
                    head.backward(context, &weights.weights, features, d_logits, seed, into)
                })
            })?;
            Ok(CoreArray::new(d_features, features.shape()))
        })
    }

    /// Logits `[rows.len(), V]` of rows of `sequence_output` `[B, S, H]`, counted over the whole batch.
    fn masked_lm_logits<'py>(
        &self,
        py: Python<'py>,
        encoder: &Bound<'py, Encoder>,
        sequence_output: FloatArray<'py>,
        rows: &Bound<'py, PyAny>,
    ) -> PyResult<Floats<'py>> {
        guard(|| {
            let (isa, threads) = encoder.get().resources()?;
            let sequence = sequence_output.read("sequence_output")?.expect_axes("sequence_output", 3)?;
            let rows = positions(rows, rows_of(&sequence))?;
            let (weights, network) = (self.weights(py)?, encoder.get().network(py)?);
            let (logits, vocab) = enter_core(py, |interrupt| {
                let (head, table) = (masked_lm(&weights)?, network.weights().table(network.word_table()));
                let logits = run(isa, threads, &SCRATCH, interrupt, |context| {
                    head.logits(context, &weights.weights, table, sequence.values(), &rows)
                })?;
                Ok((logits, table.rows()))
            })?;
            to_numpy(py, logits, &[rows.len(), vocab])
        })
    }

    /// Sums over predictions and, with `into` (this head's gradients, the encoder's), the gradient of the sequence output
    /// of `scale` times the loss sum. Of this head's weights, those are requested whose flags in `requested` are set, and
    /// the word table if `requests_table`.
    #[pyo3(signature = (
        encoder, sequence_output, rows, labels, weights, scale=1.0, into=None, requested=None, requests_table=true
    ))]
    fn masked_lm_loss<'py>(
        &self,
        py: Python<'py>,
        encoder: &Bound<'py, Encoder>,
        sequence_output: FloatArray<'py>,
        rows: &Bound<'py, PyAny>,
        labels: &Bound<'py, PyAny>,
        weights: &Bound<'py, PyAny>,
        scale: f64,
        into: Option<(Bound<'py, Gradients>, Bound<'py, Gradients>)>,
        requested: Option<Vec<bool>>,
        requests_table: bool,
    ) -> PyResult<(Sums, Option<CoreArray>)> {
        guard(|| {
            let requested = requested.unwrap_or_else(|| vec![true; self.specs().len()]);
            self.expect_flags(&requested)?;
            let (isa, threads) = encoder.get().resources()?;
            let sequence = sequence_output.read("sequence_output")?.expect_axes("sequence_output", 3)?;
            let rows = positions(rows, rows_of(&sequence))?;
            let labels = integers("masked_lm_ids", labels, 1)?.data;
            let label_weights = floats("masked_lm_weights", weights, 1)?.data;
            if let Some((own, encoders)) = &into {
                own.get().expect(self.specs())?;
                encoders.get().expect(encoder.get().specs())?;
            }
            let into = into.as_ref().map(|(own, encoders)| (own.get(), encoders.get()));
            let (head, network) = (self.weights(py)?, encoder.get().network(py)?);
            let (sums, d_sequence) = enter_core(py, |interrupt| {
                let (weights, word_table) = (&head.weights, network.word_table());
                let (head, table) = (masked_lm(&head)?, network.weights().table(word_table));
                let mut into = match into {
                    Some((own, encoders)) => Some(lock_all(interrupt, || {
                        let Some(own) = own.shared().try_lock()? else { return Ok(None) };
                        Ok(encoders.shared().try_lock()?.map(|encoders| (own, encoders)))
                    })?),
                    None => None,
                };
                let mut into = match into.as_deref_mut() {
                    Some((own, encoders)) => {
                        Some((own.for_adding()?, with_threads(threads, || encoders.for_adding())?))
                    }
                    None => None,
                };
                run(isa, threads, &SCRATCH, interrupt, |context| {
                    let predictions = Predictions { rows: &rows, labels: &labels, weights: &label_weights };
                    let Some((own, encoders)) = &mut into else {
                        let sums =
                            head.loss(context, weights, table, sequence.values(), predictions, None)?;
                        return Ok((sums, None));
                    };
                    own.request(&requested);
                    let mut d_sequence = alloc_zeroed(sequence.values().len());
                    let gradients = MaskedLmGradients {
                        weights: own,
                        table: requests_table.then(|| encoders.view_mut(word_table).row_major()),
                        sequence: &mut d_sequence,
                        scale,
                    };
                    let sequence = sequence.values();
                    let sums = head.loss(context, weights, table, sequence, predictions, Some(gradients))?;
                    Ok((sums, Some(d_sequence)))
                })
            })?;
            let d_sequence = d_sequence.map(|values| CoreArray::new(values, sequence.shape()));
            Ok((as_tuple(sums), d_sequence))
        })
    }
}

/// Sums over the rows of `logits` `[rows, classes]`, and the gradient of `scale` times the loss sum.
#[pyfunction]
#[pyo3(signature = (encoder, logits, labels, weights, scale=1.0))]
pub fn cross_entropy<'py>(
    py: Python<'py>,
    encoder: &Bound<'py, Encoder>,
    logits: &Bound<'py, PyAny>,
    labels: &Bound<'py, PyAny>,
    weights: &Bound<'py, PyAny>,
    scale: f64,
) -> PyResult<(Sums, Floats<'py>)> {
    guard(|| {
        let (isa, _) = encoder.get().resources()?;
        let mut logits = floats("logits", logits, 2)?;
        let labels = integers("labels", labels, 1)?.data;
        let weights = floats("sample_weight", weights, 1)?.data;
        let classes = logits.shape[1];
        let sums = enter_core(py, |_| {
            heads::cross_entropy(isa, &mut logits.data, classes, &labels, &weights, scale)
        })?;
        Ok((as_tuple(sums), to_numpy(py, logits.data, &logits.shape)?))
    })
}

fn projection(head: &heads::Head<f32>) -> Result<&heads::Projection<f32>> {
    match &head.kind {
        HeadKind::Projection(head) => Ok(head),
        HeadKind::MaskedLm(_) => Err(Error::Internal("a masked-language head does not project".into())),
    }
}

fn masked_lm(head: &heads::Head<f32>) -> Result<&heads::MaskedLm<f32>> {
    match &head.kind {
        HeadKind::MaskedLm(head) => Ok(head),
        HeadKind::Projection(_) => Err(Error::Internal("a projection knows no words".into())),
    }
}

/// Rows of features: the product of all axes but the last.
fn rows_of(features: &CoreArray) -> usize {
    features.shape().split_last().map_or(0, |(_, axes)| axes.iter().product())
}

/// The rows at one position of every example; all if there is none.
fn at_position(features: CoreArray, position: Option<usize>) -> PyResult<CoreArray> {
    let Some(position) = position else { return Ok(features) };
    let [batch, seq, width] = *features.shape() else {
        let message = format!("got shape {:?}, expected 3 axes", features.shape());
        return Err(to_py_err(Error::value("features", message)));
    };
    if position >= seq {
        let message = format!("got {position}, but there are {seq} positions");
        return Err(to_py_err(Error::value("position", message)));
    }
    let examples = features.values().chunks_exact(seq * width);
    let values = examples.flat_map(|example| &example[position * width..][..width]).copied().collect();
    Ok(CoreArray::new(values, &[batch, width]))
}

/// Rows of the sequence output, checked.
fn positions(rows: &Bound<'_, PyAny>, count: usize) -> PyResult<Vec<usize>> {
    let rows = integers("masked_lm_positions", rows, 1)?.data;
    rows.into_iter()
        .map(|row| {
            usize::try_from(row).ok().filter(|&row| row < count).ok_or_else(|| {
                let message = format!("got row {row}, expected 0 <= row < {count}");
                to_py_err(Error::value("masked_lm_positions", message))
            })
        })
        .collect()
}

fn as_tuple(sums: LossSums) -> Sums {
    (sums.loss, sums.weight, sums.correct)
}
