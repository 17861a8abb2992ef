//! Vectors of whole texts: a forward pass, pooled in the core.

use numpy::PyArrayDyn;
use pyo3::prelude::*;

use super::convert::{floats, to_numpy};
use super::encoder::Encoder;
use super::enter::{SCRATCH, enter_core, guard, to_py_err};
use super::inputs::RawInputs;
use crate::error::{Error, Result};
use crate::layers::{Pooling, normalize};
use crate::network::RequestedOutputs;
use crate::runtime::run;

/// The mode that asks for the encoder's own pooler.
const POOLER: &str = "pooled";

/// Vectors `[B, len(modes) * H]` of a batch, one part per mode; rows count where `pooled_mask` is not 0. With
/// `unit_length` they are divided by their lengths, then cut to `dim` numbers, then with `unit_length_after` divided again.
#[pyfunction]
#[pyo3(signature = (encoder, word_ids, mask, type_ids, pooled_mask, modes, *, unit_length=false, dim=None, unit_length_after=false))]
pub fn embed<'py>(
    py: Python<'py>,
    encoder: &Bound<'py, Encoder>,
    word_ids: &Bound<'py, PyAny>,
    mask: &Bound<'py, PyAny>,
    type_ids: &Bound<'py, PyAny>,
    pooled_mask: &Bound<'py, PyAny>,
    modes: Vec<String>,
    unit_length: bool,
    dim: Option<usize>,
    unit_length_after: bool,
) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    guard(|| {
        let encoder = encoder.get();
        let network = encoder.network(py)?;
        let given = RawInputs {
            word_ids: Some(word_ids),
            mask: Some(mask),
            type_ids: Some(type_ids),
            word_embeddings: None,
            dense_inputs: None,
            dense_mask: None,
            dense_type_ids: None,
        };
        let inputs = given.read(network.config())?;
        let pooled_mask = floats("pooled_mask", pooled_mask, 2)?;
        pooled_mask.expect_shape("pooled_mask", &[inputs.batch, inputs.seq])?;
        // `None` stands for the encoder's pooler.
        let parse = |mode: &String| if mode == POOLER { Ok(None) } else { Pooling::parse(mode).map(Some) };
        let modes = modes.iter().map(parse).collect::<Result<Vec<_>>>().map_err(to_py_err)?;
        let requested = RequestedOutputs {
            sequence_output: modes.iter().any(Option::is_some),
            pooled_output: modes.contains(&None),
            ..RequestedOutputs::default()
        };
        let hidden = network.config().hidden_size;
        let (batch, width) = (inputs.batch, modes.len() * hidden);
        let dim = dim.unwrap_or(width);
        if !(1..=width).contains(&dim) {
            return Err(to_py_err(Error::value("truncate_dim", format!("got {dim}, expected 1 to {width}"))));
        }
        let threads = encoder.threads_for(inputs.batch, inputs.seq)?;
        let (isa, _) = encoder.resources()?;
        let vectors = enter_core(py, |interrupt| {
            run(isa, threads, &SCRATCH, interrupt, |context| {
                let outputs = network.forward(context, &inputs.view(), None, requested)?;
                if requested.sequence_output && outputs.rows < inputs.seq {
                    return Err(Error::value("output_range", "set, but pooling needs all tokens"));
                }
                let is_real: Vec<bool> = pooled_mask.data.iter().map(|&m| m != 0.0).collect();
                let mut vectors = vec![0.0f32; batch * dim];
                context.each(vectors.chunks_exact_mut(dim).enumerate(), |(example, out), scratch| {
                    let ([vector], _) = scratch.split([width]);
                    let is_real = &is_real[example * inputs.seq..][..inputs.seq];
                    for (mode, part) in modes.iter().zip(vector.chunks_exact_mut(hidden)) {
                        let sequence = outputs.sequence_output.as_deref();
                        match (mode, sequence, outputs.pooled_output.as_deref()) {
                            (Some(mode), Some(rows), _) => {
                                let len = inputs.seq * hidden;
                                mode.pool(&rows[example * len..][..len], is_real, part);
                            }
                            (None, _, Some(pooled)) => {
                                part.copy_from_slice(&pooled[example * hidden..][..hidden])
                            }
                            _ => unreachable!("what is pooled was requested"),
                        }
                    }
                    if unit_length {
                        normalize(vector);
                    }
                    out.copy_from_slice(&vector[..dim]);
                    if unit_length_after {
                        normalize(out);
                    }
                })?;
                Ok(vectors)
            })
        })?;
        to_numpy(py, vectors, &[batch, dim])
    })
}
