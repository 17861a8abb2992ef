//! Forward passes that can be differentiated.

use std::borrow::Cow;
use std::sync::Arc;

use numpy::PyArrayDyn;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::convert::{finite, floats, to_numpy};
use super::core_array::{CoreArray, GradientTerm, ReadTerm, sum_of_terms};
use super::encoder::Encoder;
use super::enter::{SCRATCH, callback_error, enter_core, guard, read_shared, to_py_err};
use super::gradient_memory::GradientHome;
use super::gradients::Gradients;
use super::inputs::RawInputs;
use super::memory::Memory;
use super::outputs;
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::network::{self, Cotangents, Recording, RequestedGradients, SparseMixer, TapeUse};
use crate::runtime::parallel::with_threads;
use crate::runtime::{Interrupt, Shared, catch, run};

/// What one forward pass kept, and the weights it used, until it has been differentiated.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct Tape {
    /// `None` once it is used, unless it is persistent.
    record: Shared<Option<Arc<Record>>>,
    persistent: bool,
    home: Arc<GradientHome>,
    isa: Isa,
    threads: usize,
}

/// Memory with gradients in it, and where that of each weight begins.
type HandedOver = (Memory, Vec<usize>);
/// Gradients of the word rows, `[B, S, W]`.
type Rows<'py> = Bound<'py, PyArrayDyn<f32>>;

/// A forward pass.
struct Record {
    network: Arc<SparseMixer<f32>>,
    tape: network::Tape<f32>,
}

impl Tape {
    /// The record, which stays.
    fn look(&self, py: Python<'_>) -> PyResult<Arc<Record>> {
        read_shared(py, &self.record)?.ok_or_else(used)
    }

    /// The record, which stays only if it is persistent and this is not its last use.
    fn take(&self, last: bool, interrupt: Interrupt<'_>) -> Result<Arc<Record>> {
        let stays = self.persistent && !last;
        let take = |record: &mut Option<Arc<Record>>| if stays { record.clone() } else { record.take() };
        self.record.with(interrupt, take)?.ok_or_else(|| callback_error(used()))
    }
}

/// The sum of finite terms.
fn total<'a>(name: &str, terms: Option<&'a [ReadTerm]>, shape: [usize; 3]) -> Result<Option<Cow<'a, [f32]>>> {
    let Some(terms) = terms else { return Ok(None) };
    finite(name, sum_of_terms(name, terms, shape)?).map(Some).map_err(callback_error)
}

fn released() -> PyErr {
    PyRuntimeError::new_err(
        "encoder_outputs: what the forward pass kept was released when vjp was called; read them before, or have them \
         computed for keeps: encoder.vjp(..., outputs=[\"encoder_outputs\", ...])",
    )
}

fn used() -> PyErr {
    PyRuntimeError::new_err(
        "vjp: it has been used, and what the forward pass kept is released; pass persistent=True to encoder.vjp to \
         differentiate one call more than once",
    )
}

/// As [`Encoder`]'s forward, and a tape to differentiate it with.
#[pyfunction]
#[pyo3(signature = (
    encoder, word_ids=None, mask=None, type_ids=None, *, word_embeddings=None, dense_inputs=None, dense_mask=None,
    dense_type_ids=None, training=true, seed=0, outputs=None, check_finite=false, recompute=false, persistent=false,
    wrt=None, in_core=false
))]
pub fn record<'py>(
    py: Python<'py>,
    encoder: &Bound<'py, Encoder>,
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
    recompute: bool,
    persistent: bool,
    wrt: Option<(Vec<bool>, bool)>,
    in_core: bool,
) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyDict>, Tape)> {
    guard(|| {
        let network = encoder.get().network(py)?;
        let (isa, _) = encoder.get().resources()?;
        let given =
            RawInputs { word_ids, mask, type_ids, word_embeddings, dense_inputs, dense_mask, dense_type_ids };
        let inputs = given.read(network.config())?;
        let mut requested = outputs::requested(outputs.as_deref(), check_finite)?;
        // The record has it already, unless only the first rows are wanted.
        let shares = in_core
            && requested.sequence_output
            && !requested.encoder_outputs
            && network.output_rows(inputs.seq) == inputs.seq;
        requested.sequence_output &= !shares;
        let specs = encoder.get().specs().len();
        if let Some(count) = wrt.as_ref().map(|(weights, _)| weights.len()).filter(|&count| count != specs) {
            let message = format!("got {count} flags for {specs} weights");
            return Err(to_py_err(Error::value("wrt", message)));
        }
        let requested_gradients = wrt.map(|(weights, rows)| RequestedGradients { weights, rows });
        let recording = Recording { recompute, requested: requested_gradients };
        let (batch, seq) = (inputs.batch, inputs.seq);
        let threads = encoder.get().threads_for(batch, seq)?;
        let (results, tape) = enter_core(py, |interrupt| {
            run(isa, threads, &SCRATCH, interrupt, |context| {
                network.forward_with_tape(context, inputs, training.then_some(seed), requested, recording)
            })
        })?;
        let aux = outputs::aux_to_python(py, &results.metrics, network.config())?;
        let outputs = if in_core {
            let outputs = outputs::in_core(py, results, batch, network.config())?;
            let shared = tape.output().filter(|_| shares);
            if let Some(values) = shared {
                let shape = [batch, seq, network.config().hidden_size];
                outputs.set_item("sequence_output", CoreArray::shared(values, &shape))?;
            }
            outputs
        } else {
            outputs::to_python(py, results, requested, batch, network.config())?
        };
        let record = Shared::new("vjp", Some(Arc::new(Record { network, tape })));
        let home = encoder.get().gradient_home().clone();
        Ok((outputs, aux, Tape { record, persistent, home, isa, threads }))
    })
}

