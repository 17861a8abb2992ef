//! The router: `p = softmax(h Wr + br)` over experts, and from it which token goes to which expert.
//!
//! In 32 bits whatever the encoder's dtype, or (`router_dtype`) with every intermediate result rounded to bfloat16 as
//! the JAX code executes it; the backward pass takes roundings for the identity. Probabilities are used as they are: not
//! renormalised over the experts that a token goes to. Sources: `moe.ExpertsChooseMaskedRouter`, and
//! `routing.RouterWeights` of the JAX code.

use std::borrow::Cow;

use half::bf16;

use crate::config::RouterKind;
use crate::error::{Error, Result};
use crate::kernels::{
    Dtype, Init, PackedMatrix, Real, axpy, log_sum_exp, matmul, prepare_lhs, softmax_backward,
    softmax_in_place,
};
use crate::layers::{bias_gradient, kernel_gradient};
use crate::params::{Loader, Param, ParamMut, Spec};
use crate::random::{Purpose, RngStream, unit};
use crate::runtime::Buffer;

use super::assignment::{EMPTY, experts_choose, tokens_choose};
use super::grouping::Grouping;
use crate::network::pass::{Pass, RowBlock, split_rows};

/// Router weights.
#[derive(Clone, Debug)]
pub struct Router<R> {
    /// `[H, E]`
    pub kernel: PackedMatrix<R>,
    /// `[E]`
    pub bias: Vec<R>,
}

/// Which token goes to which expert, and what the router thought.
#[derive(Debug)]
pub struct Routing<R: Real> {
    /// Sizes.
    pub grouping: Grouping,
    experts: usize,
    /// `[G, T, E]`
    pub probabilities: Buffer<R>,
    /// `[G, E, C]`: token indices within the group, [`EMPTY`] where a slot is; ascending where experts choose, in the
    /// order of service where tokens do. No more slots than tokens.
    pub indices: Vec<u32>,
    /// `[G, T]`: log-sum-exp of each token's logits.
    pub log_sum_exp: Buffer<R>,
    /// Mean over tokens of its square.
    pub z_loss: R,
    /// `[G, E]`: share of a group's tokens that ask for an expert, served or not; empty where experts choose.
    pub asked: Vec<R>,
    /// `E^2` times the mean over groups and experts of (share asked for) times (mean probability); 0 where experts
    /// choose. Uniform routing gives the number of choices.
    pub load_balancing_loss: R,
}

/// The weights.
pub fn specs(prefix: &str, hidden: usize, experts: usize) -> [Spec; 2] {
    [
        Spec::kernel(format!("{prefix}/moe/router/router_weights/kernel"), &[hidden, experts]),
        Spec::bias(format!("{prefix}/moe/router/router_weights/bias"), &[experts]),
    ]
}

impl<R: Real> Router<R> {
    /// Takes the weights in the order of [`specs`].
    pub fn load(loader: &mut Loader<'_, R>, hidden: usize, experts: usize) -> Result<Self> {
        // Kept in full precision: a rounded router changes which tokens are picked.
        Ok(Router {
            kernel: loader.matrix_as(hidden, experts, Dtype::Float32)?,
            bias: loader.vector(experts)?,
        })
    }

