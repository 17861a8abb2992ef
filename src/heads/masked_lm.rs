//! Masked language modelling: hidden states of some positions to logits over the vocabulary, through the encoder's
//! own word table.
//!
//! ```text
//! h = norm(activation(x Wt + bt))      x: the rows of sequence_output at the positions, [P, H] -> [P, W]
//! z = h table^T + output_bias          [P, V]
//! loss = sum_p w_p (log sum_v exp(z_pv) - z_p,label) scale
//! ```
//! Source: `official.nlp.modeling.layers.MaskedLM`; section 10.1 of the paper's code with a tanh-form GELU.
//!
//! `z` is by far the largest array. It is made for [`CHUNK`] positions at a time, in blocks of [`BLOCK`] words
//! (`[words / BLOCK][P][BLOCK]`), so that each task owns the block it makes.

use serde::{Deserialize, Serialize};

use super::cross_entropy::{LossSums, check_labels, first_largest};
use super::word_blocks::{BLOCK, Targets, add_table_gradients, hidden_gradients, table_rows};
use crate::config::ActivationConfig;
use crate::error::{Error, Result};
use crate::kernels::{Dtype, Init, Panels, Real, log_sum_exp, matmul, pack_full_precision, prepare_lhs};
use crate::layers::{Activation, Dense, EPSILON, LayerNorm};
use crate::params::{GradientViewMut, Gradients, Role, Table, VectorKey, WeightList, Weights};
use crate::runtime::Context;
use crate::sys::{Place, alloc_zeroed, at};

/// Positions that are computed together.
const CHUNK: usize = 512;

/// Sizes and activation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskedLmConfig {
    /// `H`
    pub hidden_size: usize,
    /// `W`, the width of the word table.
    pub embedding_width: usize,
    /// `V`
    pub vocab_size: usize,
    /// Of the transform.
    pub activation: ActivationConfig,
    /// Added to the variance by its layer norm.
    #[serde(default = "epsilon")]
    pub layer_norm_epsilon: f64,
    /// Name before the weights' names.
    pub name: String,
}

fn epsilon() -> f64 {
    EPSILON
}

impl MaskedLmConfig {
    /// Checks activation and epsilon; the error names the argument.
    pub fn validate(&self) -> Result<()> {
        Activation::<f32>::from_config(&self.activation, None)?;
        if self.layer_norm_epsilon > 0.0 && self.layer_norm_epsilon.is_finite() {
            return Ok(());
        }
        let message = format!("got {}, expected a number above 0", self.layer_norm_epsilon);
        Err(Error::value("layer_norm_epsilon", message))
    }
}

/// The head's layers; the word table stays the encoder's.
#[derive(Clone, Debug)]
pub struct MaskedLm<R> {
    config: MaskedLmConfig,
    activation: Activation<R>,
    output_bias: VectorKey,
    transform: Dense,
    norm: LayerNorm,
}

/// Which rows are predicted, and what they should be.
#[derive(Clone, Copy, Debug)]
pub struct Predictions<'a, R> {
    /// Rows of the sequence output, in `0 .. B S`.
    pub rows: &'a [usize],
    /// The words.
    pub labels: &'a [i64],
    /// How much each counts; predictions of weight 0 are not computed.
    pub weights: &'a [R],
}

/// Where gradients are added to.
#[derive(Debug)]
pub struct MaskedLmGradients<'a, R: Real> {
    /// Of the head's weights.
    pub weights: &'a mut Gradients<R>,
    /// Of the word table, `[V, W]`, if it is requested.
    pub table: Option<&'a mut [R]>,
    /// Of the sequence output, `[B S, H]`.
    pub sequence: &'a mut [R],
    /// What the loss sum is multiplied by.
    pub scale: f64,
}

/// The transform of a chunk of positions.
struct Transformed<R> {
    /// Rows of the sequence output.
    x: Vec<R>,
    /// Before the activation.
    pre: Vec<R>,
    /// After it.
    active: Vec<R>,
    /// Mean and inverse deviation per row.
    stats: Vec<R>,
    /// After the norm.
    h: Vec<R>,
}

impl<R: Real> MaskedLm<R> {
    /// Declares the layers.
    ///
    /// # Errors
    /// [`Error::Value`] for an activation that is not known.
    pub fn new(list: &mut WeightList, config: &MaskedLmConfig) -> Result<Self> {
        let MaskedLmConfig { hidden_size, embedding_width, vocab_size, .. } = *config;
        let name = &config.name;
        Ok(MaskedLm {
            activation: Activation::from_config(&config.activation, None)?,
            output_bias: list.vector(format!("{name}/output_bias/bias"), Role::Bias, &[vocab_size]),
            transform: Dense::new(list, &format!("{name}/transform/dense"), hidden_size, embedding_width),
            norm: LayerNorm::new(
                list,
                &format!("{name}/transform/LayerNorm"),
                embedding_width,
                config.layer_norm_epsilon,
            ),
            config: config.clone(),
        })
    }

