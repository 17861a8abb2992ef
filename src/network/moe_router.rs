//! Experts-choose routing: every expert picks the tokens of a group with the largest router probability.
//!
//! `p = softmax(h Wr + br)` over experts, in 32 bits whatever the encoder's dtype; for every group and expert the
//! `C` tokens with the largest `p`, the lower index where equal. Probabilities are used as they are: not renormalised
//! over the experts that picked a token. Source: `moe.ExpertsChooseMaskedRouter`.

use crate::config::SparseMixerConfig;
use crate::error::{Error, Result};
use crate::kernels::{
    Init, PackedMatrix, Real, WeightDtype, axpy, log_sum_exp, matmul, prepare_lhs, softmax_backward,
    softmax_in_place,
};
use crate::layers::{bias_gradient, kernel_gradient};
use crate::params::{Loader, Param, ParamMut, Spec};
use crate::random::unit;
use crate::runtime::Buffer;

use super::pass::{Pass, RowBlock, Site};

/// How the tokens of a batch form groups, and how many tokens an expert takes of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// `G`
    pub groups: usize,
    /// `T`
    pub tokens: usize,
    /// `C`
    pub capacity: usize,
}

impl Grouping {
    /// The grouping of a batch of `batch` examples.
    ///
    /// Doubles, left to right, half to even, as Python computes them; the traps are listed in the tests.
    pub fn new(config: &SparseMixerConfig, batch: usize, training: bool) -> Result<Self> {
        let (seq, per_group) = (config.max_sequence_length, config.examples_per_group);
        let all = batch * seq;
        let (groups, tokens) = if let Some(size) = config.max_group_size {
            let least = (all / size).max(1);
            let groups = (least..=all).find(|groups| all.is_multiple_of(*groups)).unwrap_or(1);
            (groups, all / groups)
        } else {
            if per_group > batch as f64 {
                return Err(Error::value(
                    "examples_per_group",
                    format!("got {per_group}, larger than the batch size {batch}"),
                ));
            }
            let tokens = (seq as f64 * per_group) as usize;
            if tokens == 0 || !all.is_multiple_of(tokens) {
                return Err(Error::value(
                    "examples_per_group",
                    format!(
                        "got {per_group}: groups of int({seq} * {per_group}) = {tokens} tokens do not divide \
                         the {all} tokens of a batch of {batch}"
                    ),
                ));
            }
            (all / tokens, tokens)
        };
        let (factor, argument) = if training {
            (config.train_capacity_factor, "train_capacity_factor")
        } else {
            (config.eval_capacity_factor, "eval_capacity_factor")
        };
        let capacity = (factor * tokens as f64 / config.num_experts as f64).round_ties_even();
        if capacity > tokens as f64 {
            return Err(Error::value(
                argument,
                format!("got {factor}: an expert would take {capacity} of the {tokens} tokens of a group"),
            ));
        }
        Ok(Grouping { groups, tokens, capacity: capacity as usize })
    }
}

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
    /// `[G, E, C]`: token indices within the group, ascending.
    pub indices: Vec<u32>,
    /// `[G, T]`: log-sum-exp of each token's logits.
    pub log_sum_exp: Buffer<R>,
    /// Mean over tokens of its square.
    pub z_loss: R,
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
            kernel: loader.matrix_as(hidden, experts, WeightDtype::Native)?,
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
        let (context, isa) = (pass.context, pass.context.isa);
        let (hidden, experts) = (self.kernel.k(), self.kernel.n());
        let grouping = Grouping::new(pass.config, pass.batch, pass.training.is_some())?;
        let Grouping { groups, tokens, capacity } = grouping;
        // 1. logits, their log-sum-exp, probabilities
        let all = groups * tokens;
        let mut probabilities = context.buffer(all * experts);
        let mut lse = context.buffer(all);
        let blocks = pass.row_blocks(pass.seq);
        let outs = [(&mut probabilities[..], experts), (&mut lse[..], 1)];
        pass.each_block_of(&blocks, outs, |block, [logits, lse], scratch| {
            let ([noisy], [lhs, _]) = scratch.split([block.rows * hidden]);
            let h = self.jittered(pass, layer, block, h, noisy);
            let h = prepare_lhs(isa, h, block.rows, hidden, hidden, WeightDtype::Native, lhs);
            let bias = Init::Bias(&self.bias);
            matmul(isa, block.rows, h, self.kernel.view(), 0..experts, logits, experts, bias);
            log_sum_exp(isa, logits, experts, lse);
            softmax_in_place(isa, logits, experts);
        })?;
        let sum = lse.iter().fold(0f64, |sum, lse| sum + lse.to_f64() * lse.to_f64());
        let z_loss = R::from_f64(sum / all as f64);
        // 2. the top tokens of each group and expert
        let mut indices = vec![0u32; groups * experts * capacity];
        if capacity > 0 {
            let tasks: Vec<_> = indices.chunks_exact_mut(experts * capacity).enumerate().collect();
            let probabilities = &probabilities;
            context.each(tasks.into_iter(), |(group, picks), _| {
                let p = &probabilities[group * tokens * experts..][..tokens * experts];
                for (expert, picks) in picks.chunks_exact_mut(capacity).enumerate() {
                    pick_largest(tokens, |token| p[token * experts + expert], picks);
                }
            })?;
        }
        Ok(Routing { grouping, experts, probabilities, indices, log_sum_exp: lse, z_loss })
    }

    /// Rows of `block` of `h`, multiplied by noise uniform on `[1 - jitter, 1 + jitter)` into `noisy` when training.
    fn jittered<'h>(
        &self,
        pass: &Pass<'_, R>,
        layer: usize,
        block: RowBlock,
        h: &'h [R],
        noisy: &'h mut [R],
    ) -> &'h [R] {
        let h = block.of(h, pass.seq, self.kernel.k());
        match pass.training.filter(|_| pass.config.jitter_noise > 0.0) {
            None => h,
            Some(seed) => {
                noisy.copy_from_slice(h);
                self.multiply_by_noise(pass, seed, layer, block, noisy);
                noisy
            }
        }
    }

    fn multiply_by_noise(&self, pass: &Pass<'_, R>, seed: u64, layer: usize, block: RowBlock, x: &mut [R]) {
        let noise = pass.config.jitter_noise as f32;
        let first = (block.example * pass.seq + block.first) * self.kernel.k();
        Pass::<R>::stream(seed, Site::Jitter, layer).for_each_word(first as u64, x.len(), |i, word| {
            x[i] *= R::from_f32(1.0 - noise + 2.0 * noise * unit(word));
        });
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
        let mut noisy = context.buffer(all * hidden);
        let turned = self.kernel.transposed();
        let blocks = pass.row_blocks(pass.seq);
        let outs = [(&mut *dp, experts), (&mut noisy[..], hidden), (dh, hidden)];
        pass.each_block_of(&blocks, outs, |block, [dp, noisy, dh], scratch| {
            let ([own], [lhs, _]) = scratch.split([noisy.len()]);
            noisy.copy_from_slice(self.jittered(pass, layer, block, h, own));
            let p = block.of(&routing.probabilities, pass.seq, experts);
            softmax_backward(isa, p, dp, experts);
            let lse = block.of(&routing.log_sum_exp, pass.seq, 1);
            for ((dp, p), &lse) in dp.chunks_exact_mut(experts).zip(p.chunks_exact(experts)).zip(lse) {
                axpy(isa, dp, z_scale * lse, p);
            }
            let dlogits = prepare_lhs(isa, dp, block.rows, experts, experts, WeightDtype::Native, lhs);
            matmul(isa, block.rows, dlogits, turned.view(), 0..hidden, dh, hidden, Init::Zero);
            if let Some(seed) = pass.training.filter(|_| pass.config.jitter_noise > 0.0) {
                self.multiply_by_noise(pass, seed, layer, block, dh);
            }
        })?;
        let [kernel, bias, ..] = grads else {
            return Err(Error::Internal("a router has two gradients".into()));
        };
        kernel_gradient(context, WeightDtype::Native, all, &noisy, dp, kernel)?;
        bias_gradient(context, dp, bias)
    }
}

/// Writes the indices of the `picks.len()` largest values, ascending; of equal values the lower index is larger.
fn pick_largest<R: Real>(count: usize, value: impl Fn(usize) -> R, picks: &mut [u32]) {
    let mut order: Vec<(R, u32)> = (0..count).map(|i| (value(i), i as u32)).collect();
    // A total order also with NaN, which counts as largest.
    let descending = |a: &(R, u32), b: &(R, u32)| b.0.to_f64().total_cmp(&a.0.to_f64()).then(a.1.cmp(&b.1));
    if picks.len() < count {
        order.select_nth_unstable_by(picks.len(), descending);
    }
    for (pick, (_, index)) in picks.iter_mut().zip(&order) {
        *pick = *index;
    }
    picks.sort_unstable();
}

impl<R: Real> Routing<R> {
    /// `E`
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Token (in the whole batch) and probability behind slot `slot` of `group` and `expert`.
    pub fn pick(&self, group: usize, expert: usize, slot: usize) -> (usize, R) {
        let Grouping { tokens, capacity, .. } = self.grouping;
        let experts = self.experts;
        let token = group * tokens + self.indices[(group * experts + expert) * capacity + slot] as usize;
        (token, self.probabilities[token * experts + expert])
    }
}
