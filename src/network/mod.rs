//! The encoder: embed, blocks, pool.

mod attend;
mod block;
mod embed;
#[cfg(test)]
mod faults;
mod feed_forward;
mod inputs;
mod memory;
mod mix;
mod mix_convolution;
mod mix_linear;
mod mix_spectral;
mod mix_structured;
mod moe;
mod moe_assign;
mod moe_grouping;
mod moe_router;
mod moe_slots;
mod pass;
mod pool;
mod tape;
mod visibility;
mod work;

use std::fmt::Display;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::config::{Dtype, SparseMixerConfig};
use crate::error::{Error, Result};
use crate::kernels::{Real, zeroed};
use crate::layers::{Activation, CustomActivation};
use crate::params::{Loader, Param, ParamMut, Source, Spec};
use crate::runtime::{Buffer, Context, Interrupt};

use block::{Block, Record};
use embed::Embed;
pub use inputs::{Inputs, Words};
pub use memory::forward_bytes;
pub use moe::LayerMetrics;
pub use moe_grouping::Grouping;
use pass::Pass;
use pool::Pool;
pub use tape::{Cotangents, OwnedInputs, OwnedWords, Tape};
use visibility::Visibility;
pub use work::is_small;

/// The weights of an encoder, in Keras order.
pub fn specs(config: &SparseMixerConfig) -> Vec<Spec> {
    let mut specs = embed::specs(config);
    specs.extend((0..config.num_layers).flat_map(|layer| block::specs(config, layer)));
    specs.extend(pool::specs(config.hidden_size));
    specs
}

/// An encoder: configuration and weights, immutable while in use.
#[derive(Clone, Debug)]
pub struct SparseMixer<R> {
    config: SparseMixerConfig,
    activation: Activation<R>,
    embed: Embed<R>,
    blocks: Vec<Block<R>>,
    pool: Pool<R>,
}

/// Which outputs to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Output of the last block.
    pub sequence_output: bool,
    /// Output of the pooler.
    pub pooled_output: bool,
    /// Outputs of all blocks.
    pub encoder_outputs: bool,
    /// Routing decisions of all mixtures.
    pub routing: bool,
    /// Look for NaN and infinity after the embeddings, every block and the pooler.
    pub check_finite: bool,
}

/// What a forward pass gives. `rows` is `S`, or at most `output_range` for the last block.
#[derive(Debug)]
pub struct Outputs<R> {
    /// `[B, rows, H]`: the last block's output, if it or `encoder_outputs` is wanted.
    pub sequence_output: Option<Vec<R>>,
    /// `[B, H]`, if wanted.
    pub pooled_output: Option<Vec<R>>,
    /// `[B, S, H]` of every block but the last, if wanted.
    pub encoder_outputs: Vec<Vec<R>>,
    /// `S`
    pub seq: usize,
    /// Rows per example in `sequence_output`.
    pub rows: usize,
    /// One per mixture.
    pub metrics: Vec<LayerMetrics<R>>,
    /// One per mixture, if wanted.
    pub routing: Vec<RoutingRecord<R>>,
}

/// Routing decisions of one mixture.
#[derive(Clone, Debug)]
pub struct RoutingRecord<R> {
    /// `G`, `T`, `C`
    pub groups: usize,
    /// Tokens per group.
    pub tokens: usize,
    /// Slots per expert and group: the expert capacity, but no more than tokens.
    pub slots: usize,
    /// `[G, E, slots]`: token indices within the group, ascending where experts choose, in the order of service where
    /// tokens do; `u32::MAX` in empty slots.
    pub indices: Vec<u32>,
    /// `[G, T, E]`
    pub probabilities: Vec<R>,
}

/// The stream between blocks: scratch memory, or an array that the caller gets.
enum Stream<R: Real> {
    Scratch(Buffer<R>),
    Kept(Vec<R>),
}

impl<R: Real> Deref for Stream<R> {
    type Target = [R];
    fn deref(&self) -> &[R] {
        match self {
            Stream::Scratch(buffer) => buffer,
            Stream::Kept(values) => values,
        }
    }
}

impl<R: Real> DerefMut for Stream<R> {
    fn deref_mut(&mut self) -> &mut [R] {
        match self {
            Stream::Scratch(buffer) => buffer,
            Stream::Kept(values) => values,
        }
    }
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
        let pool = Pool::load(&mut loader, config.hidden_size)?;
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

