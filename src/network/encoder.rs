//! The encoder: configuration and weights.

use std::sync::Arc;

use crate::config::SparseMixerConfig;
use crate::error::{Error, Result};
use crate::kernels::{Dtype, Real};
use crate::layers::{Activation, CustomActivation};
use crate::params::{Loader, Param, ParamMut, Source, Spec};
use crate::runtime::Interrupt;

use super::block::{self, Block};
use super::embed::{self, Embed};
use super::pooler::{self, Pooler};

/// The weights of an encoder, in Keras order.
pub fn specs(config: &SparseMixerConfig) -> Vec<Spec> {
    let mut specs = embed::specs(config);
    specs.extend((0..config.num_layers).flat_map(|layer| block::specs(config, layer)));
    specs.extend(pooler::specs(config.hidden_size));
    specs
}

/// An encoder: configuration and weights, immutable while in use.
#[derive(Clone, Debug)]
pub struct SparseMixer<R> {
    pub(super) config: SparseMixerConfig,
    pub(super) activation: Activation<R>,
    pub(super) embed: Embed<R>,
    pub(super) blocks: Vec<Block<R>>,
    pub(super) pool: Pooler<R>,
}

impl<R: Real> SparseMixer<R> {
    /// Builds an encoder of `config`, already validated, with weights from `source`, asked for in the order of
    /// [`specs`]. `custom` is the activation behind the name `"custom"`.
    pub fn load(
        config: SparseMixerConfig,
        custom: Option<Arc<dyn CustomActivation<R>>>,
        source: Source<'_, R>,
    ) -> Result<Self> {
        let activation = Activation::from_config(&config.inner_activation, custom)?;
        let mut loader = Loader::new(specs(&config), source, config.dtype.into());
        let embed = Embed::load(&mut loader, &config)?;
        let mut blocks = Vec::new();
        for layer in 0..config.num_layers {
            blocks.push(Block::load(&mut loader, &config, layer, &blocks)?);
        }
        let pool = Pooler::load(&mut loader, config.hidden_size)?;
        Ok(SparseMixer { config, activation, embed, blocks, pool })
    }

    /// The same encoder with weights stored as `dtype`.
    ///
    /// # Errors
    /// [`Error::Interrupted`]
    pub fn to_dtype(&self, dtype: Dtype, interrupt: Interrupt<'_>) -> Result<Self> {
        let config = SparseMixerConfig { dtype, ..self.config.clone() };
        let custom = match &self.activation {
            Activation::Custom(function) => Some(function.clone()),
            _ => None,
        };
        let params = self.params();
        let mut params = params.iter();
        let mut next = |spec: &Spec| match params.next() {
            Some(_) if interrupt() => Err(Error::Interrupted),
            Some(param) => Ok(param.to_vec().into()),
            None => Err(Error::Internal(format!("no weight for {}", spec.name))),
        };
        SparseMixer::load(config, custom, &mut next)
    }

    /// The configuration.
    pub fn config(&self) -> &SparseMixerConfig {
        &self.config
    }

    /// The weights in the order of [`specs`].
    pub fn params(&self) -> Vec<Param<'_, R>> {
        let mut params = self.embed.params();
        params.extend(self.blocks.iter().flat_map(Block::params));
        params.extend(self.pool.params());
        params
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> Vec<ParamMut<'_, R>> {
        let mut params = self.embed.params_mut();
        params.extend(self.blocks.iter_mut().flat_map(Block::params_mut));
        params.extend(self.pool.params_mut());
        params
    }

    /// Makes what calls need of weights that were changed in place; without it, calls do so each time.
    pub fn refresh(&mut self) -> Result<()> {
        self.blocks.iter_mut().try_for_each(|block| block.mix.refresh())
    }

    /// Bytes of all weights.
    pub fn weight_bytes(&self) -> usize {
        self.params().iter().map(Param::bytes).sum()
    }
}
