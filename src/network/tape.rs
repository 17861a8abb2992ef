//! Training: a forward pass that keeps what backward needs, and the backward pass through the whole encoder.

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::config::SparseMixerConfig;
use crate::error::{Error, Result};
use crate::kernels::{Dtype, Real};
use crate::params::Gradients;
use crate::runtime::{Buffer, Context};
use crate::sys::{alloc_collect, alloc_room, alloc_zeroed};

use super::attention_mask::AttentionMask;
use super::block::{Block, BlockCache};
use super::encoder::SparseMixer;
use super::inputs::OwnedInputs;
use super::moe::mixture::LossScales;
use super::outputs::{Outputs, RequestedOutputs, check_finite};
use super::pass::Pass;

/// How a forward pass is recorded.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// Keep only what each block reads, and compute the blocks again: less memory, more time, the same bits.
    pub recompute: bool,
    /// What backward is to compute; `None` for the gradients of all weights.
    pub requested: Option<RequestedGradients>,
}

/// Which gradients backward is to compute.
#[derive(Clone, Debug)]
pub struct RequestedGradients {
    /// One flag per weight.
    pub weights: Vec<bool>,
    /// Whether also those of the word rows: looked up, given or dense.
    pub rows: bool,
}

/// What a forward pass kept. Belongs to the weights that it was recorded with.
#[derive(Debug)]
pub struct Tape<R: Real> {
    inputs: OwnedInputs<R>,
    training: Option<u64>,
    attention_mask: Arc<AttentionMask<R>>,
    requested: RequestedGradients,
    /// What the embeddings' norm reads, `[B*S, W]`; `None` if nothing is requested of the embeddings.
    sums: Option<Buffer<R>>,
    /// What each block reads; `None` below the lowest block that backward goes through.
    streams: Vec<Option<Buffer<R>>>,
    /// The last block's result, `[B*S, H]`, until backward is through with it.
    output: Option<Arc<Buffer<R>>>,
    /// `None` as well where blocks are to be computed again.
    records: Vec<Option<BlockCache<R>>>,
    pooled: Vec<R>,
}

impl<R: Real> Tape<R> {
    /// The last block's result, `[B*S, H]`.
    pub fn output(&self) -> Option<Arc<Buffer<R>>> {
        self.output.clone()
    }

    /// What block `layer` gave: the first `rows` of the `seq` rows of every example. `None` if it was not kept.
    pub fn block_output(&self, layer: usize, rows: usize) -> Option<Vec<R>> {
        let values: &[R] = match self.streams.get(layer + 1) {
            Some(stream) => stream.as_deref()?,
            None if layer + 1 == self.streams.len() => self.output.as_deref()?,
            None => return None,
        };
        let OwnedInputs { batch, seq, .. } = self.inputs;
        let width = values.len() / (batch * seq);
        let mut out = alloc_zeroed(batch * rows * width);
        copy_rows(&mut out, values, batch);
        Some(out)
    }

