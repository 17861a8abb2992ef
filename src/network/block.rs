//! One block: mix or attend, then feed forward or mixture of experts, with residuals and layer norms in either order.
//!
//! Post-norm (`norm_first = false`):
//! - `h = LN1(x + mix(x))`
//! - dense: `x' = LN2(h + ff(h))`; mixture: `x' = moe(h)`, no residual and no norm: a token that no expert picks leaves
//!   as zeros
//!
//! Pre-norm:
//! - `r = x + mix(LN1(x))`, attention keys and values from `x` itself; `h = LN2(r)`; `x' = r + ff(h)` or `r + moe(h)`
//!
//! Source: `TransformerScaffold` as the reference network drives it, checked by experiment.

use crate::config::{MixingMechanism, SparseMixerConfig};
use crate::error::Result;
use crate::kernels::{Isa, Real, add_in_place};
use crate::layers::{Activation, LayerNorm};
use crate::params::{Loader, Param, ParamMut, Spec};
use crate::runtime::{ActivationPanels, TaskScratch};

use super::attend::{Attend, KeysValues};
use super::feed_forward::FeedForward;
use super::mix_linear::MixLinear;
use super::mix_spectral::{MixFft, Spectrum, dft_matrices};
use super::moe::{Mixture, Moe, run_experts};
use super::pass::{Pass, RowBlock, Site, split_rows};

/// The first sublayer.
#[derive(Clone, Debug)]
pub enum Mix<R> {
    /// Learned matrices.
    Linear(MixLinear<R>),
    /// Fixed matrices: a discrete Fourier transform.
    Dft(MixLinear<R>),
    /// A fast Fourier transform.
    Fft(MixFft<R>),
    /// Self-attention.
    Attend(Attend<R>),
}

/// What the first sublayer made of all tokens, for row blocks to finish.
enum Mixed<'p, R: Real> {
    Panels(ActivationPanels<'p, R>),
    Spectrum(Spectrum<'p, R>),
    KeysValues(KeysValues<'p, R>),
}

/// The second sublayer.
#[derive(Clone, Debug)]
pub enum Feed<R> {
    /// The same weights for every token.
    Dense(FeedForward<R>),
    /// Experts.
    Moe(Moe<R>),
}

/// One block.
#[derive(Clone, Debug)]
pub struct Block<R> {
    /// The first sublayer.
    pub mix: Mix<R>,
    /// The second sublayer.
    pub feed: Feed<R>,
    /// `LN1`
    pub mix_norm: LayerNorm<R>,
    /// `LN2`; a post-norm mixture has none.
    pub feed_norm: Option<LayerNorm<R>>,
    norm_first: bool,
    layer: usize,
}

/// The weights of block `layer`.
pub fn specs(config: &SparseMixerConfig, layer: usize) -> Vec<Spec> {
    let prefix = format!("transformer/layer_{layer}");
    let (hidden, inner) = (config.hidden_size, config.inner_dim);
    let mut specs = Vec::new();
    if config.is_attention(layer) {
        specs.extend(super::attend::specs(&prefix, hidden, config.num_attention_heads));
    } else if config.mixing_mechanism == MixingMechanism::Linear {
        specs.extend(super::mix_linear::specs(&prefix, hidden, config.max_sequence_length));
    }
    let norm = |name: &str| Spec::layer_norm(&format!("{prefix}/{name}_layer_norm"), hidden);
    if config.is_moe(layer) {
        specs.extend(super::moe::specs(&prefix, hidden, inner, config.num_experts));
        specs.extend(norm("self_attention"));
    } else {
        specs.extend(norm("self_attention"));
        specs.extend(super::feed_forward::specs(&prefix, hidden, inner));
    }
    if !config.is_moe(layer) || config.norm_first {
        specs.extend(norm("output"));
    }
    specs
}

impl<R: Real> Mix<R> {
    fn load(loader: &mut Loader<'_, R>, config: &SparseMixerConfig, layer: usize) -> Result<Self> {
        let (hidden, seq) = (config.hidden_size, config.max_sequence_length);
        Ok(if config.is_attention(layer) {
            Mix::Attend(Attend::load(loader, hidden, config.num_attention_heads)?)
        } else if config.mixing_mechanism == MixingMechanism::Linear {
            Mix::Linear(MixLinear::load(loader, hidden, seq)?)
        } else if config.use_fft {
            Mix::Fft(MixFft::new(config.mixing_mechanism, seq, hidden)?)
        } else {
            Mix::Dft(dft_matrices(config.mixing_mechanism, seq, hidden, loader.storage.matrix))
        })
    }

    fn params(&self) -> Vec<Param<'_, R>> {
        match self {
            Mix::Linear(mix) => mix.params().into(),
            Mix::Dft(_) | Mix::Fft(_) => Vec::new(),
            Mix::Attend(attend) => attend.params(),
        }
    }

    fn params_mut(&mut self) -> Vec<ParamMut<'_, R>> {
        match self {
            Mix::Linear(mix) => mix.params_mut().into(),
            Mix::Dft(_) | Mix::Fft(_) => Vec::new(),
            Mix::Attend(attend) => attend.params_mut(),
        }
    }

    /// The part that needs all tokens: `q` is what queries and mixing read, `kv` what keys and values read.
    fn prepare<'p>(&self, pass: &'p Pass<'_, R>, q: &[R], kv: &[R]) -> Result<Mixed<'p, R>> {
        Ok(match self {
            Mix::Linear(mix) | Mix::Dft(mix) => Mixed::Panels(mix.prepare(pass, q)?),
            Mix::Fft(mix) => Mixed::Spectrum(mix.prepare(pass, q)?),
            Mix::Attend(attend) => Mixed::KeysValues(attend.prepare(pass, kv)?),
        })
    }

    /// The sublayer's output for the rows of `block`; `q` as in `prepare`, all rows.
    fn rows(
        &self,
        pass: &Pass<'_, R>,
        mixed: &Mixed<'_, R>,
        layer: usize,
        block: RowBlock,
        q: &[R],
        out: &mut [R],
        scratch: &mut TaskScratch<R>,
    ) {
        match (self, mixed) {
            (Mix::Linear(mix) | Mix::Dft(mix), Mixed::Panels(panels)) => {
                mix.rows(pass, panels, block, out, scratch)
            }
            (Mix::Fft(mix), Mixed::Spectrum(spectrum)) => mix.rows(spectrum, block, out),
            (Mix::Attend(attend), Mixed::KeysValues(state)) => {
                let q = block.of(q, pass.seq, pass.config.hidden_size);
                attend.rows(pass, state, layer, block, q, out, scratch);
            }
            _ => unreachable!("`mixed` is what this sublayer prepared"),
        }
    }
}

