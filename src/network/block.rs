//! One block: mix or attend, then feed forward or mixture of experts, with residuals and layer norms in either order.
//!
//! Post-norm (`norm_first = false`):
//! - `h = LN1(x + mix(x))`
//! - dense: `x' = LN2(h + ff(h))`; mixture: `x' = moe(h)`, no residual and no norm: a token that no expert picks leaves
//!   as zeros; or, by another rule, `x' = LN2(h + moe(h))`
//!
//! Pre-norm:
//! - `r = x + mix(LN1(x))`, attention keys and values from `x` itself; `h = LN2(r)`; `x' = r + ff(h)` or `r + moe(h)`
//!
//! Source: `TransformerScaffold` as the reference network drives it, checked by experiment.

use std::ops::Range;

use crate::config::SparseMixerConfig;
use crate::error::{Error, Result};
use crate::kernels::{Elementwise, Real, add_in_place};
use crate::layers::{Activation, LayerNorm};
use crate::params::{Gradients, WeightList};
use crate::random::Purpose;
use crate::runtime::{Buffer, TaskScratch};
use crate::sys::{Place, Work, alloc_collect, at, timed};

use super::feed_forward::{FeedForward, Run};
use super::mixing::{Mix, MixingCache, MixingState};
use super::moe::mixture::{LossScales, Mixture, Moe};
use super::norm::norm_backward;
use super::pass::{MAX_BLOCK, Pass, RowBlock, RowGroup};
use super::position_bias::PositionBias;

/// The second sublayer.
#[derive(Clone, Copy, Debug)]
enum FeedForwardKind {
    /// The same weights for every token.
    Dense(FeedForward),
    /// Experts.
    Moe(Moe),
}

/// What a forward pass leaves behind: the mixture's routing for metrics, and, if the pass keeps it, what backward needs.
#[derive(Debug)]
pub struct BlockCache<R: Real> {
    /// What mixing made of all tokens, as far as it is needed again.
    mixed: Option<MixingCache<R>>,
    /// `x + mix`, `[B*S, H]`
    sum: Option<Buffer<R>>,
    /// What the dense activation is applied to, `[B*S, F]`.
    pre: Option<Buffer<R>>,
    /// What `LN2` reads in post-norm blocks, `[B*S, H]`.
    fed: Option<Buffer<R>>,
    /// The routed tokens.
    pub mixture: Option<Mixture<R>>,
}

impl<R: Real> Default for BlockCache<R> {
    fn default() -> Self {
        BlockCache { mixed: None, sum: None, pre: None, fed: None, mixture: None }
    }
}

/// One block.
#[derive(Clone, Debug)]
pub struct Block<R> {
    /// The first sublayer.
    pub mix: Mix<R>,
    /// The second sublayer.
    feed: FeedForwardKind,
    /// `LN1`
    mix_norm: LayerNorm,
    /// `LN2`; a post-norm mixture without residual has none.
    feed_norm: Option<LayerNorm>,
    norm_first: bool,
    layer: usize,
    /// Numbers of all weights of the block, and how many of them, the first, are the first sublayer's.
    weights: Range<usize>,
    mix_weights: usize,
}

impl<R: Real> Block<R> {
    /// Declares block `layer`.
    pub fn new(
        list: &mut WeightList,
        config: &SparseMixerConfig,
        layer: usize,
        position_bias: Option<PositionBias>,
    ) -> Self {
        let (prefix, hidden) = (format!("transformer/layer_{layer}"), config.hidden_size);
        let norm = |list: &mut WeightList, name: &str| {
            LayerNorm::new(list, &format!("{prefix}/{name}_layer_norm"), hidden, config.layer_norm_epsilon)
        };
        let first = list.specs().len();
        let mix = Mix::new(list, &prefix, config, layer, position_bias);
        let mix_weights = list.specs().len() - first;
        // Keras lists the first norm before a dense layer and after experts.
        let (feed, mix_norm) = if config.is_moe(layer) {
            let moe = Moe::new(list, &prefix, config);
            (FeedForwardKind::Moe(moe), norm(list, "self_attention"))
        } else {
            let norm = norm(list, "self_attention");
            (FeedForwardKind::Dense(FeedForward::new(list, &prefix, hidden, config.inner_dim)), norm)
        };
        let has_feed_norm = !config.is_moe(layer) || config.norm_first || config.semantics().moe_residual;
        let feed_norm = has_feed_norm.then(|| norm(list, "output"));
        let (norm_first, weights) = (config.norm_first, first..list.specs().len());
        Block { mix, feed, mix_norm, feed_norm, norm_first, layer, weights, mix_weights }
    }

