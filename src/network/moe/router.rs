//! The router: `p = softmax(h Wr + br)` over experts, and from it which token goes to which expert.
//!
//! In 32 bits whatever the encoder's dtype, or (`router_dtype`) with every intermediate result rounded to bfloat16 as
//! the JAX code executes it; the backward pass treats rounding as the identity. Probabilities are used as they are: not
//! renormalised over the experts that a token goes to. Sources: `moe.ExpertsChooseMaskedRouter`, and
//! `routing.RouterWeights` of the JAX code.

use std::borrow::Cow;

use half::bf16;

use crate::config::RouterKind;
use crate::error::Result;
use crate::kernels::{Dtype, PackedMatrix, Real, axpy, log_sum_exp, softmax_backward, softmax_in_place};
use crate::layers::{Dense, Product};
use crate::params::{Gradients, WeightList};
use crate::random::{Purpose, RngStream, unit};
use crate::runtime::Buffer;

use super::assignment::{EMPTY, experts_choose, tokens_choose};
use super::grouping::Grouping;
use crate::network::pass::{Pass, RowBlock, split_rows};

/// The dense layer that gives the logits, `[H, E]`.
#[derive(Clone, Copy, Debug)]
pub struct Router {
    dense: Dense,
}

/// Which token goes to which expert, and what the router thought.
#[derive(Debug)]
pub struct Routing<R: Real> {
    /// Sizes.
    pub grouping: Grouping,
    experts: usize,
    /// Experts that a token can go to.
    pub choices: usize,
    /// `[G, T, E]`
    pub probabilities: Buffer<R>,
    /// `[G, E, C]`: token indices within the group, [`EMPTY`] where a slot is; ascending where experts choose, in the
    /// order of service where tokens do. No more slots than tokens.
    pub indices: Buffer<u32>,
    /// `[G, T]`: log-sum-exp of each token's logits.
    pub log_sum_exp: Buffer<R>,
    /// Mean over tokens of its square.
    pub z_loss: R,
    /// `[G, E]`: fraction of a group's tokens that ask for an expert, served or not; empty where experts choose.
    pub requested: Buffer<R>,
    /// `E^2` times the mean over groups and experts of (requested fraction) times (mean probability); 0 where experts
    /// choose. Uniform routing gives the number of choices.
    pub load_balancing_loss: R,
}

impl Router {
    /// Declares the router.
    pub fn new(list: &mut WeightList, prefix: &str, hidden: usize, experts: usize) -> Self {
        let dense = Dense::new(list, &format!("{prefix}/moe/router/router_weights"), hidden, experts);
        // A rounded router changes which tokens are picked.
        list.keep_full_precision(dense.kernel);
        Router { dense }
    }

    /// Routes all tokens of `h` (`[B*S, H]`) in block `layer`.
    pub fn route<R: Real>(self, pass: &Pass<'_, R>, layer: usize, h: &[R]) -> Result<Routing<R>> {
        let (context, isa, config) = (pass.context, pass.context.isa, pass.config);
        let (hidden, experts) = (config.hidden_size, config.num_experts);
        let grouping = Grouping::new(config, pass.batch, pass.seq, pass.training.is_some())?;
        let Grouping { groups, tokens, .. } = grouping;
        // 1. logits, their log-sum-exp, probabilities
        let all = groups * tokens;
        let mut probabilities = context.buffer(all * experts);
        let mut lse = context.buffer(all);
        let blocks = pass.row_blocks(pass.seq);
        let rounds = rounds_to_bfloat16(pass);
        let kernel = self.used_kernel(pass);
        let bias = pass.weights.vector(self.dense.bias);
        let product = Product::new(kernel.view(), (!rounds).then_some(bias));
        let outs = [(&mut probabilities[..], experts), (&mut lse[..], 1)];
        pass.each_block_of(&blocks, outs, |block, [logits, lse], scratch| {
            let ([changed], [lhs, _]) = scratch.split([block.rows * hidden]);
            let h = self.used_input(pass, layer, block, h, changed);
            product.rows(isa, h, block.rows, logits, lhs);
            if rounds {
                for (row, lse) in logits.chunks_exact_mut(experts).zip(lse) {
                    *lse = rounded_softmax(row, bias);
                }
            } else {
                log_sum_exp(isa, logits, experts, lse);
                softmax_in_place(isa, logits, experts);
            }
        })?;
        let square = |lse: &R| {
            if rounds { rounded(*lse * *lse).to_f64() } else { lse.to_f64() * lse.to_f64() }
        };
        // 2. the routing assignment of each group
        let slots = experts * grouping.slots();
        let mut indices = context.numbers(groups * slots);
        let asks = if config.router == RouterKind::TokensChoose { experts } else { 0 };
        let mut requested = context.buffer(groups * asks);
        let (mut z_loss, mut balance_loss) = (R::ZERO, R::ZERO);
        if !context.is_dry() {
            let mut fractions = requested.chunks_exact_mut(experts);
            let own_slots = split_rows(&mut indices, std::iter::repeat_n(slots, groups));
            let tasks = probabilities.chunks_exact(tokens * experts).zip(own_slots);
            let tasks = tasks.map(|(p, slots)| (p, slots, fractions.next()));
            context.each(tasks, |(p, slots, requested), _| match requested {
                None => experts_choose(p, experts, slots),
                Some(requested) => {
                    let (selected, prioritized) =
                        (config.num_selected_experts, config.batch_prioritized_routing);
                    tokens_choose(p, experts, selected, prioritized, slots, requested);
                }
            })?;
            // 3. what training adds to its loss
            z_loss = R::from_f64(lse.iter().fold(0f64, |sum, lse| sum + square(lse)) / all as f64);
            balance_loss = load_balancing_loss(&probabilities, &requested, grouping, experts);
        }
        Ok(Routing {
            grouping,
            experts,
            choices: if asks > 0 { config.num_selected_experts } else { experts },
            probabilities,
            indices,
            log_sum_exp: lse,
            z_loss,
            requested,
            load_balancing_loss: balance_loss,
        })
    }

