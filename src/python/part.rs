//! What owns weights: an encoder or a head.

use std::sync::{Arc, MutexGuard};

use pyo3::prelude::*;

use super::encoder::Encoder;
use super::enter::to_py_err;
use super::gradient_memory::GradientHome;
use super::head::Head;
use crate::error::{Error, Result};
use crate::heads;
use crate::network::SparseMixer;
use crate::params::{ChosenWeight, Spec, Weights};

/// An owner of weights as Python hands it over.
#[derive(FromPyObject)]
pub enum PartObject<'py> {
    /// An encoder.
    Encoder(Bound<'py, Encoder>),
    /// A head.
    Head(Bound<'py, Head>),
}

/// The same, for use while detached from the interpreter.
#[derive(Clone, Copy)]
pub enum TrainablePart<'a> {
    /// An encoder.
    Encoder(&'a Encoder),
    /// A head.
    Head(&'a Head),
}

/// A part's weights of one moment.
pub enum PartWeights {
    /// Those of an encoder.
    Encoder(Arc<SparseMixer<f32>>),
    /// Those of a head.
    Head(Arc<heads::Head<f32>>),
}

/// A part's weights, locked for a change.
pub enum LockedWeights<'a> {
    /// Those of an encoder.
    Encoder(MutexGuard<'a, Arc<SparseMixer<f32>>>),
    /// Those of a head.
    Head(MutexGuard<'a, Arc<heads::Head<f32>>>),
}

impl PartObject<'_> {
    /// What Python's object holds.
    pub fn part(&self) -> TrainablePart<'_> {
        match self {
            PartObject::Encoder(encoder) => TrainablePart::Encoder(encoder.get()),
            PartObject::Head(head) => TrainablePart::Head(head.get()),
        }
    }
}

impl<'a> TrainablePart<'a> {
    /// Names and shapes of the weights.
    pub fn specs(self) -> &'a [Spec] {
        match self {
            TrainablePart::Encoder(encoder) => encoder.specs(),
            TrainablePart::Head(head) => head.specs(),
        }
    }

    /// What all gradients of the weights share.
    pub fn gradient_home(self) -> &'a Arc<GradientHome> {
        match self {
            TrainablePart::Encoder(encoder) => encoder.gradient_home(),
            TrainablePart::Head(head) => head.gradient_home(),
        }
    }

    /// The weights of this moment.
    pub fn weights(self, py: Python<'_>) -> PyResult<PartWeights> {
        Ok(match self {
            TrainablePart::Encoder(encoder) => PartWeights::Encoder(encoder.network(py)?),
            TrainablePart::Head(head) => PartWeights::Head(head.weights(py)?),
        })
    }

    /// Locks the weights for a change, if they are free.
    pub fn try_lock(self) -> Result<Option<LockedWeights<'a>>> {
        Ok(match self {
            TrainablePart::Encoder(encoder) => {
                encoder.shared_network().try_lock()?.map(LockedWeights::Encoder)
            }
            TrainablePart::Head(head) => head.shared_weights().try_lock()?.map(LockedWeights::Head),
        })
    }

    /// Whether both are the same.
    pub fn is(self, other: TrainablePart<'_>) -> bool {
        match (self, other) {
            (TrainablePart::Encoder(a), TrainablePart::Encoder(b)) => std::ptr::eq(a, b),
            (TrainablePart::Head(a), TrainablePart::Head(b)) => std::ptr::eq(a, b),
            _ => false,
        }
    }
}

/// Checks that no part is there twice: nobody could lock it a second time.
///
/// # Errors
/// `ValueError`
pub fn expect_distinct<'a>(parts: impl Iterator<Item = TrainablePart<'a>> + Clone) -> PyResult<()> {
    let mut others = parts.clone();
    for part in parts {
        others.next();
        if others.clone().any(|other| other.is(part)) {
            return Err(to_py_err(Error::value("parts", "the same encoder or head is there twice")));
        }
    }
    Ok(())
}

impl PartWeights {
    /// The weights.
    pub fn weights(&self) -> &Weights<f32> {
        match self {
            PartWeights::Encoder(network) => network.weights(),
            PartWeights::Head(head) => &head.weights,
        }
    }
}

impl LockedWeights<'_> {
    /// The weights of this moment.
    pub fn snapshot(&self) -> PartWeights {
        match self {
            LockedWeights::Encoder(network) => PartWeights::Encoder(Arc::clone(network)),
            LockedWeights::Head(head) => PartWeights::Head(Arc::clone(head)),
        }
    }

    /// Those weights that are `chosen`, one flag each, to be changed. Where another call still uses them, this copies them
    /// first.
    pub fn choose_mut(&mut self, chosen: &[bool]) -> Vec<Option<ChosenWeight<'_, f32>>> {
        let weights = match self {
            LockedWeights::Encoder(network) => Arc::make_mut(network).weights_mut(&|index| chosen[index]),
            LockedWeights::Head(head) => &mut Arc::make_mut(head).weights,
        };
        weights.choose_mut(chosen)
    }

    /// To be called after a change.
    pub fn refresh(&mut self) {
        if let LockedWeights::Encoder(network) = self {
            Arc::make_mut(network).refresh();
        }
    }
}