    /// The weights in the order of [`specs`].
    pub fn params(&self) -> [Param<'_, R>; 2] {
        [Param::matrix(&self.kernel), Param::vector(&self.bias)]
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> [ParamMut<'_, R>; 2] {
        [ParamMut::matrix(&mut self.kernel), ParamMut::vector(&mut self.bias)]
    }

    /// Routes all tokens of `h` (`[B*S, H]`) in block `layer`.
    pub fn route(&self, pass: &Pass<'_, R>, layer: usize, h: &[R]) -> Result<Routing<R>> {
        let (context, isa, config) = (pass.context, pass.context.isa, pass.config);
        let (hidden, experts) = (self.kernel.k(), self.kernel.n());
        let grouping = Grouping::new(config, pass.batch, pass.seq, pass.training.is_some())?;
        let Grouping { groups, tokens, .. } = grouping;
        // 1. logits, their log-sum-exp, probabilities
        let all = groups * tokens;
        let mut probabilities = context.buffer(all * experts);
        let mut lse = context.buffer(all);
        let blocks = pass.row_blocks(pass.seq);
        let rounds = rounds_to_bfloat16(config.router_dtype);
        let kernel = self.used_kernel(rounds);
        let outs = [(&mut probabilities[..], experts), (&mut lse[..], 1)];
        pass.each_block_of(&blocks, outs, |block, [logits, lse], scratch| {
            let ([changed], [lhs, _]) = scratch.split([block.rows * hidden]);
            let h = self.used_input(pass, layer, block, h, changed);
            let h = prepare_lhs(isa, h, block.rows, hidden, hidden, Dtype::Float32, lhs);
            if rounds {
                matmul(isa, block.rows, h, kernel.view(), 0..experts, logits, experts, Init::Zero);
                for (row, lse) in logits.chunks_exact_mut(experts).zip(lse) {
                    *lse = rounded_softmax(row, &self.bias);
                }
            } else {
                let bias = Init::Bias(&self.bias);
                matmul(isa, block.rows, h, kernel.view(), 0..experts, logits, experts, bias);
                log_sum_exp(isa, logits, experts, lse);
                softmax_in_place(isa, logits, experts);
            }
        })?;
        let square = |lse: &R| {
            if rounds { rounded(*lse * *lse).to_f64() } else { lse.to_f64() * lse.to_f64() }
        };
        let z_loss = R::from_f64(lse.iter().fold(0f64, |sum, lse| sum + square(lse)) / all as f64);
        // 2. who goes where in each group
        let slots = experts * grouping.slots();
        let mut indices = vec![0u32; groups * slots];
        let asks = if config.router == RouterKind::TokensChoose { experts } else { 0 };
        let mut asked = vec![R::ZERO; groups * asks];
        let mut shares = asked.chunks_exact_mut(experts);
        let own_slots = split_rows(&mut indices, std::iter::repeat_n(slots, groups));
        let tasks = probabilities.chunks_exact(tokens * experts).zip(own_slots);
        let tasks: Vec<_> = tasks.map(|(p, slots)| (p, slots, shares.next())).collect();
        context.each(tasks.into_iter(), |(p, slots, asked), _| match asked {
            None => experts_choose(p, experts, slots),
            Some(asked) => {
                let (selected, prioritized) = (config.num_selected_experts, config.batch_prioritized_routing);
                tokens_choose(p, experts, selected, prioritized, slots, asked);
            }
        })?;
        let load_balancing_loss = load_balancing_loss(&probabilities, &asked, grouping, experts);
        Ok(Routing {
            grouping,
            experts,
            probabilities,
            indices,
            log_sum_exp: lse,
            z_loss,
            asked,
            load_balancing_loss,
        })
    }

    /// The kernel that products are made with.
    fn used_kernel(&self, rounds: bool) -> Cow<'_, PackedMatrix<R>> {
        if !rounds {
            return Cow::Borrowed(&self.kernel);
        }
        let mut values = self.kernel.unpack();
        values.iter_mut().for_each(|value| *value = rounded(*value));
        let (k, n) = (self.kernel.k(), self.kernel.n());
        Cow::Owned(PackedMatrix::pack(k, n, Dtype::Float32, &values))
    }

