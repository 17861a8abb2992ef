//! One block of an encoder, called by itself, and what its attention knows of distances.

use numpy::PyArrayDyn;
use pyo3::prelude::*;

use super::convert::{floats, to_numpy};
use super::encoder::Encoder;
use super::enter::{SCRATCH, enter_core, guard, to_py_err};
use crate::error::Error;
use crate::network;
use crate::runtime::run;

/// What block `layer` makes of `x` `[B, S, H]`; `mask` `[B, S, S]` says which keys each query may see, `seed` switches
/// training on.
#[pyfunction]
#[pyo3(signature = (encoder, layer, x, mask=None, seed=None))]
pub fn run_block<'py>(
    py: Python<'py>,
    encoder: &Bound<'py, Encoder>,
    layer: usize,
    x: &Bound<'py, PyAny>,
    mask: Option<&Bound<'py, PyAny>>,
    seed: Option<u64>,
) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    guard(|| {
        let encoder = encoder.get();
        let network = encoder.network(py)?;
        let hidden = network.config().hidden_size;
        let x = floats("x", x, 3)?;
        let (batch, seq) = (x.shape[0], x.shape[1]);
        x.expect_shape("x", &[batch, seq, hidden])?;
        let mask = mask.map(|mask| floats("attention_mask", mask, 3)).transpose()?;
        if let Some(mask) = &mask {
            mask.expect_shape("attention_mask", &[batch, seq, seq])?;
        }
        let threads = encoder.threads_for(batch, seq)?;
        let (isa, _) = encoder.resources()?;
        let out = enter_core(py, |interrupt| {
            run(isa, threads, &SCRATCH, interrupt, |context| {
                let mask = mask.as_ref().map(|mask| &mask.data[..]);
                network.block_forward(context, layer, &x.data, (batch, seq), mask, seed)
            })
        })?;
        to_numpy(py, out, &[batch, seq, hidden])
    })
}

/// The bucket of each distance between `seq` positions, `[2 S - 1]`, of `buckets` buckets of relative position biases: of
/// keys `S - 1` positions before the query, then of later ones.
#[pyfunction]
pub fn distance_buckets(seq: usize, buckets: usize) -> PyResult<Vec<usize>> {
    guard(|| {
        if seq == 0 || buckets < 4 {
            let message = format!("got {seq} positions and {buckets} buckets, expected at least 1 and 4");
            return Err(to_py_err(Error::value("buckets", message)));
        }
        Ok(network::distance_buckets(seq, buckets))
    })
}
