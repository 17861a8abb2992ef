//! What owns weights: an encoder or a head.

use std::sync::{Arc, RwLockWriteGuard};

use pyo3::prelude::*;

use super::encoder::Encoder;
use super::head::Head;
use crate::heads;
use crate::network::SparseMixer;
use crate::params::{Param, ParamMut, Spec};

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

/// A part's weights, locked for a change.
pub enum Locked<'a> {
    /// Those of an encoder.
    Encoder(RwLockWriteGuard<'a, Arc<SparseMixer<f32>>>),
    /// Those of a head.
    Head(RwLockWriteGuard<'a, Arc<heads::Head<f32>>>),
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

    /// Calls `visit` with the weights of this moment.
    pub fn with_params<T>(self, visit: impl FnOnce(&[Param<'_, f32>]) -> T) -> T {
        match self {
            Part::Encoder(encoder) => visit(&encoder.network().params()),
            Part::Head(head) => visit(&head.weights().params()),
        }
    }

    /// Locks the weights for a change; see [`Encoder::lock_network`].
    pub fn lock(self) -> Locked<'a> {
        match self {
            Part::Encoder(encoder) => Locked::Encoder(encoder.lock_network()),
            Part::Head(head) => Locked::Head(head.lock_weights()),
        }
    }
}

impl Locked<'_> {
    /// The weights, to be changed. Where another call still uses them, this copies them first.
    pub fn params_mut(&mut self) -> Vec<ParamMut<'_, f32>> {
        match self {
            Locked::Encoder(network) => Arc::make_mut(network).params_mut(),
            Locked::Head(head) => Arc::make_mut(head).params_mut(),
        }
    }
}