    /// Rows of `block` of `h` as products see them: multiplied by noise uniform on `[1 - jitter, 1 + jitter)` when
    /// training, and rounded; written to `changed` if either applies.
    fn used_input<'h>(
        &self,
        pass: &Pass<'_, R>,
        layer: usize,
        block: RowBlock,
        h: &'h [R],
        changed: &'h mut [R],
    ) -> &'h [R] {
        let h = block.of(h, pass.seq, self.kernel.k());
        let noisy = pass.training.filter(|_| pass.config.jitter_noise > 0.0);
        let rounds = rounds_to_bfloat16(pass.config.router_dtype);
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

    fn multiply_by_noise(&self, pass: &Pass<'_, R>, seed: u64, layer: usize, block: RowBlock, x: &mut [R]) {
        let noise = pass.config.jitter_noise as f32;
        let first = (block.example * pass.seq + block.first) * self.kernel.k();
        RngStream::new(seed, Purpose::RouterJitter, layer as u64).for_each_word(
            first as u64,
            x.len(),
            |i, word| {
                x[i] *= R::from_f32(1.0 - noise + 2.0 * noise * unit(word));
            },
        );
    }

    /// Undoes the probabilities and the z-loss of [`Router::route`]: writes `dh`, adds to the gradients of kernel and
    /// bias.
    ///
    /// `dp` (`[B*S, E]`) is the gradient of the probabilities and becomes that of the logits; `z_loss_scale` is the
    /// gradient of the mean squared log-sum-exp.
    pub fn backward(
        &self,
        pass: &Pass<'_, R>,
        layer: usize,
        h: &[R],
        routing: &Routing<R>,
        dp: &mut [R],
        z_loss_scale: R,
        dh: &mut [R],
        grads: &mut [Vec<R>],
    ) -> Result<()> {
        let (context, isa) = (pass.context, pass.context.isa);
        let (hidden, experts, all) = (self.kernel.k(), self.kernel.n(), pass.batch * pass.seq);
        let z_scale = z_loss_scale * R::from_f64(2.0 / all as f64);
        let mut seen = context.buffer(all * hidden);
        let transposed =
            context.transposed(&self.used_kernel(rounds_to_bfloat16(pass.config.router_dtype)))?;
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
            let dlogits = prepare_lhs(isa, dp, block.rows, experts, experts, Dtype::Float32, lhs);
            matmul(isa, block.rows, dlogits, transposed.view(0), 0..hidden, dh, hidden, Init::Zero);
            if let Some(seed) = pass.training.filter(|_| pass.config.jitter_noise > 0.0) {
                self.multiply_by_noise(pass, seed, layer, block, dh);
            }
        })?;
        let [kernel, bias, ..] = grads else {
            return Err(Error::Internal("a router has two gradients".into()));
        };
        kernel_gradient(context, Dtype::Float32, all, &seen, dp, kernel)?;
        bias_gradient(context, dp, bias)
    }
}

/// Whether the router of this `router_dtype` rounds every intermediate result.
fn rounds_to_bfloat16(router_dtype: Dtype) -> bool {
    router_dtype == Dtype::Bfloat16
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
fn load_balancing_loss<R: Real>(p: &[R], asked: &[R], grouping: Grouping, experts: usize) -> R {
    let Grouping { groups, tokens, .. } = grouping;
    let mut sum = 0f64;
    for (p, asked) in p.chunks_exact(tokens * experts).zip(asked.chunks_exact(experts)) {
        for (expert, asked) in asked.iter().enumerate() {
            let own = p[expert..].iter().step_by(experts);
            sum += asked.to_f64() * own.fold(0f64, |sum, p| sum + p.to_f64()) / tokens as f64;
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
    /// (`[B*S, E]`). The shares that are asked for are held constant.
    pub fn load_balancing_gradient(&self, scale: R, dp: &mut [R]) {
        let Grouping { groups, tokens, .. } = self.grouping;
        dp.fill(R::ZERO);
        let scale = scale * R::from_f64(self.experts as f64 / (groups * tokens) as f64);
        for (dp, asked) in
            dp.chunks_exact_mut(tokens * self.experts).zip(self.asked.chunks_exact(self.experts))
        {
            for dp in dp.chunks_exact_mut(self.experts) {
                dp.iter_mut().zip(asked).for_each(|(d, &share)| *d = scale * share);
            }
        }
    }
}
