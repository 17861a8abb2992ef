//! Weight files for Python: writing the weights of encoders and heads.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pyo3::prelude::*;

use super::enter::{enter_core, guard};
use super::part::{PartObject, PartWeights};
use crate::checkpoint::{
    ChunkSink, Dtype, TensorToWrite, packed_tensor, send_f32, write_npz, write_safetensors,
};
use crate::error::{Error, Result};
use crate::params::Spec;
use crate::runtime::Interrupt;

/// Values written between two looks at the interrupt: a few milliseconds' worth.
const VALUES_PER_LOOK: usize = 1 << 20;

/// Writes the weights of `parts`, each of one moment, as 32-bit floats to `path`, which is replaced in one step. Each
/// part comes with what its weights' names start with in the file.
/// `metadata` goes with them where the format has a place for it. `packed` weights keep their storage type and layout.
#[pyfunction]
#[pyo3(signature = (parts, path, file_format, metadata, *, packed=false))]
pub fn save(
    py: Python<'_>,
    parts: Vec<(String, PartObject<'_>)>,
    path: PathBuf,
    file_format: &str,
    mut metadata: BTreeMap<String, String>,
    packed: bool,
) -> PyResult<()> {
    guard(|| {
        let parts = parts
            .iter()
            .map(|(prefix, owner)| {
                let named = |spec: &Spec| Spec { name: format!("{prefix}{}", spec.name), ..spec.clone() };
                let part = owner.part();
                Ok((part.specs().iter().map(named).collect(), part.weights(py)?))
            })
            .collect::<PyResult<Vec<_>>>()?;
        enter_core(py, |interrupt| {
            if packed {
                write_packed(&parts, &path, &mut metadata, interrupt)
            } else {
                write_weights(&parts, &path, file_format, &metadata, interrupt)
            }
        })
    })
}

/// Writes weights as they are in memory: first those that can be mapped, then vectors.
fn write_packed(
    parts: &[(Vec<Spec>, PartWeights)],
    path: &Path,
    metadata: &mut BTreeMap<String, String>,
    interrupt: Interrupt<'_>,
) -> Result<()> {
    let sender = Sender::new(interrupt);
    let (mut tensors, mut vectors) = (Vec::new(), Vec::new());
    for (spec, weight) in parts.iter().flat_map(|(specs, weights)| specs.iter().zip(weights.weights().iter()))
    {
        match packed_tensor(spec, weight, metadata, interrupt)? {
            Some(tensor) => tensors.push(tensor),
            None => vectors.push(
                sender.tensor(spec.name.clone(), &spec.shape, |visit| weight.try_for_each_piece(visit)),
            ),
        }
    }
    tensors.append(&mut vectors);
    write_safetensors(path, metadata, tensors, interrupt)
}

/// Hands values to writers, and looks at the interrupt on the way.
pub struct Sender<'a> {
    since_look: Cell<usize>,
    interrupt: Interrupt<'a>,
}

impl<'a> Sender<'a> {
    /// One for a whole file.
    pub fn new(interrupt: Interrupt<'a>) -> Self {
        Sender { since_look: Cell::new(0), interrupt }
    }

    /// A tensor of 32-bit floats, whose `values` are handed over in pieces when it is written.
    pub fn tensor<'t>(
        &'t self,
        name: String,
        shape: &[usize],
        values: impl FnOnce(&mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> + 't,
    ) -> TensorToWrite<'t> {
        let content = Box::new(|sink: &mut ChunkSink<'_>| {
            values(&mut |piece| {
                piece.chunks(VALUES_PER_LOOK).try_for_each(|values| {
                    self.look(values.len())?;
                    send_f32(values, sink)
                })
            })
        });
        TensorToWrite { name, dtype: Dtype::F32, shape: shape.to_vec(), content }
    }

    /// Looks before `count` more values: waiting for the interpreter, so not for every small piece.
    fn look(&self, count: usize) -> Result<()> {
        let passed = self.since_look.get() + count;
        self.since_look.set(passed % VALUES_PER_LOOK);
        if passed >= VALUES_PER_LOOK && (self.interrupt)() { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// Writes weights one at a time.
fn write_weights(
    parts: &[(Vec<Spec>, PartWeights)],
    path: &Path,
    file_format: &str,
    metadata: &BTreeMap<String, String>,
    interrupt: Interrupt<'_>,
) -> Result<()> {
    let sender = Sender::new(interrupt);
    let each = parts.iter().flat_map(|(specs, weights)| specs.iter().zip(weights.weights().iter()));
    let tensors = each
        .map(|(spec, weight)| {
            sender.tensor(spec.name.clone(), &spec.shape, |visit| weight.try_for_each_piece(visit))
        })
        .collect();
    match file_format {
        "safetensors" => write_safetensors(path, metadata, tensors, interrupt),
        "npz" => write_npz(path, tensors, interrupt),
        _ => Err(Error::value(
            "file_format",
            format!("got {file_format:?}, expected \"safetensors\" or \"npz\""),
        )),
    }
}