    /// Logits `[rows.len(), V]` of rows of `sequence` (`[B S, H]`).
    pub fn logits(
        &self,
        context: &Context<'_, R>,
        weights: &Weights<R>,
        table: &Table<R>,
        sequence: &[R],
        rows: &[usize],
    ) -> Result<Vec<R>> {
        self.check(table, sequence, rows)?;
        let _place = at(Place::Head);
        let vocab = self.config.vocab_size;
        let mut logits = alloc_zeroed(rows.len() * vocab);
        for (rows, logits) in rows.chunks(CHUNK).zip(logits.chunks_mut(CHUNK * vocab)) {
            let transformed = self.transform(context, weights, sequence, rows)?;
            let mut blocks = context.buffer(rows.len() * vocab);
            self.logit_blocks(context, weights, table, &transformed.h, &mut blocks, |_, _, _| {})?;
            for (block, values) in blocks.chunks(BLOCK * rows.len()).enumerate() {
                let width = values.len() / rows.len();
                for (row, values) in values.chunks_exact(width).enumerate() {
                    logits[row * vocab + block * BLOCK..][..width].copy_from_slice(values);
                }
            }
        }
        Ok(logits)
    }

    /// Loss, weight and correct predictions of `predictions`; adds to `gradients` if given.
    pub fn loss(
        &self,
        context: &Context<'_, R>,
        values: &Weights<R>,
        table: &Table<R>,
        sequence: &[R],
        predictions: Predictions<'_, R>,
        mut gradients: Option<MaskedLmGradients<'_, R>>,
    ) -> Result<LossSums> {
        let _place = at(Place::Head);
        let Predictions { rows, labels, weights } = predictions;
        self.check(table, sequence, rows)?;
        check_labels(labels, weights, rows.len(), self.config.vocab_size)?;
        let counted: Vec<usize> = (0..rows.len()).filter(|&p| weights[p] > R::ZERO).collect();
        let mut sums = LossSums::default();
        if let Some(gradients) = &mut gradients {
            // Also where no prediction counts.
            gradients.weights.reach_requested();
        }
        for chunk in counted.chunks(CHUNK) {
            let rows: Vec<usize> = chunk.iter().map(|&p| rows[p]).collect();
            let labels: Vec<usize> = chunk.iter().map(|&p| labels[p] as usize).collect();
            let weights: Vec<R> = chunk.iter().map(|&p| weights[p]).collect();
            let transformed = self.transform(context, values, sequence, &rows)?;
            let mut blocks = context.buffer(rows.len() * self.config.vocab_size);
            let normalisers = self.add_losses(
                context,
                values,
                table,
                &transformed.h,
                &labels,
                &weights,
                &mut blocks,
                &mut sums,
            )?;
            if let Some(gradients) = &mut gradients {
                let factors: Vec<R> =
                    weights.iter().map(|w| R::from_f64(w.to_f64() * gradients.scale)).collect();
                // z = h table^T + bias
                let targets = Targets { labels: &labels, normalisers: &normalisers, factors: &factors };
                let bias = gradients.weights.if_requested(self.output_bias).map(GradientViewMut::row_major);
                let table_gradient = gradients.table.as_deref_mut();
                add_table_gradients(context, &transformed.h, &mut blocks, targets, table_gradient, bias)?;
                let dh = hidden_gradients(context, table, &blocks, rows.len())?;
                // h = norm(activation(x Wt + bt))
                let dx = self.transform_backward(context, values, &transformed, &dh, gradients.weights)?;
                let hidden = self.config.hidden_size;
                for (&row, dx) in rows.iter().zip(dx.chunks_exact(hidden)) {
                    let out = &mut gradients.sequence[row * hidden..][..hidden];
                    out.iter_mut().zip(dx).for_each(|(sum, &d)| *sum += d);
                }
            }
        }
        Ok(sums)
    }

    fn check(&self, table: &Table<R>, sequence: &[R], rows: &[usize]) -> Result<()> {
        let MaskedLmConfig { hidden_size, embedding_width, vocab_size, .. } = self.config;
        if (table.rows(), table.width()) != (vocab_size, embedding_width) {
            let got = format!(
                "got [{}, {}], expected [{vocab_size}, {embedding_width}]",
                table.rows(),
                table.width()
            );
            return Err(Error::value("embedding_table", got));
        }
        let all = sequence.len() / hidden_size;
        match rows.iter().find(|&&row| row >= all) {
            Some(row) => Err(Error::Internal(format!("row {row} of {all}"))),
            None => Ok(()),
        }
    }

    fn transform(
        &self,
        context: &Context<'_, R>,
        weights: &Weights<R>,
        sequence: &[R],
        rows: &[usize],
    ) -> Result<Transformed<R>> {
        let (hidden, width) = (self.config.hidden_size, self.config.embedding_width);
        let x: Vec<R> =
            rows.iter().flat_map(|row| sequence[row * hidden..][..hidden].iter().copied()).collect();
        let mut pre = alloc_zeroed(rows.len() * width);
        self.transform.forward(context, weights, &x, &mut pre)?;
        let mut active = pre.clone();
        self.activation.forward(context.isa, &mut active, width)?;
        let mut h = alloc_zeroed(active.len());
        let mut stats = vec![R::ZERO; 2 * rows.len()];
        self.norm.forward(context.isa, weights, &active, &mut h, Some(&mut stats));
        Ok(Transformed { x, pre, active, stats, h })
    }