    /// The kernel that products are made with.
    fn used_kernel<'a, R: Real>(self, pass: &Pass<'a, R>) -> Cow<'a, PackedMatrix<R>> {
        let kernel = self.dense.kernel(pass.weights, 0);
        if !rounds_to_bfloat16(pass) {
            return Cow::Borrowed(kernel);
        }
        let mut values = kernel.unpack();
        values.iter_mut().for_each(|value| *value = rounded(*value));
        Cow::Owned(PackedMatrix::pack(kernel.k(), kernel.n(), Dtype::Float32, &values))
    }

    /// Rows of `block` of `h` as products see them: multiplied by noise uniform on `[1 - jitter, 1 + jitter)` when
    /// training, and rounded; written to `changed` if either applies.
    fn used_input<'h, R: Real>(
        self,
        pass: &Pass<'_, R>,
        layer: usize,
        block: RowBlock,
        h: &'h [R],
        changed: &'h mut [R],
    ) -> &'h [R] {
        let h = block.of(h, pass.seq, pass.config.hidden_size);
        let noisy = pass.training.filter(|_| pass.config.jitter_noise > 0.0);
        let rounds = rounds_to_bfloat16(pass);
        if noisy.is_none() && !rounds {
            return h;
        }
        changed.copy_from_slice(h);
        if let Some(seed) = noisy {
            self.multiply_by_noise(pass, seed, layer, block, changed);
        }
        if rounds {
            changed.iter_mut().for_each(|value| *value = rounded(*value));
        }
        changed
    }

    fn multiply_by_noise<R: Real>(
        self,
        pass: &Pass<'_, R>,
        seed: u64,
        layer: usize,
        block: RowBlock,
        x: &mut [R],
    ) {
        let noise = pass.config.jitter_noise as f32;
        let first = (block.example * pass.seq + block.first) * pass.config.hidden_size;
        RngStream::new(seed, Purpose::RouterJitter, layer as u64).for_each_word(
            first as u64,
            x.len(),
            |i, word| {
                x[i] *= R::from_f32(1.0 - noise + 2.0 * noise * unit(word));
            },
        );
    }

    /// Backward of the probabilities and the z-loss of [`Router::route`]: writes `dh`, adds to the gradients of kernel and
    /// bias.
    ///
    /// `dp` (`[B*S, E]`) is the gradient of the probabilities and becomes that of the logits; `z_loss_scale` is the
    /// gradient of the mean squared log-sum-exp.
    pub fn backward<R: Real>(
        self,
        pass: &Pass<'_, R>,
        layer: usize,
        h: &[R],
        routing: &Routing<R>,
        dp: &mut [R],
        z_loss_scale: R,
        dh: &mut [R],
        gradients: &mut Gradients<R>,
    ) -> Result<()> {
        let (context, isa) = (pass.context, pass.context.isa);
        let (hidden, experts) = (pass.config.hidden_size, pass.config.num_experts);
        let all = pass.batch * pass.seq;
        let z_scale = z_loss_scale * R::from_f64(2.0 / all as f64);
        let mut seen = context.buffer(all * hidden);
        let transposed = context.transposed(&self.used_kernel(pass))?;
        let transposed = Product::transposed(&transposed);
        let blocks = pass.row_blocks(pass.seq);
        let outs = [(&mut *dp, experts), (&mut seen[..], hidden), (dh, hidden)];
        pass.each_block_of(&blocks, outs, |block, [dp, seen, dh], scratch| {
            let ([own], [lhs, _]) = scratch.split([seen.len()]);
            seen.copy_from_slice(self.used_input(pass, layer, block, h, own));
            let p = block.of(&routing.probabilities, pass.seq, experts);
            softmax_backward(isa, p, dp, experts);
            let lse = block.of(&routing.log_sum_exp, pass.seq, 1);
            for ((dp, p), &lse) in dp.chunks_exact_mut(experts).zip(p.chunks_exact(experts)).zip(lse) {
                axpy(isa, dp, z_scale * lse, p);
            }
            transposed.rows(isa, dp, block.rows, dh, lhs);
            if let Some(seed) = pass.training.filter(|_| pass.config.jitter_noise > 0.0) {
                self.multiply_by_noise(pass, seed, layer, block, dh);
            }
        })?;
        self.dense.add_gradients(context, pass.weights, 0, &seen, dp, gradients)
    }
}

