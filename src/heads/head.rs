//! A head of any kind, for callers that store heads and their gradients alike.

use serde::{Deserialize, Serialize};

use super::masked_lm::{MaskedLm, MaskedLmConfig};
use super::projection::{Projection, ProjectionConfig};
use crate::error::Result;
use crate::kernels::{Dtype, Real};
use crate::layers::Activation;
use crate::params::{Loader, Param, ParamMut, Source, Spec};

/// Configuration of a head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum HeadConfig {
    /// Features to logits.
    Projection(ProjectionConfig),
    /// Hidden states to words.
    MaskedLm(MaskedLmConfig),
}

/// Weights of a head.
#[derive(Clone, Debug)]
pub enum Head<R> {
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
            HeadConfig::MaskedLm(config) => {
                Activation::<f32>::from_config(&config.activation, None).map(|_| ())
            }
        }
    }

    /// The weights, in Keras order.
    pub fn specs(&self) -> Vec<Spec> {
        match self {
            HeadConfig::Projection(config) => config.specs(),
            HeadConfig::MaskedLm(config) => config.specs(),
        }
    }
}

impl<R: Real> Head<R> {
    /// Builds a head with weights from `source`, asked for in the order of [`HeadConfig::specs`].
    pub fn load(config: &HeadConfig, source: Source<'_, R>) -> Result<Self> {
        let mut loader = Loader::new(config.specs(), source, Dtype::Float32);
        Ok(match config {
            HeadConfig::Projection(config) => Head::Projection(Projection::load(config, &mut loader)?),
            HeadConfig::MaskedLm(config) => Head::MaskedLm(MaskedLm::load(config, &mut loader)?),
        })
    }

    /// The weights, in order.
    pub fn params(&self) -> Vec<Param<'_, R>> {
        match self {
            Head::Projection(head) => head.params(),
            Head::MaskedLm(head) => head.params(),
        }
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> Vec<ParamMut<'_, R>> {
        match self {
            Head::Projection(head) => head.params_mut(),
            Head::MaskedLm(head) => head.params_mut(),
        }
    }
}
