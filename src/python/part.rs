//! What owns weights: an encoder or a head.

use std::sync::Arc;

use pyo3::prelude::*;

use super::encoder::Encoder;
use super::head::Head;
use crate::error::Result;
use crate::heads;
use crate::network::SparseMixer;
use crate::params::{Param, ParamMut, Spec};
use crate::runtime::{Exclusive, Taken};

/// An owner of weights as Python hands it over.
#[derive(FromPyObject)]
pub enum Owner<'py> {
    /// An encoder.
    Encoder(Bound<'py, Encoder>),
    /// A head.
    Head(Bound<'py, Head>),
}

/// The same, for use while detached from the interpreter.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    /// An encoder.
    Encoder(&'a Encoder),
    /// A head.
    Head(&'a Head),
}

/// Where a part's weights are.
#[derive(Clone)]
pub enum Place {
    /// Those of an encoder.
    Encoder(Arc<Exclusive<Arc<SparseMixer<f32>>>>),
    /// Those of a head.
    Head(Arc<Exclusive<Arc<heads::Head<f32>>>>),
}

/// A part's weights of one moment.
pub enum Snapshot {
    /// Those of an encoder.
    Encoder(Arc<SparseMixer<f32>>),
    /// Those of a head.
    Head(Arc<heads::Head<f32>>),
}

/// A part's weights, taken for a change.
pub enum TakenWeights {
    /// Those of an encoder.
    Encoder(Taken<Arc<SparseMixer<f32>>>),
    /// Those of a head.
    Head(Taken<Arc<heads::Head<f32>>>),
}

impl Owner<'_> {
    /// What Python's object holds.
    pub fn part(&self) -> Part<'_> {
        match self {
            Owner::Encoder(encoder) => Part::Encoder(encoder.get()),
            Owner::Head(head) => Part::Head(head.get()),
        }
    }
}

impl<'a> Part<'a> {
    /// Names and shapes of the weights.
    pub fn specs(self) -> &'a [Spec] {
        match self {
            Part::Encoder(encoder) => encoder.specs(),
            Part::Head(head) => head.specs(),
        }
    }

    /// The weights of this moment.
    pub fn snapshot(self, py: Python<'_>) -> PyResult<Snapshot> {
        Ok(match self {
            Part::Encoder(encoder) => Snapshot::Encoder(encoder.network(py)?),
            Part::Head(head) => Snapshot::Head(head.weights(py)?),
        })
    }

    /// Where the weights are.
    pub fn place(self) -> Place {
        match self {
            Part::Encoder(encoder) => Place::Encoder(encoder.network_place().clone()),
            Part::Head(head) => Place::Head(head.weights_place().clone()),
        }
    }
}

impl Snapshot {
    /// The weights.
    pub fn params(&self) -> Vec<Param<'_, f32>> {
        match self {
            Snapshot::Encoder(network) => network.params(),
            Snapshot::Head(head) => head.params(),
        }
    }
}

impl Place {
    /// Takes the weights for a change if they are there; see [`Exclusive::try_take`].
    pub fn try_take(&self) -> Result<Option<TakenWeights>> {
        Ok(match self {
            Place::Encoder(place) => place.try_take()?.map(TakenWeights::Encoder),
            Place::Head(place) => place.try_take()?.map(TakenWeights::Head),
        })
    }

    /// Whether both are the same.
    pub fn is(&self, other: &Place) -> bool {
        match (self, other) {
            (Place::Encoder(a), Place::Encoder(b)) => Arc::ptr_eq(a, b),
            (Place::Head(a), Place::Head(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl TakenWeights {
    /// The weights, to be changed. Where another call still uses them, this copies them first.
    pub fn params_mut(&mut self) -> Vec<ParamMut<'_, f32>> {
        match self {
            TakenWeights::Encoder(network) => Arc::make_mut(network).params_mut(),
            TakenWeights::Head(head) => Arc::make_mut(head).params_mut(),
        }
    }

    /// To be called after a change.
    pub fn refresh(&mut self) -> Result<()> {
        match self {
            TakenWeights::Encoder(network) => Arc::make_mut(network).refresh(),
            TakenWeights::Head(_) => Ok(()),
        }
    }
}