    /// Numbers of the block's weights.
    pub fn weights(&self) -> Range<usize> {
        self.weights.clone()
    }

    /// Whether `gradients` are to have those of the first sublayer or of the norm before it.
    fn requests_mixing(&self, gradients: &Gradients<R>) -> bool {
        let first = self.weights.start;
        gradients.requests_any(first..first + self.mix_weights)
            || self.norm_first && self.mix_norm.is_requested(gradients)
    }

    /// The block's output for the first `rows` rows of every example, `[B*rows, H]`, into `out`; `x` is `[B*S, H]`.
    ///
    /// When the pass keeps what backward needs, `rows` must be `S`.
    pub fn forward(
        &self,
        pass: &Pass<'_, R>,
        activation: &Activation<R>,
        x: &[R],
        rows: usize,
        out: &mut [R],
    ) -> Result<BlockCache<R>> {
        let (isa, weights) = (pass.context.isa, pass.weights);
        let (seq, hidden) = (pass.seq, pass.config.hidden_size);
        // 1. what mixing needs of all tokens
        let normal = self.mix_input(pass, x)?;
        let q = normal.as_deref().unwrap_or(x);
        if let (FeedForwardKind::Dense(dense), Activation::Elementwise(function)) = (&self.feed, activation)
            && !pass.keep
            && pass.are_few(pass.batch * rows)
        {
            self.few_rows(pass, *dense, *function, q, x, rows, out)?;
            return Ok(BlockCache::default());
        }
        let mixed = self.mix.prepare(pass, q, x)?;
        let blocks = pass.row_blocks(rows);
        match &self.feed {
            FeedForwardKind::Dense(dense) if !activation.is_custom() && !pass.keep => {
                let dense = dense.products(weights, 0);
                let groups = pass.groups(&blocks);
                pass.each_group_of(&groups, [(out, hidden)], |group, [out], scratch| {
                    // 2. out = x + mix
                    self.add_mix(pass, &mixed, group, q, x, out, [&mut [], &mut []], scratch);
                    let _place = at(Place::FeedForward);
                    let n = out.len();
                    let lengths = [n, n, dense.scratch_len(activation, group.rows)];
                    let ([h, fed, slice], lhs) = scratch.split(lengths);
                    // 3. feed-forward and what surrounds it
                    self.feed_input_norm().forward(isa, weights, out, h, None);
                    dense.forward(isa, activation, h, group.rows, fed, slice, lhs, None);
                    self.finish_dense(pass, group, h, fed, out);
                })?;
                Ok(BlockCache::default())
            }
            FeedForwardKind::Dense(dense) => {
                // The same, one sublayer after the other: what they read is kept, or a custom activation runs in between.
                let all = pass.batch * rows;
                let mut sum = pass.context.buffer(all * hidden);
                let mut h = pass.context.buffer(all * hidden);
                let kept = self.mix_all(pass, &mixed, &blocks, q, x, &mut sum, &mut h)?;
                let _place = at(Place::FeedForward);
                let mut fed = pass.context.buffer(all * hidden);
                let mut pre = pass.training_buffer(all * pass.config.inner_dim);
                let listed = pass.context.enough_tasks().saturating_mul(MAX_BLOCK).min(all);
                let segments = Pass::<R>::fixed_blocks(listed);
                let copy = |segment: RowBlock, to: &mut [R]| to.copy_from_slice(segment.of(&h, all, hidden));
                let run = Run { activation, layers: *dense, segments: &segments };
                run.forward(pass, copy, &mut fed, pre.as_deref_mut(), |_, _| {})?;
                let _time = timed(Work::Residual);
                pass.each_block_of(&blocks, [(out, hidden), (&mut fed, hidden)], |block, [out, fed], _| {
                    out.copy_from_slice(block.of(&sum, rows, hidden));
                    let group = RowGroup { blocks: &[block], rows: block.rows };
                    self.finish_dense(pass, group, block.of(&h, rows, hidden), fed, out);
                })?;
                let fed = (!self.norm_first).then_some(fed);
                Ok(BlockCache {
                    mixed: self.keep(pass, mixed, kept),
                    sum: Some(sum),
                    pre,
                    fed,
                    mixture: None,
                })
            }
            FeedForwardKind::Moe(moe) => {
                // Routing looks at every token of a group, also where few rows are asked for.
                let mut h = pass.context.buffer(x.len());
                let mut sum = pass.context.buffer(x.len());
                let kept = self.mix_all(pass, &mixed, &pass.row_blocks(seq), q, x, &mut sum, &mut h)?;
                let mixed = self.keep(pass, mixed, kept);
                let mixture = moe.forward(pass, activation, self.layer, &h, rows)?;
                let _time = timed(Work::Residual);
                let Some(norm) = self.post_norm() else {
                    pass.each_block(&blocks, out, hidden, |block, out, _| {
                        if self.norm_first {
                            out.copy_from_slice(block.of(&sum, seq, hidden));
                        } else {
                            out.fill(R::ZERO);
                        }
                        mixture.add_rows(pass, block, out);
                    })?;
                    return Ok(BlockCache {
                        mixed,
                        sum: Some(sum),
                        mixture: Some(mixture),
                        ..BlockCache::default()
                    });
                };
                let mut fed = pass.context.buffer(out.len());
                pass.each_block_of(&blocks, [(out, hidden), (&mut fed, hidden)], |block, [out, fed], _| {
                    fed.fill(R::ZERO);
                    mixture.add_rows(pass, block, fed);
                    add_in_place(isa, fed, block.of(&h, seq, hidden));
                    norm.forward(isa, weights, fed, out, None);
                })?;
                Ok(BlockCache {
                    mixed,
                    sum: Some(sum),
                    fed: Some(fed),
                    mixture: Some(mixture),
                    ..BlockCache::default()
                })
            }
        }
    }

