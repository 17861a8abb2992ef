//! Inference, and what training shares with it.

use std::ops::{Deref, DerefMut};

use crate::error::{Error, Result};
use crate::kernels::Real;
use crate::runtime::{Buffer, Context};
use crate::sys::alloc_zeroed_huge;

use super::attention_mask::AttentionMask;
use super::encoder::SparseMixer;
use super::inputs::Inputs;
use super::outputs::{Outputs, RequestedOutputs, check_finite};
use super::pass::Pass;

/// The stream between blocks: scratch memory, or an array that the caller gets.
enum Residual<R: Real> {
    Scratch(Buffer<R>),
    Kept(Vec<R>),
}

impl<R: Real> Residual<R> {
    /// An array of `len` zeros that the caller gets.
    fn kept(context: &Context<'_, R>, len: usize) -> Self {
        context
            .stand_in_for_zeros(len)
            .map_or_else(|| Residual::Kept(alloc_zeroed_huge(len)), Residual::Scratch)
    }

    fn into_kept(self) -> Option<Vec<R>> {
        if let Residual::Kept(values) = self { Some(values) } else { None }
    }
}

impl<R: Real> Deref for Residual<R> {
    type Target = [R];
    fn deref(&self) -> &[R] {
        match self {
            Residual::Scratch(buffer) => buffer,
            Residual::Kept(values) => values,
        }
    }
}

impl<R: Real> DerefMut for Residual<R> {
    fn deref_mut(&mut self) -> &mut [R] {
        match self {
            Residual::Scratch(buffer) => buffer,
            Residual::Kept(values) => values,
        }
    }
}

impl<R: Real> SparseMixer<R> {
    /// Runs the encoder. `training` holds the seed of dropout and jitter, or `None` for inference.
    ///
    /// # Errors
    /// [`Error::Value`] naming the input that cannot be; [`Error::Interrupted`].
    pub fn forward(
        &self,
        context: &Context<'_, R>,
        inputs: &Inputs<'_, R>,
        training: Option<u64>,
        requested: RequestedOutputs,
    ) -> Result<Outputs<R>> {
        self.check(inputs, training)?;
        self.check_pooler(requested)?;
        self.forward_checked(context, inputs, training, requested)
    }

    /// The same for inputs that are known to be right.
    pub(super) fn forward_checked(
        &self,
        context: &Context<'_, R>,
        inputs: &Inputs<'_, R>,
        training: Option<u64>,
        requested: RequestedOutputs,
    ) -> Result<Outputs<R>> {
        let (batch, seq, hidden) = (inputs.batch, inputs.seq, self.config.hidden_size);
        let keeps_last = requested.sequence_output || requested.encoder_outputs;
        let last_rows = if keeps_last { self.output_rows(seq) } else { 1 };
        let mut outputs = Outputs::new(seq, last_rows);
        if batch == 0 {
            return Ok(self.empty(outputs, requested));
        }
        let attention_mask = self.attention_mask(context, inputs)?;
        let pass = self.pass(context, (batch, seq), training, false, &attention_mask);
        let mut x = Residual::Scratch(context.buffer(batch * seq * hidden));
        self.embed.forward(&pass, inputs, &mut x, None)?;
        check_finite(requested, "the embeddings are", &x)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let is_last = layer + 1 == self.blocks.len();
            let rows = if is_last { last_rows } else { seq };
            let keep = if is_last { keeps_last } else { requested.encoder_outputs };
            let len = batch * rows * hidden;
            let mut out = match keep {
                true => Residual::kept(context, len),
                false => Residual::Scratch(context.buffer(len)),
            };
            let record = block.forward(&pass, &self.activation, &x, rows, &mut out)?;
            context.count_written::<R>(if keep { len } else { 0 });
            outputs.add(context, &record, requested);
            check_finite(requested, format_args!("block {layer} is"), &out)?;
            let previous = std::mem::replace(&mut x, out);
            outputs.encoder_outputs.extend(previous.into_kept());
        }
        if let Some(pooler) = self.pooler.filter(|_| requested.pooled_output) {
            let mut pooled = Residual::kept(context, batch * hidden);
            pooler.forward(&pass, &x, last_rows, &mut pooled)?;
            context.count_written::<R>(batch * hidden);
            check_finite(requested, "the pooler is", &pooled)?;
            outputs.pooled_output = pooled.into_kept();
        }
        outputs.sequence_output = x.into_kept();
        Ok(outputs)
    }

    pub(super) fn check(&self, inputs: &Inputs<'_, R>, training: Option<u64>) -> Result<()> {
        inputs.check(&self.config)?;
        if training.is_some() { self.check_dropout() } else { Ok(()) }
    }

    /// An encoder without a pooler has no `pooled_output`.
    pub(super) fn check_pooler(&self, requested: RequestedOutputs) -> Result<()> {
        if requested.pooled_output && self.pooler.is_none() {
            return Err(Error::value(
                "outputs",
                "got 'pooled_output', but this encoder has no pooler (with_pooler=False, or a file without the \
                 pooler's weights); pool 'sequence_output' instead",
            ));
        }
        Ok(())
    }

    /// What becomes of the attention scores of a call with `inputs`, which have been checked.
    pub(super) fn attention_mask(
        &self,
        context: &Context<'_, R>,
        inputs: &Inputs<'_, R>,
    ) -> Result<AttentionMask<R>> {
        AttentionMask::new(context, &self.config, inputs, self.position_biases(context, inputs.seq))
    }

    /// What is added to attention scores by distance, if something is.
    pub(super) fn position_biases(&self, context: &Context<'_, R>, seq: usize) -> Option<Buffer<R>> {
        self.embed.position_bias.map(|bias| bias.by_offset(context, &self.weights, seq))
    }

    pub(super) fn pass<'a>(
        &'a self,
        context: &'a Context<'a, R>,
        (batch, seq): (usize, usize),
        training: Option<u64>,
        keep: bool,
        attention_mask: &'a AttentionMask<R>,
    ) -> Pass<'a, R> {
        let (config, weights) = (&self.config, &self.weights);
        Pass { context, config, weights, batch, seq, training, keep, attention_mask }
    }

    /// Rows per example of the last block's output.
    pub fn output_rows(&self, seq: usize) -> usize {
        let range = self.config.output_range();
        range.map_or(seq, |range| range.min(seq))
    }

    /// A rate of exactly 1 is allowed at inference only: there would be nothing left to scale.
    pub(super) fn check_dropout(&self) -> Result<()> {
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
    fn empty(&self, mut outputs: Outputs<R>, requested: RequestedOutputs) -> Outputs<R> {
        outputs.sequence_output = (requested.sequence_output || requested.encoder_outputs).then(Vec::new);
        outputs.pooled_output = requested.pooled_output.then(Vec::new);
        if requested.encoder_outputs {
            outputs.encoder_outputs = vec![Vec::new(); self.blocks.len() - 1];
        }
        outputs
    }
}
