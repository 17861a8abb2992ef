//! A head of any kind, for callers that store heads and their gradients alike.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::masked_lm::{MaskedLm, MaskedLmConfig};
use super::projection::{Projection, ProjectionConfig};
use crate::error::Result;
use crate::kernels::{Dtype, Real};
use crate::params::{Source, Spec, Weight, WeightList, Weights};

/// Configuration of a head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum HeadConfig {
    /// Features to logits.
    Projection(ProjectionConfig),
    /// Hidden states to words.
    MaskedLm(MaskedLmConfig),
}

/// A head: its layers and its weights.
#[derive(Clone, Debug)]
pub struct Head<R> {
    /// The layers.
    pub kind: HeadKind<R>,
    /// The weights.
    pub weights: Weights<R>,
}

/// The layers of a head.
#[derive(Clone, Debug)]
pub enum HeadKind<R> {
    /// Features to logits.
    Projection(Projection<R>),
    /// Hidden states to words.
    MaskedLm(MaskedLm<R>),
}

impl HeadConfig {
    /// Checks sizes, rates and names; the error names the argument.
    pub fn validate(&self) -> Result<()> {
        match self {
            HeadConfig::Projection(config) => config.validate(),
            HeadConfig::MaskedLm(config) => config.validate(),
        }
    }

    /// The weights, in Keras order.
    ///
    /// # Errors
    /// Those of [`HeadConfig::validate`].
    pub fn specs(&self) -> Result<Vec<Spec>> {
        let mut list = WeightList::new();
        HeadKind::<f32>::new(&mut list, self)?;
        Ok(list.into_specs())
    }
}

impl<R: Real> HeadKind<R> {
    /// Declares the layers.
    fn new(list: &mut WeightList, config: &HeadConfig) -> Result<Self> {
        Ok(match config {
            HeadConfig::Projection(config) => HeadKind::Projection(Projection::new(list, config)?),
            HeadConfig::MaskedLm(config) => HeadKind::MaskedLm(MaskedLm::new(list, config)?),
        })
    }
}

impl<R: Real> Head<R> {
    /// Builds a head with weights from `source`, asked for in the order of [`HeadConfig::specs`].
    pub fn load(config: &HeadConfig, source: Source<'_, R>) -> Result<Self> {
        let mut list = WeightList::new();
        let kind = HeadKind::new(&mut list, config)?;
        Ok(Head { kind, weights: Weights::load(list, source, Dtype::Float32)? })
    }

    /// A head with weights that have been made already, in the order of [`HeadConfig::specs`].
    pub fn of(config: &HeadConfig, values: Vec<Arc<Weight<R>>>) -> Result<Self> {
        let mut list = WeightList::new();
        let kind = HeadKind::new(&mut list, config)?;
        Ok(Head { kind, weights: Weights::of(list, values, Dtype::Float32) })
    }
}