    /// [`Block::forward`] of a dense block for few rows: one step after the other, the columns of each shared out.
    fn few_rows(
        &self,
        pass: &Pass<'_, R>,
        dense: FeedForward,
        function: Elementwise,
        q: &[R],
        x: &[R],
        rows: usize,
        out: &mut [R],
    ) -> Result<()> {
        let (context, hidden) = (pass.context, pass.config.hidden_size);
        let examples = alloc_collect((0..pass.batch).map(|example| RowBlock { example, first: 0, rows }));
        match self.mix.few_rows(pass, self.layer, q, x, rows, out) {
            Some(done) => done?,
            None => {
                let mixed = self.mix.prepare(pass, q, x)?;
                let blocks = pass.row_blocks(rows);
                pass.each_group_of(&pass.groups(&blocks), [(&mut *out, hidden)], |group, [out], scratch| {
                    self.mix.rows(pass, &mixed, self.layer, group, q, out, [&mut [], &mut []], scratch);
                })?;
            }
        }
        let _place = at(Place::FeedForward);
        let all = RowGroup { blocks: &examples, rows: pass.batch * rows };
        let (mut h, mut fed) = (context.buffer(out.len()), context.buffer(out.len()));
        self.add_input(pass, all, x, out);
        self.feed_input_norm().forward(context.isa, pass.weights, out, &mut h, None);
        dense.products(pass.weights, 0).few_rows(context, function, &h, all.rows, &mut fed)?;
        self.finish_dense(pass, all, &h, &mut fed, out);
        Ok(())
    }

