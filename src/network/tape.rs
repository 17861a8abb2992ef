//! Training: a forward pass that keeps what backward needs, and the backward pass through the whole encoder.

use std::ops::Deref;
use std::sync::Arc;

use crate::config::SparseMixerConfig;
use crate::error::{Error, Result};
use crate::kernels::{Dtype, Real};
use crate::params::Gradients;
use crate::runtime::{Buffer, Context};
use crate::sys::alloc_zeroed;

use super::attention_mask::AttentionMask;
use super::block::BlockCache;
use super::encoder::SparseMixer;
use super::inputs::{Inputs, Words};
use super::moe::mixture::LossScales;
use super::outputs::{Outputs, RequestedOutputs, check_finite};

/// [`Inputs`] that live as long as the tape.
#[derive(Clone, Debug)]
pub struct OwnedInputs<R> {
    /// `B`
    pub batch: usize,
    /// `S`
    pub seq: usize,
    /// The word rows.
    pub words: OwnedWords<R>,
    /// Positions that the words take.
    pub word_len: usize,
    /// Rows after the words, `[B, S - S', W]`.
    pub dense: Vec<R>,
    /// `[B, S]`
    pub type_ids: Vec<i64>,
    /// `[B, S]`
    pub mask: Option<Vec<R>>,
}

/// [`Words`] that live as long as the tape.
#[derive(Clone, Debug)]
pub enum OwnedWords<R> {
    /// Rows of the word table, `[B, S']`.
    Ids(Vec<i64>),
    /// Given rows, `[B, S', W]`.
    Embeddings(Vec<R>),
}

impl<R: Real> OwnedInputs<R> {
    /// The inputs, borrowed.
    pub fn view(&self) -> Inputs<'_, R> {
        Inputs {
            batch: self.batch,
            seq: self.seq,
            words: match &self.words {
                OwnedWords::Ids(ids) => Words::Ids(ids),
                OwnedWords::Embeddings(rows) => Words::Embeddings(rows),
            },
            word_len: self.word_len,
            dense: &self.dense,
            type_ids: &self.type_ids,
            mask: self.mask.as_deref(),
        }
    }
}

/// What a forward pass kept. Belongs to the weights that it was recorded with.
#[derive(Debug)]
pub struct Tape<R: Real> {
    inputs: OwnedInputs<R>,
    training: Option<u64>,
    attention_mask: Arc<AttentionMask<R>>,
    /// What the embeddings' norm reads, `[B*S, W]`.
    sums: Buffer<R>,
    /// What each block reads, and the last one's result.
    streams: Vec<Buffer<R>>,
    /// Empty if blocks are to be computed again.
    records: Vec<BlockCache<R>>,
    pooled: Vec<R>,
}

impl<R: Real> Tape<R> {
    /// `[B, S, W]`, the shape of the word rows.
    pub fn row_shape(&self, config: &SparseMixerConfig) -> [usize; 3] {
        [self.inputs.batch, self.inputs.seq, config.embedding_width]
    }
}

/// A tape for one backward pass.
#[derive(Debug)]
pub enum TapeUse<'t, R: Real> {
    /// The tape stays whole.
    Kept(&'t Tape<R>),
    /// What each layer kept goes back to the scratch memory when the pass is through with it.
    Released(Box<Tape<R>>),
}

impl<'t, R: Real> From<&'t Tape<R>> for TapeUse<'t, R> {
    fn from(tape: &'t Tape<R>) -> Self {
        TapeUse::Kept(tape)
    }
}

impl<R: Real> From<Tape<R>> for TapeUse<'_, R> {
    fn from(tape: Tape<R>) -> Self {
        TapeUse::Released(Box::new(tape))
    }
}

impl<R: Real> Deref for TapeUse<'_, R> {
    type Target = Tape<R>;
    fn deref(&self) -> &Tape<R> {
        match self {
            TapeUse::Kept(tape) => tape,
            TapeUse::Released(tape) => tape,
        }
    }
}

impl<R: Real> TapeUse<'_, R> {
    /// Gives back what only blocks from number `layer` on and the pooler read.
    fn release_from(&mut self, layer: usize) {
        if let TapeUse::Released(tape) = self {
            tape.records.truncate(layer);
            tape.streams.truncate(layer);
        }
    }
}