#[pymethods]
impl Tape {
    /// A copy of what block `layer` gave, `[B, S, H]`; of the last block the rows of `sequence_output`.
    fn block_output<'py>(&self, py: Python<'py>, layer: usize) -> PyResult<Rows<'py>> {
        guard(|| {
            let record = read_shared(py, &self.record)?.ok_or_else(released)?;
            let config = record.network.config();
            let [batch, seq, _] = record.tape.row_shape(config);
            let is_last = layer + 1 == config.num_layers;
            let rows = if is_last { record.network.output_rows(seq) } else { seq };
            let values = enter_core(py, |_| catch(|| Ok(record.tape.block_output(layer, rows))))?;
            let values = values.ok_or_else(|| {
                to_py_err(Error::value("encoder_outputs", format!("output {layer} is not kept")))
            })?;
            to_numpy(py, values, &[batch, rows, config.hidden_size])
        })
    }

    /// Adds the requested gradients of the weights to `into`. Without `into` returns them: memory, and where in it the
    /// gradient of each weight begins. Returns those of the word rows, `[B, S, W]`, too, if they are requested. Gradients
    /// of outputs are sums of terms, each with the position that it belongs to or None for all. After its `last` use a
    /// persistent tape is empty, too.
    #[pyo3(signature = (
        into=None, *, sequence_output=None, pooled_output=None, encoder_outputs=None, aux_loss_weight=1.0, last=false
    ))]
    fn backward<'py>(
        &self,
        py: Python<'py>,
        into: Option<&Bound<'py, Gradients>>,
        sequence_output: Option<Vec<GradientTerm<'py>>>,
        pooled_output: Option<Vec<GradientTerm<'py>>>,
        encoder_outputs: Option<Vec<Option<Bound<'py, PyAny>>>>,
        aux_loss_weight: f64,
        last: bool,
    ) -> PyResult<(Option<Rows<'py>>, Option<HandedOver>)> {
        guard(|| {
            let record = self.look(py)?;
            if let Some(into) = into {
                into.get().expect(record.network.weights().specs())?;
            }
            let read = |name: &str, array: Option<&Bound<'py, PyAny>>, axes: usize| {
                array.map(|array| finite(name, floats(name, array, axes)?.data)).transpose()
            };
            let aux_loss_weight = finite("aux_loss_weight", [aux_loss_weight])?[0];
            let read_terms = |name: &str, terms: Option<Vec<GradientTerm<'py>>>, axes: usize| {
                let terms = terms.map(|terms| {
                    let terms = terms.into_iter().map(|GradientTerm(position, array)| {
                        let axes = if position.is_some() { 2 } else { axes };
                        Ok((position, array.read(name)?.expect_axes(name, axes)?))
                    });
                    terms.collect::<PyResult<Vec<_>>>()
                });
                terms.transpose()
            };
            let sequence = read_terms("sequence_output", sequence_output, 3)?;
            let pooled = read_terms("pooled_output", pooled_output, 2)?;
            let blocks = encoder_outputs
                .unwrap_or_default()
                .iter()
                .enumerate()
                .map(|(layer, array)| read(&format!("encoder_outputs[{layer}]"), array.as_ref(), 3))
                .collect::<PyResult<Vec<_>>>()?;
            let into = into.map(Bound::get);
            let (rows, shape, own) = enter_core(py, move |interrupt| {
                let blocks: Vec<Option<&[f32]>> = blocks.iter().map(Option::as_deref).collect();
                let (config, [batch, seq, _]) =
                    (record.network.config(), record.tape.row_shape(record.network.config()));
                let rows = record.network.output_rows(seq);
                let shape = |rows| [batch, rows, config.hidden_size];
                let sequence = total("sequence_output", sequence.as_deref(), shape(rows))?;
                let pooled = total("pooled_output", pooled.as_deref(), shape(1))?;
                let cotangents = Cotangents {
                    sequence_output: sequence.as_deref(),
                    pooled_output: pooled.as_deref(),
                    encoder_outputs: &blocks,
                };
                // Wrong arguments, and a wait that is interrupted, do not use up the record.
                record.network.check_cotangents(&record.tape, &cotangents)?;
                let mut locked = into.map(|into| into.shared().lock(interrupt)).transpose()?;
                if let Some(locked) = &mut locked {
                    with_threads(self.threads, || locked.for_adding().map(drop))?;
                }
                let mut own = locked.is_none().then(|| with_threads(self.threads, || self.home.lazy_zeros()));
                drop(record);
                let record = self.take(last, interrupt)?;
                let shape = record.tape.row_shape(record.network.config());
                let mut backward = |network: &SparseMixer<f32>, tape: TapeUse<'_, f32>| {
                    let into = match (&mut locked, &mut own) {
                        (Some(locked), _) => locked.for_adding()?,
                        (None, Some(own)) => own,
                        (None, None) => unreachable!("one of the two is there"),
                    };
                    run(self.isa, self.threads, &SCRATCH, interrupt, |context| {
                        network.backward(context, tape, &cotangents, aux_loss_weight, into)
                    })
                };
                let rows = match Arc::try_unwrap(record) {
                    Ok(Record { network, tape }) => backward(&network, tape.into()),
                    Err(record) => backward(&record.network, (&record.tape).into()),
                };
                let rows = rows?;
                if let Some(own) = &mut own {
                    with_threads(self.threads, || own.settle());
                }
                Ok((rows, shape, own))
            })?;
            let own = own.map(|own| {
                let starts = (0..own.iter().len()).map(|index| own.range(index).start).collect();
                (Memory::new(own.into_memory(), self.home.clone()), starts)
            });
            Ok((rows.map(|rows| to_numpy(py, rows, &shape)).transpose()?, own))
        })
    }
}