    /// Backward of the block: writes `dx`, adds to the gradients.
    ///
    /// `x` is what `forward` read, `record` what it kept, `dy` the gradient of its result, all `[B*S, H]`. Without
    /// `needs_dx`, the contents of `dx` are unspecified afterwards.
    pub fn backward(
        &self,
        pass: &Pass<'_, R>,
        activation: &Activation<R>,
        x: &[R],
        record: &BlockCache<R>,
        dy: &[R],
        scales: LossScales<R>,
        dx: &mut [R],
        needs_dx: bool,
        gradients: &mut Gradients<R>,
    ) -> Result<()> {
        let (context, isa, hidden) = (pass.context, pass.context.isa, pass.config.hidden_size);
        let all = pass.batch * pass.seq;
        let blocks = pass.row_blocks(pass.seq);
        let Some(sum) = &record.sum else {
            return Err(Error::Internal("a block without its training record".into()));
        };
        let _time = timed(Work::Residual);
        // 3. what surrounds the feed-forward: its result's gradient
        let mut normal = context.buffer(all * hidden);
        let post_norm = self.post_norm();
        let dfed = if let (Some(norm), Some(fed)) = (post_norm, &record.fed) {
            norm_backward(pass, norm, fed, dy, &mut normal, gradients)?;
            &normal[..]
        } else {
            dy
        };
        // 3. the second sublayer, on what it read
        let mut h = context.buffer(all * hidden);
        pass.each_block(&blocks, &mut h, hidden, |block, h, _| {
            self.feed_input_norm().forward(isa, pass.weights, block.of(sum, pass.seq, hidden), h, None);
        })?;
        let mut dh = context.buffer(all * hidden);
        match (&self.feed, &record.pre, &record.mixture) {
            (FeedForwardKind::Dense(dense), Some(pre), _) => {
                let mut dropped = context.buffer(all * hidden);
                pass.each_block(&blocks, &mut dropped, hidden, |block, out, _| {
                    out.copy_from_slice(block.of(dfed, pass.seq, hidden));
                    self.drop_rows(pass, Purpose::FeedForwardDropout, block, out);
                })?;
                let _place = at(Place::FeedForwardBackward);
                dense.backward(pass, activation, 0, &h, pre, &dropped, &mut dh, gradients)?;
            }
            (FeedForwardKind::Moe(moe), _, Some(mixture)) => {
                let layer = self.layer;
                moe.backward(pass, activation, layer, &h, mixture, dfed, scales, &mut dh, gradients)?;
            }
            _ => return Err(Error::Internal("a block without its training record".into())),
        }
        if post_norm.is_some() {
            pass.each_block(&blocks, &mut dh, hidden, |block, dh, _| {
                add_in_place(isa, dh, block.of(dfed, pass.seq, hidden));
            })?;
        }
        // 2. sum = x + dropped(mix): its gradient
        let mut dsum = normal;
        norm_backward(pass, self.feed_input_norm(), sum, &dh, &mut dsum, gradients)?;
        if !needs_dx && !self.requests_mixing(gradients) {
            return Ok(());
        }
        if self.norm_first {
            pass.each_block(&blocks, &mut dsum, hidden, |block, dsum, _| {
                add_in_place(isa, dsum, block.of(dy, pass.seq, hidden));
            })?;
        }
        let mut dmix = dh;
        pass.each_block_of(&blocks, [(&mut dmix, hidden), (&mut *dx, hidden)], |block, [dmix, dx], _| {
            dmix.copy_from_slice(block.of(&dsum, pass.seq, hidden));
            dx.copy_from_slice(dmix);
            self.drop_rows(pass, Purpose::MixingDropout, block, dmix);
        })?;
        // 1. mixing, and the norm before it
        let normal = self.mix_input(pass, x)?;
        let q = normal.as_deref().unwrap_or(x);
        let mut dq = h;
        self.mix.backward(pass, self.layer, q, x, record.mixed.as_ref(), &dmix, &mut dq, dx, gradients)?;
        if self.norm_first {
            norm_backward(pass, self.mix_norm, x, &dq, &mut dsum, gradients)?;
        }
        let direct = if self.norm_first { &dsum } else { &dq };
        pass.each_block(&blocks, dx, hidden, |block, dx, _| {
            add_in_place(isa, dx, block.of(direct, pass.seq, hidden));
        })
    }

    /// What mixing reads: the normalised stream in pre-norm blocks; `None` for the stream itself.
    fn mix_input(&self, pass: &Pass<'_, R>, x: &[R]) -> Result<Option<Buffer<R>>> {
        if !self.norm_first {
            return Ok(None);
        }
        let hidden = pass.config.hidden_size;
        let mut normal = pass.context.buffer(x.len());
        pass.each_block(&pass.row_blocks(pass.seq), &mut normal, hidden, |block, out, _| {
            let x = block.of(x, pass.seq, hidden);
            self.mix_norm.forward(pass.context.isa, pass.weights, x, out, None);
        })?;
        Ok(Some(normal))
    }

