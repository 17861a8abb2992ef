//! The encoder: configuration and weights.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::SparseMixerConfig;
use crate::error::Result;
use crate::kernels::{Dtype, Real};
use crate::layers::{Activation, CustomActivation};
use crate::params::{Source, Spec, TableKey, Weight, WeightList, Weights};
use crate::runtime::Interrupt;

use super::block::Block;
use super::embed::Embed;
use super::pooler::Pooler;

/// The layers of an encoder.
#[derive(Clone, Debug)]
struct Layers<R> {
    embed: Embed,
    blocks: Vec<Block<R>>,
    pooler: Option<Pooler>,
}

impl<R: Real> Layers<R> {
    /// Declares all layers. Their order, and that in which each declares its weights, is the order of Keras.
    fn new(list: &mut WeightList, config: &SparseMixerConfig) -> Self {
        let embed = Embed::new(list, config);
        let blocks = (0..config.num_layers)
            .map(|layer| Block::new(list, config, layer, embed.position_bias))
            .collect();
        let pooler = config.with_pooler.then(|| Pooler::new(list, config.hidden_size));
        Layers { embed, blocks, pooler }
    }
}

/// Larger than before, in the whole process.
fn next_version() -> u64 {
    static CHANGES: AtomicU64 = AtomicU64::new(0);
    CHANGES.fetch_add(1, Ordering::Relaxed) + 1
}

/// The weights of an encoder, in Keras order.
pub fn specs(config: &SparseMixerConfig) -> Vec<Spec> {
    let mut list = WeightList::new();
    Layers::<f32>::new(&mut list, config);
    list.into_specs()
}

/// An encoder: configuration and weights, immutable while in use.
#[derive(Clone, Debug)]
pub struct SparseMixer<R> {
    pub(super) config: SparseMixerConfig,
    pub(super) activation: Activation<R>,
    pub(super) weights: Weights<R>,
    version: u64,
    pub(super) embed: Embed,
    pub(super) blocks: Vec<Block<R>>,
    pub(super) pooler: Option<Pooler>,
}

impl<R: Real> SparseMixer<R> {
    /// Builds an encoder of `config`, already validated, with weights from `source`, asked for in the order of
    /// [`specs`]. `custom` is the activation behind the name `"custom"`.
    pub fn load(
        config: SparseMixerConfig,
        custom: Option<Arc<dyn CustomActivation<R>>>,
        source: Source<'_, R>,
    ) -> Result<Self> {
        let dtype = config.dtype;
        SparseMixer::with_weights(config, custom, |list| Weights::load(list, source, dtype))
    }

    /// The same encoder with weights stored as `dtype`.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::error::Error::Interrupted)
    pub fn to_dtype(&self, dtype: Dtype, interrupt: Interrupt<'_>) -> Result<Self> {
        let config = SparseMixerConfig { dtype, ..self.config.clone() };
        let custom = match &self.activation {
            Activation::Custom(function) => Some(function.clone()),
            _ => None,
        };
        let weights = |list| self.weights.to_dtype(list, dtype, interrupt);
        SparseMixer::with_weights(config, custom, weights)
    }

    /// The encoder of `config`, already validated, with weights that have been made already, in the order of [`specs`].
    pub fn of(
        config: SparseMixerConfig,
        custom: Option<Arc<dyn CustomActivation<R>>>,
        values: Vec<Arc<Weight<R>>>,
    ) -> Result<Self> {
        let dtype = config.dtype;
        SparseMixer::with_weights(config, custom, |list| Ok(Weights::of(list, values, dtype)))
    }

    fn with_weights(
        config: SparseMixerConfig,
        custom: Option<Arc<dyn CustomActivation<R>>>,
        weights: impl FnOnce(WeightList) -> Result<Weights<R>>,
    ) -> Result<Self> {
        let activation = Activation::from_config(&config.inner_activation, custom)?;
        let mut list = WeightList::new();
        let Layers { embed, blocks, pooler } = Layers::new(&mut list, &config);
        let weights = weights(list)?;
        let version = next_version();
        let mut network = SparseMixer { config, activation, weights, version, embed, blocks, pooler };
        network.refresh();
        Ok(network)
    }

    /// The configuration.
    pub fn config(&self) -> &SparseMixerConfig {
        &self.config
    }

    /// The weights.
    pub fn weights(&self) -> &Weights<R> {
        &self.weights
    }

    /// A number that every change of the weights raises. Encoders whose weights are equal since one is a copy of the
    /// other share it.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The weights, of which those that `changed` names by number may be changed; [`SparseMixer::refresh`] afterwards saves
    /// later calls work.
    pub fn weights_mut(&mut self, changed: &dyn Fn(usize) -> bool) -> &mut Weights<R> {
        self.version = next_version();
        self.blocks.iter_mut().for_each(|block| block.mix.invalidate(changed));
        &mut self.weights
    }

    /// The key of the word table, which masked language models share.
    pub fn word_table(&self) -> TableKey {
        self.embed.word.key()
    }

    /// Makes what calls need beside the weights; without it, calls do so each time.
    pub fn refresh(&mut self) {
        let mut shared = None;
        for block in &mut self.blocks {
            block.mix.refresh(&self.weights, &self.config, &mut shared);
        }
    }
}
