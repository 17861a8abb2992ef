//! The Python class of training snapshots: weights and moments of one moment, on their way to a file.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;

use super::convert::copied;
use super::enter::{callback_error, enter_core, guard};
use super::optim::Optimizer;
use super::part::{LockedWeights, PartObject, PartWeights, expect_distinct};
use super::save::Sender;
use super::weights::spec_at;
use crate::checkpoint::{ChunkSink, Dtype, TensorToWrite, write_npz};
use crate::error::Result;
use crate::optim;
use crate::runtime::lock_all;

/// Bytes of an array of numpy that are copied at a time.
const PIECE: usize = 1 << 20;

/// Weights by number and name in the file.
type Named = Vec<(usize, String)>;

/// An array of numpy: name in the file, name of its type, shape, its bytes.
type OtherArray = (String, String, Vec<usize>, Py<PyAny>);

/// Weights and moments of one moment, not copied: whoever changes some of them meanwhile copies those.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct TrainingSnapshot {
    weights: Vec<(PartWeights, Named)>,
    optimizer: Option<Arc<optim::Optimizer<f32>>>,
}

#[pymethods]
impl TrainingSnapshot {
    #[new]
    fn new(
        py: Python<'_>,
        parts: Vec<(PartObject<'_>, Named)>,
        optimizer: Option<&Bound<'_, Optimizer>>,
    ) -> PyResult<Self> {
        guard(|| {
            let owners: Vec<_> = parts.iter().map(|(object, _)| object.part()).collect();
            expect_distinct(owners.iter().copied())?;
            for (part, (_, named)) in owners.iter().zip(&parts) {
                named.iter().try_for_each(|&(index, _)| spec_at(part.specs(), index).map(drop))?;
            }
            let optimizer = optimizer.map(|optimizer| optimizer.get().shared());
            let (optimizer, weights) = enter_core(py, |interrupt| {
                let locks = lock_all(interrupt, || {
                    let moments = optimizer.map(|optimizer| optimizer.try_lock()).transpose()?;
                    if matches!(moments, Some(None)) {
                        return Ok(None);
                    }
                    let weights = owners.iter().map(|part| part.try_lock());
                    let weights = weights.collect::<Result<Option<Vec<_>>>>()?;
                    Ok(weights.map(|weights| (moments.flatten(), weights)))
                })?;
                let (moments, weights) = &*locks;
                let weights: Vec<_> = weights.iter().map(LockedWeights::snapshot).collect();
                Ok((moments.as_deref().cloned(), weights))
            })?;
            let named = parts.into_iter().map(|(_, named)| named);
            Ok(TrainingSnapshot { weights: weights.into_iter().zip(named).collect(), optimizer })
        })
    }

    /// Updates done.
    #[getter]
    fn iterations(&self) -> u64 {
        self.optimizer.as_ref().map_or(0, |optimizer| optimizer.step())
    }

    /// Names of the moments.
    #[getter]
    fn moments(&self) -> PyResult<Vec<String>> {
        guard(|| {
            let moments = self.optimizer.iter().flat_map(|optimizer| optimizer.moments());
            Ok(moments.map(|moment| moment.name).collect())
        })
    }

    /// Replaces the file at `path` in one step by a `.npz` of `others`, the weights, and the moments below `moments/`.
    fn write(&self, py: Python<'_>, path: PathBuf, others: Vec<OtherArray>) -> PyResult<()> {
        guard(|| {
            enter_core(py, |interrupt| {
                let sender = Sender::new(interrupt);
                let others = others.into_iter().map(|(name, dtype, shape, bytes)| TensorToWrite {
                    name,
                    dtype: Dtype::from_numpy_name(&dtype),
                    shape,
                    content: Box::new(move |sink| send_bytes(&bytes, sink)),
                });
                let mut tensors: Vec<_> = others.collect();
                for (weights, named) in &self.weights {
                    let weights = weights.weights();
                    for (index, name) in named {
                        let weight = weights.get(*index);
                        tensors.push(sender.tensor(name.clone(), &weights.specs()[*index].shape, |visit| {
                            weight.try_for_each_piece(visit)
                        }));
                    }
                }
                for moment in self.optimizer.iter().flat_map(|optimizer| optimizer.moments()) {
                    let (name, shape) = (format!("moments/{}", moment.name), moment.shape.clone());
                    tensors.push(sender.tensor(name, &shape, move |visit| moment.try_for_each_piece(visit)));
                }
                write_npz(&path, tensors, interrupt)
            })
        })
    }
}

/// Sends the bytes of an array of numpy, which other threads may use meanwhile.
fn send_bytes(array: &Py<PyAny>, sink: &mut ChunkSink<'_>) -> Result<()> {
    let mut sent = 0;
    loop {
        let piece = Python::attach(|py| {
            let borrowed = array.bind(py).cast::<PyArray1<u8>>()?.try_readonly()?;
            let rest = borrowed.as_slice()?.get(sent..).unwrap_or_default();
            let piece = &rest[..rest.len().min(PIECE)];
            copied("arrays", piece.len(), piece.iter().copied())
        });
        let piece: Vec<u8> = piece.map_err(callback_error)?;
        if piece.is_empty() {
            return Ok(());
        }
        sink(&piece)?;
        sent += piece.len();
    }
}