    /// `[B, S, W]`, the shape of the word rows.
    pub fn row_shape(&self, config: &SparseMixerConfig) -> [usize; 3] {
        [self.inputs.batch, self.inputs.seq, config.embedding_width()]
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
    /// What block `layer` read.
    fn stream(&self, layer: usize) -> Result<&[R]> {
        let stream = self.streams.get(layer).and_then(Option::as_deref);
        stream.ok_or_else(|| Error::Internal("a block without what it read".into()))
    }

    /// Gives back what only blocks from number `layer` on and the pooler read.
    fn release_from(&mut self, layer: usize) {
        if let TapeUse::Released(tape) = self {
            tape.records.truncate(layer);
            tape.streams.truncate(layer);
            tape.output = None;
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
    /// As [`SparseMixer::forward`], keeping what [`SparseMixer::backward`] needs.
    pub fn forward_with_tape(
        &self,
        context: &Context<'_, R>,
        inputs: OwnedInputs<R>,
        training: Option<u64>,
        requested: RequestedOutputs,
        recording: Recording,
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
        let wanted = recording.requested.unwrap_or_else(|| self.request_all());
        let (all, last) = (batch * seq, self.blocks.len());
        let (rows, lowest) = (self.output_rows(seq), self.lowest_block(&wanted));
        let attention_mask = Arc::new(self.attention_mask(context, &inputs.view())?);
        let pass = self.pass(context, (batch, seq), training, false, &attention_mask);
        let mut outputs = Outputs::new(seq, rows);
        let mut sums =
            self.goes_to_embeddings(&wanted).then(|| context.buffer(all * self.config.embedding_width()));
        let mut x = context.buffer(all * hidden);
        self.embed.forward(&pass, &inputs.view(), &mut x, sums.as_deref_mut())?;
        check_finite(requested, "the embeddings are", &x)?;
        let (mut streams, mut records) = (alloc_room(last), alloc_room(last));
        for (layer, block) in self.blocks.iter().enumerate() {
            let keep = layer >= lowest && !recording.recompute;
            let mut out = context.buffer(all * hidden);
            let record = block.forward(&Pass { keep, ..pass }, &self.activation, &x, seq, &mut out)?;
            outputs.add(context, &record, requested);
            check_finite(requested, format_args!("block {layer} is"), &out)?;
            if requested.encoder_outputs && layer + 1 < last {
                outputs.encoder_outputs.push(alloc_collect(out.iter().copied()));
            }
            let read = std::mem::replace(&mut x, out);
            streams.push((layer >= lowest).then_some(read));
            records.push(keep.then_some(record));
        }
        let mut pooled = Vec::new();
        if let Some(pooler) = self.pooler {
            pooled = alloc_zeroed(batch * hidden);
            pooler.forward(&pass, &x, seq, &mut pooled)?;
            check_finite(requested, "the pooler is", &pooled)?;
        }
        if requested.sequence_output || requested.encoder_outputs {
            let mut sequence = alloc_zeroed(batch * rows * hidden);
            copy_rows(&mut sequence, &x, batch);
            outputs.sequence_output = Some(sequence);
        }
        outputs.pooled_output = requested.pooled_output.then(|| alloc_collect(pooled.iter().copied()));
        let (output, requested) = (Some(Arc::new(x)), wanted);
        Ok((
            outputs,
            Tape { inputs, training, attention_mask, requested, sums, streams, output, records, pooled },
        ))
    }

    fn request_all(&self) -> RequestedGradients {
        RequestedGradients { weights: vec![true; self.weights.specs().len()], rows: true }
    }

    /// Whether backward goes through the embeddings.
    fn goes_to_embeddings(&self, requested: &RequestedGradients) -> bool {
        requested.rows || requested.weights[self.embed.weights()].contains(&true)
    }

    /// The lowest block that backward goes through; as many as there are if it goes through none.
    fn lowest_block(&self, requested: &RequestedGradients) -> usize {
        if self.goes_to_embeddings(requested) {
            return 0;
        }
        let is_requested = |block: &Block<R>| requested.weights[block.weights()].contains(&true);
        self.blocks.iter().position(is_requested).unwrap_or(self.blocks.len())
    }

    /// Adds the gradients that `tape` was recorded for to `gradients`, and returns that of the word rows (looked up, given
    /// or dense), `[B, S, W]`, if it is among them. Ends at the lowest layer of which something is requested.
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
    ) -> Result<Option<Vec<R>>> {
        let mut tape = tape.into();
        let (batch, seq, hidden) = (tape.inputs.batch, tape.inputs.seq, self.config.hidden_size);
        let (all, last) = (batch * seq, self.blocks.len());
        self.check_cotangents(&tape, cotangents)?;
        gradients.request(&tape.requested.weights);
        let (lowest, goes_to_embeddings) =
            (self.lowest_block(&tape.requested), self.goes_to_embeddings(&tape.requested));
        let goes_below_pooler = lowest < last || goes_to_embeddings;
        let attention_mask = tape.attention_mask.clone();
        let pass = self.pass(context, (batch, seq), tape.training, true, &attention_mask);
        let scales = LossScales {
            z_loss: R::from_f64(aux_loss_weight * self.config.semantics().router_z_loss_weight),
            load_balancing: R::from_f64(aux_loss_weight * self.config.auxiliary_loss_factor),
        };
        let mut dy = context.buffer(all * hidden);
        dy.fill(R::ZERO);
        if let Some((pooler, dpooled)) = self.pooler.zip(cotangents.pooled_output)
            && (goes_below_pooler || gradients.requests_any(self.pooler_weights()))
        {
            let x = tape.output.as_deref().map_or(&[][..], |output| output);
            pooler.backward(&pass, x, &tape.pooled, dpooled, &mut dy, gradients)?;
        }
        if let Some(dsequence) = cotangents.sequence_output {
            add_rows(&mut dy, dsequence, batch);
        }
        // Whether anything that is differentiated depends on the block at hand; until then `dy` is zero.
        let mut depends = cotangents.pooled_output.is_some() || cotangents.sequence_output.is_some();
        for (layer, block) in self.blocks.iter().enumerate().skip(lowest).rev() {
            tape.release_from(layer + 1);
            gradients.finish_from(block.weights().end);
            if let Some(Some(doutput)) = cotangents.encoder_outputs.get(layer) {
                add_rows(&mut dy, doutput, batch);
                depends = true;
            }
            depends |= aux_loss_weight != 0.0 && self.config.is_moe(layer);
            if !depends {
                continue;
            }
            let x = tape.stream(layer)?;
            let again;
            let record = match &tape.records[layer] {
                Some(record) => record,
                None => {
                    let mut out = context.buffer(all * hidden);
                    again = block.forward(&pass, &self.activation, x, seq, &mut out)?;
                    &again
                }
            };
            let mut dx = context.buffer(all * hidden);
            let needs_dx = layer > lowest || goes_to_embeddings;
            block.backward(&pass, &self.activation, x, record, &dy, scales, &mut dx, needs_dx, gradients)?;
            dy = dx;
        }
        tape.release_from(0);
        let Some(sums) = &tape.sums else {
            gradients.finish_from(0);
            return Ok(None);
        };
        let mut drows = tape.requested.rows.then(|| alloc_zeroed(all * self.config.embedding_width()));
        if depends {
            let mut unasked = context.buffer(if drows.is_some() { 0 } else { sums.len() });
            let drows = drows.as_deref_mut().unwrap_or(&mut unasked);
            self.embed.backward(&pass, &tape.inputs.view(), sums, &dy, drows, gradients)?;
        }
        gradients.finish_from(0);
        Ok(drows)
    }

    /// Numbers of the pooler's weights, which are the last of all.
    fn pooler_weights(&self) -> Range<usize> {
        self.blocks.last().map_or(0, |block| block.weights().end)..self.weights.specs().len()
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

/// Copies the first rows of every example.
fn copy_rows<R: Real>(to: &mut [R], rows: &[R], batch: usize) {
    let (to_len, len) = (to.len() / batch, rows.len() / batch);
    for (to, rows) in to.chunks_exact_mut(to_len).zip(rows.chunks_exact(len)) {
        to.copy_from_slice(&rows[..to_len]);
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
    use crate::network::{OwnedWords, RequestedOutputs};

    const ALL: RequestedOutputs = RequestedOutputs {
        sequence_output: true,
        pooled_output: true,
        encoder_outputs: true,
        routing: false,
        check_finite: false,
    };

    #[test]
    fn gradients_that_are_cleared_lazily_become_those_of_one_backward_pass() {
        let network = encoder::<f64>(config());
        let cotangent = values(3, BATCH * SEQ * network.config().hidden_size);
        let cotangents = Cotangents { sequence_output: Some(&cotangent), ..Cotangents::default() };
        let backward = |gradients: &mut Gradients<f64>| {
            with_context(|context| {
                let recording = Recording::default();
                let (_, tape) = network.forward_with_tape(context, inputs(), None, ALL, recording)?;
                network.backward(context, &tape, &cotangents, 1.0, gradients)
            });
            gradients.settle();
        };
        let [mut once, mut again] = [(); 2].map(|()| Gradients::zeros(network.weights().specs()));
        backward(&mut once);
        for weight in 0..network.weights().specs().len() {
            again.view_mut(weight).row_major().fill(f64::NAN);
        }
        again.clear_lazily();
        backward(&mut again);
        assert_eq!((again.memory(), again.reached()), (once.memory(), once.reached()));
        let single = once.memory().to_vec();
        backward(&mut again);
        assert!(again.memory().iter().zip(&single).all(|(sum, one)| (sum - 2.0 * one).abs() < 1e-12));
    }

    /// Names of the weights that backward from `cotangents` reaches, by what they begin with.
    fn reached(inputs: OwnedInputs<f64>, cotangents: &Cotangents<'_, f64>, aux: f64) -> Vec<&'static str> {
        let network = encoder::<f64>(config());
        let mut gradients = Gradients::zeros(network.weights().specs());
        with_context(|context| {
            let (_, tape) = network.forward_with_tape(context, inputs, None, ALL, Recording::default())?;
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
                let recording = Recording { recompute, requested: None };
                let (outputs, tape) = network.forward_with_tape(context, inputs(), None, ALL, recording)?;
                assert_eq!(outputs.sequence_output, plain.sequence_output);
                assert_eq!(tape.block_output(2, SEQ), plain.sequence_output);
                assert_eq!(tape.block_output(0, SEQ).as_ref(), plain.encoder_outputs.first());
                let first_rows = tape.block_output(1, 2).expect("it is kept");
                let of_example = |outputs: &[f32], rows| outputs[rows * 8..][..2 * 8].to_vec();
                assert_eq!(of_example(&first_rows, 2), of_example(&plain.encoder_outputs[1], SEQ));
                assert!(tape.block_output(3, SEQ).is_none());
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
            let (_, tape) = network.forward_with_tape(context, inputs(), None, ALL, Recording::default())?;
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