/// Whether the router rounds every intermediate result.
fn rounds_to_bfloat16<R: Real>(pass: &Pass<'_, R>) -> bool {
    pass.config.router_dtype == Dtype::Bfloat16
}

/// The nearest bfloat16, ties to even.
fn rounded<R: Real>(x: R) -> R {
    R::from_f32(bf16::from_f32(x.to_f32()).to_f32())
}

/// Adds `bias` to the logits `row` (sums of products) and makes them probabilities, rounding every intermediate result to
/// bfloat16; returns their log-sum-exp.
fn rounded_softmax<R: Real>(row: &mut [R], bias: &[R]) -> R {
    for (logit, &bias) in row.iter_mut().zip(bias) {
        *logit = rounded(rounded(*logit) + rounded(bias));
    }
    let largest = row.iter().fold(row[0], |largest, &logit| largest.max(logit));
    row.iter_mut().for_each(|logit| *logit = rounded(rounded(*logit - largest).exp()));
    let sum = rounded(row.iter().fold(R::ZERO, |sum, &q| sum + q));
    row.iter_mut().for_each(|q| *q = rounded(*q / sum));
    rounded(rounded(sum.ln()) + largest)
}

/// See [`Routing::load_balancing_loss`].
fn load_balancing_loss<R: Real>(p: &[R], requested: &[R], grouping: Grouping, experts: usize) -> R {
    let Grouping { groups, tokens, .. } = grouping;
    let mut sum = 0f64;
    for (p, requested) in p.chunks_exact(tokens * experts).zip(requested.chunks_exact(experts)) {
        for (expert, requested) in requested.iter().enumerate() {
            let own = p[expert..].iter().step_by(experts);
            sum += requested.to_f64() * own.fold(0f64, |sum, p| sum + p.to_f64()) / tokens as f64;
        }
    }
    R::from_f64(sum * experts as f64 / groups as f64)
}

impl<R: Real> Routing<R> {
    /// `E`
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Tokens (in the whole batch) in the slots of `group` and `expert`, with their probabilities.
    pub fn tokens_of(&self, group: usize, expert: usize) -> impl Iterator<Item = (usize, R)> {
        let (tokens, slots) = (self.grouping.tokens, self.grouping.slots());
        let filled = &self.indices[(group * self.experts + expert) * slots..][..slots];
        filled.iter().filter(|&&index| index != EMPTY).map(move |&index| {
            let token = group * tokens + index as usize;
            (token, self.probabilities[token * self.experts + expert])
        })
    }

    /// Writes the gradient of the load-balancing loss, times `scale`, with respect to the probabilities to `dp`
    /// (`[B*S, E]`). The requested fractions are held constant.
    pub fn load_balancing_gradient(&self, scale: R, dp: &mut [R]) {
        let Grouping { groups, tokens, .. } = self.grouping;
        dp.fill(R::ZERO);
        let scale = scale * R::from_f64(self.experts as f64 / (groups * tokens) as f64);
        for (dp, requested) in
            dp.chunks_exact_mut(tokens * self.experts).zip(self.requested.chunks_exact(self.experts))
        {
            for dp in dp.chunks_exact_mut(self.experts) {
                dp.iter_mut().zip(requested).for_each(|(d, &fraction)| *d = scale * fraction);
            }
        }
    }
}