impl<R: Real> Block<R> {
    /// Takes the weights in the order of [`specs`].
    pub fn load(loader: &mut Loader<'_, R>, config: &SparseMixerConfig, layer: usize) -> Result<Self> {
        let hidden = config.hidden_size;
        let mix = Mix::load(loader, config, layer)?;
        let (feed, mix_norm) = if config.is_moe(layer) {
            let moe = Moe::load(loader, config)?;
            (Feed::Moe(moe), LayerNorm::load(loader, hidden)?)
        } else {
            let norm = LayerNorm::load(loader, hidden)?;
            (Feed::Dense(FeedForward::load(loader, hidden, config.inner_dim)?), norm)
        };
        let has_feed_norm = !config.is_moe(layer) || config.norm_first;
        let feed_norm = if has_feed_norm { Some(LayerNorm::load(loader, hidden)?) } else { None };
        Ok(Block { mix, feed, mix_norm, feed_norm, norm_first: config.norm_first, layer })
    }

    /// The weights in the order of [`specs`].
    pub fn params(&self) -> Vec<Param<'_, R>> {
        let mut params = self.mix.params();
        match &self.feed {
            Feed::Dense(dense) => {
                params.extend(self.mix_norm.params());
                params.extend(dense.params());
            }
            Feed::Moe(moe) => {
                params.extend(moe.params());
                params.extend(self.mix_norm.params());
            }
        }
        params.extend(self.feed_norm.iter().flat_map(LayerNorm::params));
        params
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> Vec<ParamMut<'_, R>> {
        let mut params = self.mix.params_mut();
        match &mut self.feed {
            Feed::Dense(dense) => {
                params.extend(self.mix_norm.params_mut());
                params.extend(dense.params_mut());
            }
            Feed::Moe(moe) => {
                params.extend(moe.params_mut());
                params.extend(self.mix_norm.params_mut());
            }
        }
        params.extend(self.feed_norm.iter_mut().flat_map(LayerNorm::params_mut));
        params
    }

    /// The block's output for the first `rows` rows of every example, `[B*rows, H]`, into `out`; `x` is `[B*S, H]`.
    ///
    /// Returns the mixture, if the block has one, for metrics.
    pub fn forward<'p>(
        &self,
        pass: &'p Pass<'_, R>,
        activation: &Activation<R>,
        x: &[R],
        rows: usize,
        out: &mut [R],
    ) -> Result<Option<Mixture<'p, R>>> {
        let (isa, seq, hidden) = (pass.context.isa, pass.seq, pass.config.hidden_size);
        // 1. what mixing needs of all tokens
        let mut normal = pass.context.buffer(if self.norm_first { x.len() } else { 0 });
        if self.norm_first {
            pass.each_block(&pass.row_blocks(seq), &mut normal, hidden, |block, out, _| {
                self.mix_norm.forward(isa, block.of(x, seq, hidden), out, None);
            })?;
        }
        let q = if self.norm_first { &normal[..] } else { x };
        let mixed = self.mix.prepare(pass, q, x)?;
        match &self.feed {
            Feed::Dense(dense) if !activation.is_custom() => {
                pass.each_block(&pass.row_blocks(rows), out, hidden, |block, out, scratch| {
                    // 2. out = x + mix
                    self.add_mix(pass, &mixed, block, q, x, out, scratch);
                    let n = out.len();
                    let lengths = [n, n, dense.scratch_len(activation, block.rows)];
                    let ([h, fed, slice], lhs) = scratch.split(lengths);
                    // 3. feed-forward and what surrounds it
                    self.normalise(isa, out, h);
                    dense.forward(isa, activation, h, block.rows, fed, slice, lhs);
                    self.finish_dense(pass, block, h, fed, out);
                })?;
                Ok(None)
            }
            Feed::Dense(dense) => {
                // As above, but with the sublayers one after the other: the custom activation runs in between.
                let blocks = pass.row_blocks(rows);
                let mut h = pass.context.buffer(pass.batch * rows * hidden);
                self.mix_all(pass, &mixed, &blocks, q, x, out, &mut h)?;
                let mut fed = pass.context.buffer(h.len());
                let segment = RowBlock { example: 0, first: 0, rows: pass.batch * rows };
                let layers = std::slice::from_ref(dense);
                let copy = |_, to: &mut [R]| to.copy_from_slice(&h);
                run_experts(pass, activation, layers, &[segment], copy, &mut fed, |_, _| {})?;
                pass.each_block(&blocks, out, hidden, |block, out, scratch| {
                    let ([own], _) = scratch.split([out.len()]);
                    own.copy_from_slice(block.of(&fed, rows, hidden));
                    self.finish_dense(pass, block, block.of(&h, rows, hidden), own, out);
                })?;
                Ok(None)
            }
            Feed::Moe(moe) => {
                // Routing looks at every token of a group, also where few rows are asked for.
                let blocks = pass.row_blocks(seq);
                let mut h = pass.context.buffer(x.len());
                let mut stream = pass.context.buffer(x.len());
                self.mix_all(pass, &mixed, &blocks, q, x, &mut stream, &mut h)?;
                let mixture = moe.forward(pass, activation, self.layer, &h)?;
                pass.each_block(&pass.row_blocks(rows), out, hidden, |block, out, _| {
                    if self.norm_first {
                        out.copy_from_slice(block.of(&stream, seq, hidden));
                    } else {
                        out.fill(R::ZERO);
                    }
                    mixture.add_rows(pass, block, out);
                })?;
                Ok(Some(mixture))
            }
        }
    }

    /// `out = x + dropout(mix)` for the rows of `block`.
    fn add_mix(
        &self,
        pass: &Pass<'_, R>,
        mixed: &Mixed<'_, R>,
        block: RowBlock,
        q: &[R],
        x: &[R],
        out: &mut [R],
        scratch: &mut TaskScratch<R>,
    ) {
        let hidden = pass.config.hidden_size;
        self.mix.rows(pass, mixed, self.layer, block, q, out, scratch);
        self.drop_rows(pass, Site::Mixing, block, out);
        add_in_place(pass.context.isa, out, block.of(x, pass.seq, hidden));
    }

    /// For all `blocks`: `stream = x + dropout(mix)`, and `h`, what the second sublayer reads.
    fn mix_all(
        &self,
        pass: &Pass<'_, R>,
        mixed: &Mixed<'_, R>,
        blocks: &[RowBlock],
        q: &[R],
        x: &[R],
        stream: &mut [R],
        h: &mut [R],
    ) -> Result<()> {
        let hidden = pass.config.hidden_size;
        let lengths = || blocks.iter().map(|block| block.rows * hidden);
        let h: Vec<_> = split_rows(h, lengths()).collect();
        let tasks = blocks.iter().zip(split_rows(stream, lengths())).zip(h);
        let tasks: Vec<_> = tasks.collect();
        pass.context.each(tasks.into_iter(), |((block, stream), h), scratch| {
            self.add_mix(pass, mixed, *block, q, x, stream, scratch);
            self.normalise(pass.context.isa, stream, h);
        })
    }

    /// What the second sublayer reads: the sum, normalised.
    fn normalise(&self, isa: Isa, sum: &[R], h: &mut [R]) {
        match &self.feed_norm {
            Some(norm) if self.norm_first => norm.forward(isa, sum, h, None),
            _ => self.mix_norm.forward(isa, sum, h, None),
        }
    }

    /// Puts residual and norm around the feed-forward output `fed`; `out` holds the sum after mixing.
    fn finish_dense(&self, pass: &Pass<'_, R>, block: RowBlock, h: &[R], fed: &mut [R], out: &mut [R]) {
        let isa = pass.context.isa;
        self.drop_rows(pass, Site::FeedForward, block, fed);
        match &self.feed_norm {
            Some(norm) if !self.norm_first => {
                add_in_place(isa, fed, h);
                norm.forward(isa, fed, out, None);
            }
            _ => add_in_place(isa, out, fed),
        }
    }

    /// Dropout of a sublayer's output, where the rules have it.
    fn drop_rows(&self, pass: &Pass<'_, R>, site: Site, block: RowBlock, out: &mut [R]) {
        if pass.config.rules().block_dropout
            && let Some(dropout) = pass.dropout(pass.config.output_dropout, site, self.layer)
        {
            dropout.apply(out, (block.example * pass.seq + block.first) * pass.config.hidden_size);
        }
    }
}