    /// What backward needs of `mixed`, if this pass keeps anything.
    fn keep(
        &self,
        pass: &Pass<'_, R>,
        mixed: MixingState<'_, R>,
        rows: [Buffer<R>; 2],
    ) -> Option<MixingCache<R>> {
        if pass.keep { self.mix.keep(mixed, rows) } else { None }
    }

    /// `LN2` of post-norm blocks that have it.
    fn post_norm(&self) -> Option<LayerNorm> {
        self.feed_norm.filter(|_| !self.norm_first)
    }

    /// The norm whose result the second sublayer reads.
    fn feed_input_norm(&self) -> LayerNorm {
        self.feed_norm.filter(|_| self.norm_first).unwrap_or(self.mix_norm)
    }

    /// `out = x + dropout(mix)` for the rows of `group`.
    fn add_mix(
        &self,
        pass: &Pass<'_, R>,
        mixed: &MixingState<'_, R>,
        group: RowGroup<'_>,
        q: &[R],
        x: &[R],
        out: &mut [R],
        kept: [&mut [R]; 2],
        scratch: &mut TaskScratch<R>,
    ) {
        self.mix.rows(pass, mixed, self.layer, group, q, out, kept, scratch);
        self.add_input(pass, group, x, out);
    }

    /// `out = x + dropout(out)` for the rows of `group`, of which `out` holds the mixing.
    fn add_input(&self, pass: &Pass<'_, R>, group: RowGroup<'_>, x: &[R], out: &mut [R]) {
        let hidden = pass.config.hidden_size;
        let _time = timed(Work::Residual);
        for (block, out) in group.split(out, hidden) {
            self.drop_rows(pass, Purpose::MixingDropout, block, out);
            add_in_place(pass.context.isa, out, block.of(x, pass.seq, hidden));
        }
    }

    /// For all `blocks`: `sum = x + dropout(mix)`, and `h`, what the second sublayer reads. Returns what mixing keeps.
    fn mix_all(
        &self,
        pass: &Pass<'_, R>,
        mixed: &MixingState<'_, R>,
        blocks: &[RowBlock],
        q: &[R],
        x: &[R],
        sum: &mut [R],
        h: &mut [R],
    ) -> Result<[Buffer<R>; 2]> {
        let (hidden, width) = (pass.config.hidden_size, self.mix.kept_width(pass));
        let mut kept = [(); 2].map(|()| pass.context.buffer(sum.len() / hidden * width));
        let [first, second] = &mut kept;
        let outs = [(sum, hidden), (h, hidden), (first, width), (second, width)];
        pass.each_group_of(&pass.groups(blocks), outs, |group, [sum, h, first, second], scratch| {
            self.add_mix(pass, mixed, group, q, x, sum, [first, second], scratch);
            self.feed_input_norm().forward(pass.context.isa, pass.weights, sum, h, None);
        })?;
        Ok(kept)
    }

    /// Puts residual and norm around the feed-forward output `fed`; `out` holds the sum after mixing.
    fn finish_dense(&self, pass: &Pass<'_, R>, group: RowGroup<'_>, h: &[R], fed: &mut [R], out: &mut [R]) {
        let _time = timed(Work::Residual);
        let isa = pass.context.isa;
        for (block, fed) in group.split(fed, pass.config.hidden_size) {
            self.drop_rows(pass, Purpose::FeedForwardDropout, block, fed);
        }
        match &self.feed_norm {
            Some(norm) if !self.norm_first => {
                add_in_place(isa, fed, h);
                norm.forward(isa, pass.weights, fed, out, None);
            }
            _ => add_in_place(isa, out, fed),
        }
    }

    /// Dropout of a sublayer's output, where the rules have it.
    fn drop_rows(&self, pass: &Pass<'_, R>, purpose: Purpose, block: RowBlock, out: &mut [R]) {
        let Some(dropout) = pass.dropout(pass.config.output_dropout, purpose, self.layer) else { return };
        let semantics = pass.config.semantics();
        let drops = if matches!(purpose, Purpose::MixingDropout) {
            semantics.mixing_dropout
        } else {
            semantics.feed_forward_dropout
        };
        if drops {
            dropout.apply(
                pass.context.isa,
                out,
                (block.example * pass.seq + block.first) * pass.config.hidden_size,
            );
        }
    }
}

#[cfg(test)]
mod tests;