    /// Runs the encoder. `training` holds the seed of dropout and jitter, or `None` for inference.
    ///
    /// # Errors
    /// [`Error::Value`] naming the input that cannot be; [`Error::Interrupted`].
    pub fn forward(
        &self,
        context: &Context<'_, R>,
        inputs: &Inputs<'_, R>,
        training: Option<u64>,
        wanted: Wanted,
    ) -> Result<Outputs<R>> {
        self.check(inputs, training)?;
        let (batch, seq, hidden) = (inputs.batch, inputs.seq, self.config.hidden_size);
        let keeps_last = wanted.sequence_output || wanted.encoder_outputs;
        let last_rows = if keeps_last { self.output_rows(seq) } else { 1 };
        let mut outputs = Outputs::new(seq, last_rows);
        if batch == 0 {
            return Ok(self.empty(outputs, wanted));
        }
        let visibility = Visibility::new(&self.config, inputs);
        let pass = self.pass(context, (batch, seq), training, false, &visibility);
        let mut x = Stream::Scratch(context.buffer(batch * seq * hidden));
        self.embed.forward(&pass, inputs, &mut x, None)?;
        check_finite(wanted, "the embeddings are", &x)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let is_last = layer + 1 == self.blocks.len();
            let rows = if is_last { last_rows } else { seq };
            let keep = if is_last { keeps_last } else { wanted.encoder_outputs };
            let len = batch * rows * hidden;
            let mut out = if keep { Stream::Kept(zeroed(len)) } else { Stream::Scratch(context.buffer(len)) };
            let record = block.forward(&pass, &self.activation, &x, rows, &mut out)?;
            outputs.add(&record, wanted);
            check_finite(wanted, format_args!("block {layer} is"), &out)?;
            let previous = std::mem::replace(&mut x, out);
            if let (Stream::Kept(values), true) = (previous, wanted.encoder_outputs) {
                outputs.encoder_outputs.push(values);
            }
        }
        if wanted.pooled_output {
            let mut pooled = zeroed(batch * hidden);
            self.pool.forward(&pass, &x, last_rows, &mut pooled)?;
            check_finite(wanted, "the pooler is", &pooled)?;
            outputs.pooled_output = Some(pooled);
        }
        if let Stream::Kept(values) = x {
            outputs.sequence_output = Some(values);
        }
        Ok(outputs)
    }

    fn check(&self, inputs: &Inputs<'_, R>, training: Option<u64>) -> Result<()> {
        inputs.check(&self.config)?;
        if training.is_some() { self.check_dropout() } else { Ok(()) }
    }

    fn pass<'a>(
        &'a self,
        context: &'a Context<'a, R>,
        (batch, seq): (usize, usize),
        training: Option<u64>,
        keep: bool,
        visibility: &'a Visibility<R>,
    ) -> Pass<'a, R> {
        Pass { context, config: &self.config, batch, seq, training, keep, visibility }
    }

    /// Rows per example of the last block's output.
    fn output_rows(&self, seq: usize) -> usize {
        let range = self.config.output_range.filter(|_| self.config.rules().output_range);
        range.map_or(seq, |range| range.min(seq))
    }

    /// A rate of exactly 1 is allowed at inference only: there would be nothing left to scale.
    fn check_dropout(&self) -> Result<()> {
        let attends = !self.config.attention_layers.is_empty();
        let rates = [
            ("output_dropout", self.config.output_dropout, true),
            ("attention_dropout", self.config.attention_dropout, attends),
            ("expert_dropout", self.config.expert_dropout(), !self.config.moe_layers.is_empty()),
        ];
        match rates.into_iter().find(|&(_, rate, used)| used && rate >= 1.0) {
            None => Ok(()),
            Some((name, rate, _)) => {
                Err(Error::value(name, format!("got {rate}, expected a rate below 1 for training")))
            }
        }
    }

    /// Outputs of an empty batch.
    fn empty(&self, mut outputs: Outputs<R>, wanted: Wanted) -> Outputs<R> {
        outputs.sequence_output = (wanted.sequence_output || wanted.encoder_outputs).then(Vec::new);
        outputs.pooled_output = wanted.pooled_output.then(Vec::new);
        if wanted.encoder_outputs {
            outputs.encoder_outputs = vec![Vec::new(); self.blocks.len() - 1];
        }
        outputs
    }
}

impl<R: Real> Outputs<R> {
    fn new(seq: usize, rows: usize) -> Self {
        Outputs {
            seq,
            sequence_output: None,
            pooled_output: None,
            encoder_outputs: Vec::new(),
            rows,
            metrics: Vec::new(),
            routing: Vec::new(),
        }
    }

    /// Takes metrics and routing from a block's record.
    fn add(&mut self, record: &Record<R>, wanted: Wanted) {
        let Some(mixture) = &record.mixture else { return };
        self.metrics.push(mixture.metrics.clone());
        if wanted.routing {
            let routing = &mixture.routing;
            self.routing.push(RoutingRecord {
                groups: routing.grouping.groups,
                tokens: routing.grouping.tokens,
                slots: routing.grouping.slots(),
                indices: routing.indices.clone(),
                probabilities: routing.probabilities.to_vec(),
            });
        }
    }
}

/// Refuses an output that is not finite, if that is wanted; `first` is its layer as a subject with its verb.
fn check_finite<R: Real>(wanted: Wanted, first: impl Display, out: &[R]) -> Result<()> {
    if wanted.check_finite && !out.iter().all(|v| v.is_finite()) {
        let message = format!("{first} the first whose output has a NaN or an infinity");
        return Err(Error::value("check_finite", message));
    }
    Ok(())
}