/// Gradients of a scalar with respect to outputs; absent ones count as zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cotangents<'a, R> {
    /// `[B, rows, H]`, `rows` as in the outputs.
    pub sequence_output: Option<&'a [R]>,
    /// `[B, H]`
    pub pooled_output: Option<&'a [R]>,
    /// Of each block's output, `[B, S, H]` (the last `[B, rows, H]`); may be empty.
    pub encoder_outputs: &'a [Option<&'a [R]>],
}

impl<R: Real> SparseMixer<R> {
    /// As [`SparseMixer::forward`], keeping what [`SparseMixer::backward`] needs. With `recompute`, only what each block
    /// reads is kept, and blocks are computed again: less memory, more time, the same bits.
    pub fn forward_with_tape(
        &self,
        context: &Context<'_, R>,
        inputs: OwnedInputs<R>,
        training: Option<u64>,
        requested: RequestedOutputs,
        recompute: bool,
    ) -> Result<(Outputs<R>, Tape<R>)> {
        self.check(&inputs.view(), training)?;
        self.check_pooler(requested)?;
        if self.config.dtype == Dtype::Int8 {
            return Err(Error::value(
                "dtype",
                "got int8, expected float32, bfloat16 or float16: products of 8-bit numbers have no gradients",
            ));
        }
        let (batch, seq, hidden) = (inputs.batch, inputs.seq, self.config.hidden_size);
        if batch == 0 {
            return Err(Error::value(
                "inputs",
                "got an empty batch, expected at least one example to train on",
            ));
        }
        let all = batch * seq;
        let rows = self.output_rows(seq);
        let attention_mask = Arc::new(AttentionMask::new(&self.config, &inputs.view()));
        let pass = self.pass(context, (batch, seq), training, !recompute, &attention_mask);
        let mut outputs = Outputs::new(seq, rows);
        let mut sums = context.buffer(all * self.config.embedding_width);
        let mut streams = vec![context.buffer(all * hidden)];
        let mut records = Vec::new();
        self.embed.forward(&pass, &inputs.view(), &mut streams[0], Some(&mut sums))?;
        check_finite(requested, "the embeddings are", &streams[0])?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let mut out = context.buffer(all * hidden);
            let record = block.forward(&pass, &self.activation, &streams[layer], seq, &mut out)?;
            outputs.add(&record, requested);
            check_finite(requested, format_args!("block {layer} is"), &out)?;
            streams.push(out);
            if !recompute {
                records.push(record);
            }
        }
        let last = self.blocks.len();
        let mut pooled = Vec::new();
        if let Some(pooler) = self.pooler {
            pooled = alloc_zeroed(batch * hidden);
            pooler.forward(&pass, &streams[last], seq, &mut pooled)?;
            check_finite(requested, "the pooler is", &pooled)?;
        }
        if requested.encoder_outputs {
            outputs.encoder_outputs = streams[1..last].iter().map(|stream| stream.to_vec()).collect();
        }
        if requested.sequence_output || requested.encoder_outputs {
            let examples = streams[last].chunks_exact(seq * hidden);
            outputs.sequence_output = Some(examples.flat_map(|x| &x[..rows * hidden]).copied().collect());
        }
        outputs.pooled_output = requested.pooled_output.then(|| pooled.clone());
        Ok((outputs, Tape { inputs, training, attention_mask, sums, streams, records, pooled }))
    }

    /// Adds the gradients of all weights to `gradients` and returns those of the word rows (looked up, given or dense),
    /// `[B, S, W]`.
    ///
    /// `tape` must come from these weights. The scalar that is differentiated is the one whose gradients with respect to
    /// the outputs are `cotangents`, plus `aux_loss_weight` times the weighted auxiliary losses.
    pub fn backward<'t>(
        &self,
        context: &Context<'_, R>,
        tape: impl Into<TapeUse<'t, R>>,
        cotangents: &Cotangents<'_, R>,
        aux_loss_weight: f64,
        gradients: &mut Gradients<R>,
    ) -> Result<Vec<R>> {
        let mut tape = tape.into();
        let (batch, seq, hidden) = (tape.inputs.batch, tape.inputs.seq, self.config.hidden_size);
        let (all, last) = (batch * seq, self.blocks.len());
        self.check_cotangents(&tape, cotangents)?;
        let attention_mask = tape.attention_mask.clone();
        let pass = self.pass(context, (batch, seq), tape.training, true, &attention_mask);
        let scales = LossScales {
            z_loss: R::from_f64(aux_loss_weight * self.config.semantics().router_z_loss_weight),
            load_balancing: R::from_f64(aux_loss_weight * self.config.auxiliary_loss_factor),
        };
        let mut dy = context.buffer(all * hidden);
        dy.fill(R::ZERO);
        if let Some((pooler, dpooled)) = self.pooler.zip(cotangents.pooled_output) {
            pooler.backward(&pass, &tape.streams[last], &tape.pooled, dpooled, &mut dy, gradients)?;
        }
        if let Some(dsequence) = cotangents.sequence_output {
            add_rows(&mut dy, dsequence, batch);
        }
        // Whether anything that is differentiated depends on the block at hand; until then `dy` is zero.
        let mut depends = cotangents.pooled_output.is_some() || cotangents.sequence_output.is_some();
        for (layer, block) in self.blocks.iter().enumerate().rev() {
            tape.release_from(layer + 1);
            if let Some(Some(doutput)) = cotangents.encoder_outputs.get(layer) {
                add_rows(&mut dy, doutput, batch);
                depends = true;
            }
            depends |= aux_loss_weight != 0.0 && self.config.is_moe(layer);
            if !depends {
                continue;
            }
            let x = &tape.streams[layer];
            let again;
            let record = match tape.records.get(layer) {
                Some(record) => record,
                None => {
                    let mut out = context.buffer(all * hidden);
                    again = block.forward(&pass, &self.activation, x, seq, &mut out)?;
                    &again
                }
            };
            let mut dx = context.buffer(all * hidden);
            block.backward(&pass, &self.activation, x, record, &dy, scales, &mut dx, gradients)?;
            dy = dx;
        }
        tape.release_from(0);
        let mut drows = alloc_zeroed(all * self.config.embedding_width);
        if !depends {
            return Ok(drows);
        }
        self.embed.backward(&pass, &tape.inputs.view(), &tape.sums, &dy, &mut drows, gradients)?;
        Ok(drows)
    }

    /// Checks that `cotangents` have the sizes of the outputs that `tape` recorded.
    pub fn check_cotangents(&self, tape: &Tape<R>, cotangents: &Cotangents<'_, R>) -> Result<()> {
        let (batch, hidden) = (tape.inputs.batch, self.config.hidden_size);
        let seq = tape.inputs.seq;
        let (rows, layers) = (self.output_rows(seq), self.blocks.len());
        let check = |name: String, got: Option<usize>, expected: usize| match got {
            Some(got) if got != expected => {
                Err(Error::value(name, format!("got {got} values, expected {expected} as in the output")))
            }
            _ => Ok(()),
        };
        let lengths = |x: Option<&[R]>| x.map(<[R]>::len);
        check("sequence_output".into(), lengths(cotangents.sequence_output), batch * rows * hidden)?;
        let pooled = if self.pooler.is_some() { batch * hidden } else { 0 };
        check("pooled_output".into(), lengths(cotangents.pooled_output), pooled)?;
        let given = cotangents.encoder_outputs.len();
        if given > layers {
            return Err(Error::value(
                "encoder_outputs",
                format!("got {given} of them, expected at most {layers}"),
            ));
        }
        for (layer, output) in cotangents.encoder_outputs.iter().enumerate() {
            let rows = if layer + 1 == layers { rows } else { seq };
            check(format!("encoder_outputs[{layer}]"), lengths(*output), batch * rows * hidden)?;
        }
        Ok(())
    }
}