    /// Backward of [`MaskedLm::transform`].
    fn transform_backward(
        &self,
        context: &Context<'_, R>,
        weights: &Weights<R>,
        transformed: &Transformed<R>,
        dh: &[R],
        gradients: &mut Gradients<R>,
    ) -> Result<Vec<R>> {
        let Transformed { x, pre, active, stats, .. } = transformed;
        let mut d_pre = alloc_zeroed(dh.len());
        self.norm.backward(context.isa, weights, active, stats, dh, &mut d_pre, gradients);
        self.activation.backward(context.isa, pre, &mut d_pre, self.config.embedding_width)?;
        let mut dx = alloc_zeroed(x.len());
        self.transform.backward(context, weights, 0, x, &d_pre, &mut dx, gradients)?;
        Ok(dx)
    }

    /// Fills `blocks` with the logits of `h` (`[P, W]`) and calls `visit(block, logits of the block, index of its first
    /// word)` for each.
    fn logit_blocks(
        &self,
        context: &Context<'_, R>,
        weights: &Weights<R>,
        table: &Table<R>,
        h: &[R],
        blocks: &mut [R],
        visit: impl Fn(usize, &[R], usize) + Sync,
    ) -> Result<()> {
        let (vocab, width) = (self.config.vocab_size, self.config.embedding_width);
        let rows = h.len() / width;
        let isa = context.isa;
        let tasks = blocks.chunks_mut(BLOCK * rows).enumerate();
        context.each(tasks, |(block, out), scratch| {
            let first = block * BLOCK;
            let words = BLOCK.min(vocab - first);
            let ([panels, widened], [lhs, _]) = scratch.split([BLOCK * width, BLOCK * width]);
            let values = table_rows(table, first, words, widened);
            pack_full_precision(isa, values, width, true, width, 0..words, panels);
            let lhs = prepare_lhs(isa, h, rows, width, width, Dtype::Float32, lhs);
            let bias = Init::Bias(&weights.vector(self.output_bias)[first..first + words]);
            matmul(
                isa,
                rows,
                lhs,
                Panels::from_full_precision(panels, width, words),
                0..words,
                out,
                words,
                bias,
            );
            visit(block, out, first);
        })
    }

    /// Fills `blocks` with logits and adds to `sums`; returns the logarithm of the sum of exponentials of every row.
    fn add_losses(
        &self,
        context: &Context<'_, R>,
        values: &Weights<R>,
        table: &Table<R>,
        h: &[R],
        labels: &[usize],
        weights: &[R],
        blocks: &mut [R],
        sums: &mut LossSums,
    ) -> Result<Vec<R>> {
        let rows = labels.len();
        let count = self.config.vocab_size.div_ceil(BLOCK);
        // Per block and row: logarithm of the block's sum of exponentials, largest logit and its word.
        let partial: Vec<std::sync::OnceLock<Vec<(R, R, usize)>>> =
            (0..count).map(|_| Default::default()).collect();
        self.logit_blocks(context, values, table, h, blocks, |block, logits, first| {
            let words = logits.len() / rows;
            let mut normalisers = vec![R::ZERO; rows];
            log_sum_exp(context.isa, logits, words, &mut normalisers);
            let summaries = logits
                .chunks_exact(words)
                .zip(normalisers)
                .map(|(row, normaliser)| {
                    let best = first_largest(row);
                    (normaliser, row[best], first + best)
                })
                .collect();
            partial[block].get_or_init(|| summaries);
        })?;
        let mut normalisers = Vec::with_capacity(rows);
        let mut of_blocks = vec![R::ZERO; count];
        for (row, (&label, &weight)) in labels.iter().zip(weights).enumerate() {
            let mut best: Option<(R, usize)> = None;
            for (partial, of_block) in partial.iter().zip(&mut of_blocks) {
                let Some(summary) = partial.get() else {
                    return Err(Error::Internal("a block of words was not computed".into()));
                };
                let (normaliser, value, word) = summary[row];
                *of_block = normaliser;
                if best.is_none_or(|(largest, _)| value > largest) {
                    best = Some((value, word));
                }
            }
            let mut normaliser = [R::ZERO];
            log_sum_exp(context.isa, &of_blocks, count, &mut normaliser);
            let block = label / BLOCK;
            let words = BLOCK.min(self.config.vocab_size - block * BLOCK);
            let logit = blocks[block * BLOCK * rows + row * words + label % BLOCK];
            let weight = weight.to_f64();
            sums.loss += weight * (normaliser[0] - logit).to_f64();
            sums.weight += weight;
            sums.correct += if best.is_some_and(|(_, word)| word == label) { weight } else { 0.0 };
            normalisers.push(normaliser[0]);
        }
        Ok(normalisers)
    }
}
