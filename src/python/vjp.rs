//! Forward passes that can be differentiated.

use std::sync::Arc;

use numpy::PyArrayDyn;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::convert::{finite, floats, to_numpy};
use super::encoder::Encoder;
use super::enter::{SCRATCH, enter_core, guard};
use super::gradients::Gradients;
use super::inputs::RawInputs;
use super::outputs;
use crate::kernels::Isa;
use crate::network::{self, Cotangents, SparseMixer};
use crate::runtime::run;

/// What one forward pass kept, and the weights it used.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct Tape {
    network: Arc<SparseMixer<f32>>,
    tape: network::Tape<f32>,
    batch: usize,
    seq: usize,
    isa: Isa,
    threads: usize,
}

/// As [`Encoder`]'s forward, and a tape to differentiate it with.
#[pyfunction]
#[pyo3(signature = (
    encoder, word_ids=None, mask=None, type_ids=None, *, word_embeddings=None, dense_inputs=None, dense_mask=None,
    dense_type_ids=None, training=true, seed=0, outputs=None, check_finite=false, recompute=false
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
) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyDict>, Tape)> {
    guard(|| {
        let network = encoder.get().network(py)?;
        let (isa, _) = encoder.get().resources()?;
        let given =
            RawInputs { word_ids, mask, type_ids, word_embeddings, dense_inputs, dense_mask, dense_type_ids };
        let inputs = given.read(network.config())?;
        let requested = outputs::requested(outputs.as_deref(), check_finite)?;
        let (batch, seq) = (inputs.batch, inputs.seq);
        let threads = encoder.get().threads_for(batch, seq)?;
        let (results, tape) = enter_core(py, |interrupt| {
            run(isa, threads, &SCRATCH, interrupt, |context| {
                network.forward_with_tape(context, inputs, training.then_some(seed), requested, recompute)
            })
        })?;
        let aux = outputs::aux_to_python(py, &results.metrics, network.config())?;
        let outputs = outputs::to_python(py, results, requested, batch, network.config())?;
        Ok((outputs, aux, Tape { network, tape, batch, seq, isa, threads }))
    })
}

#[pymethods]
impl Tape {
    /// Adds the gradients of the weights to `into` and returns those of the word rows, `[B, S, W]`.
    #[pyo3(signature = (into, *, sequence_output=None, pooled_output=None, encoder_outputs=None, aux_loss_weight=1.0))]
    fn backward<'py>(
        &self,
        py: Python<'py>,
        into: &Bound<'py, Gradients>,
        sequence_output: Option<&Bound<'py, PyAny>>,
        pooled_output: Option<&Bound<'py, PyAny>>,
        encoder_outputs: Option<Vec<Option<Bound<'py, PyAny>>>>,
        aux_loss_weight: f64,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        guard(|| {
            let config = self.network.config();
            into.get().expect(self.network.weights().specs())?;
            let read = |name: &str, array: Option<&Bound<'py, PyAny>>, axes: usize| {
                array.map(|array| finite(name, floats(name, array, axes)?.data)).transpose()
            };
            let aux_loss_weight = finite("aux_loss_weight", [aux_loss_weight])?[0];
            let sequence = read("sequence_output", sequence_output, 3)?;
            let pooled = read("pooled_output", pooled_output, 2)?;
            let blocks = encoder_outputs
                .unwrap_or_default()
                .iter()
                .enumerate()
                .map(|(layer, array)| read(&format!("encoder_outputs[{layer}]"), array.as_ref(), 3))
                .collect::<PyResult<Vec<_>>>()?;
            let into = into.get();
            let rows = enter_core(py, |interrupt| {
                let blocks: Vec<Option<&[f32]>> = blocks.iter().map(Option::as_deref).collect();
                let cotangents = Cotangents {
                    sequence_output: sequence.as_deref(),
                    pooled_output: pooled.as_deref(),
                    encoder_outputs: &blocks,
                };
                let mut into = into.shared().lock(interrupt)?;
                run(self.isa, self.threads, &SCRATCH, interrupt, |context| {
                    self.network.backward(context, &self.tape, &cotangents, aux_loss_weight, &mut into)
                })
            })?;
            to_numpy(py, rows, &[self.batch, self.seq, config.embedding_width])
        })
    }
}