/// Adds the first rows of every example.
fn add_rows<R: Real>(to: &mut [R], rows: &[R], batch: usize) {
    let (to_len, len) = (to.len() / batch, rows.len() / batch);
    for (to, rows) in to.chunks_exact_mut(to_len).zip(rows.chunks_exact(len)) {
        to.iter_mut().zip(rows).for_each(|(t, r)| *t += *r);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{BATCH, SEQ, config, encoder, inputs, values, with_context};
    use super::*;
    use crate::network::RequestedOutputs;

    const ALL: RequestedOutputs = RequestedOutputs {
        sequence_output: true,
        pooled_output: true,
        encoder_outputs: true,
        routing: false,
        check_finite: false,
    };

    /// Names of the weights that backward from `cotangents` reaches, by what they begin with.
    fn reached(inputs: OwnedInputs<f64>, cotangents: &Cotangents<'_, f64>, aux: f64) -> Vec<&'static str> {
        let network = encoder::<f64>(config());
        let mut gradients = Gradients::zeros(network.weights().specs());
        with_context(|context| {
            let (_, tape) = network.forward_with_tape(context, inputs, None, ALL, false)?;
            network.backward(context, &tape, cotangents, aux, &mut gradients)
        });
        let mut parts = vec![
            "word_embeddings",
            "position_embedding",
            "type_embeddings",
            "embeddings/layer_norm",
            "transformer/layer_0",
            "transformer/layer_1",
            "transformer/layer_2",
            "pooler_transform",
        ];
        let flags = || network.weights().specs().iter().zip(gradients.reached());
        for &part in &parts {
            let own: Vec<bool> =
                flags().filter(|(spec, _)| spec.name.starts_with(part)).map(|(_, &flag)| flag).collect();
            assert!(own.iter().all(|&flag| flag == own[0]), "{part} is reached in part: {own:?}");
        }
        parts.retain(|part| flags().any(|(spec, &flag)| spec.name.starts_with(part) && flag));
        parts
    }

    #[test]
    fn backward_reaches_what_the_scalar_depends_on() {
        let rows: Vec<f64> = values(1, BATCH * SEQ * 8);
        let pooled: Vec<f64> = values(2, BATCH * 8);
        let embeddings =
            ["word_embeddings", "position_embedding", "type_embeddings", "embeddings/layer_norm"];
        let up_to = |blocks: usize| {
            let layers = ["transformer/layer_0", "transformer/layer_1", "transformer/layer_2"];
            [&embeddings[..], &layers[..blocks]].concat()
        };
        let none = Cotangents::default();
        assert_eq!(reached(inputs(), &none, 0.0), [""; 0]);
        assert_eq!(reached(inputs(), &none, 1.0), up_to(2), "the auxiliary loss of the experts in block 1");
        let pooled = Cotangents { pooled_output: Some(&pooled), ..none };
        assert_eq!(reached(inputs(), &pooled, 0.0), [&up_to(3)[..], &["pooler_transform"]].concat());
        let sequence = Cotangents { sequence_output: Some(&rows), ..none };
        assert_eq!(reached(inputs(), &sequence, 0.0), up_to(3));
        let outputs = [Some(&rows[..])];
        let first = Cotangents { encoder_outputs: &outputs, ..none };
        assert_eq!(reached(inputs(), &first, 0.0), up_to(1));
        // Word rows that are given come from no table.
        let given = OwnedInputs { words: OwnedWords::Embeddings(rows.clone()), ..inputs() };
        assert_eq!(reached(given, &first, 0.0), up_to(1)[1..]);
    }

    #[test]
    fn outputs_are_those_of_a_call_without_a_tape() {
        let network = encoder::<f32>(config());
        with_context(|context| {
            let plain = network.forward(context, &inputs().view(), None, ALL)?;
            for recompute in [false, true] {
                let (outputs, _) = network.forward_with_tape(context, inputs(), None, ALL, recompute)?;
                assert_eq!(outputs.sequence_output, plain.sequence_output);
                assert_eq!(outputs.pooled_output, plain.pooled_output);
                assert_eq!(outputs.encoder_outputs, plain.encoder_outputs);
            }
            Ok(())
        });
    }

    #[test]
    fn cotangents_of_another_shape_are_named() {
        let network = encoder::<f32>(config());
        let few = [0.0; 3];
        let outputs = [None, Some(&few[..])];
        let cases = [
            (Cotangents { sequence_output: Some(&few), ..Cotangents::default() }, "sequence_output: got 3"),
            (Cotangents { pooled_output: Some(&few), ..Cotangents::default() }, "pooled_output: got 3"),
            (Cotangents { encoder_outputs: &outputs, ..Cotangents::default() }, "encoder_outputs[1]: got 3"),
            (Cotangents { encoder_outputs: &[None; 4], ..Cotangents::default() }, "encoder_outputs: got 4"),
        ];
        with_context(|context| {
            let (_, tape) = network.forward_with_tape(context, inputs(), None, ALL, false)?;
            let mut gradients = Gradients::zeros(network.weights().specs());
            for (cotangents, expected) in cases {
                let error = network.backward(context, &tape, &cotangents, 1.0, &mut gradients);
                let error = error.expect_err(expected).to_string();
                assert!(error.starts_with(expected), "{error}");
            }
            assert!(gradients.reached().iter().all(|&flag| !flag), "nothing has been added to");
            Ok(())
        });
    }
}
