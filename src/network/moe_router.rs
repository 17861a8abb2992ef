//! Experts-choose routing: every expert picks the tokens of a group with the largest router probability.
//!
//! `p = softmax(h Wr + br)` over experts, in 32 bits whatever the encoder's dtype; for every group and expert the
//! `C` tokens with the largest `p`, the lower index where equal. Probabilities are used as they are: not renormalised
//! over the experts that picked a token. Source: `moe.ExpertsChooseMaskedRouter`.

use crate::config::SparseMixerConfig;
use crate::error::{Error, Result};
use crate::kernels::{
    Init, PackedMatrix, Real, WeightDtype, log_sum_exp, matmul, prepare_lhs, softmax_in_place,
};
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
pub struct Routing<'p, R: Real> {
    /// Sizes.
    pub grouping: Grouping,
    experts: usize,
    /// `[G, T, E]`
    pub probabilities: Buffer<'p, R>,
    /// `[G, E, C]`: token indices within the group, ascending.
    pub indices: Vec<u32>,
    /// Mean over tokens of the squared log-sum-exp of the logits.
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
    pub fn route<'p>(&self, pass: &'p Pass<'_, R>, layer: usize, h: &[R]) -> Result<Routing<'p, R>> {
        let (context, isa) = (pass.context, pass.context.isa);
        let (hidden, experts) = (self.kernel.k(), self.kernel.n());
        let grouping = Grouping::new(pass.config, pass.batch, pass.training.is_some())?;
        let Grouping { groups, tokens, capacity } = grouping;
        // 1. logits, their log-sum-exp, probabilities; a row is [E probabilities | lse]
        let width = experts + 1;
        let mut rows = context.buffer(groups * tokens * width);
        let blocks = pass.row_blocks(pass.seq);
        pass.each_block(&blocks, &mut rows, width, |block, out, scratch| {
            let n = block.rows * hidden;
            let ([noisy, logits, lse], [lhs, _]) = scratch.split([n, block.rows * experts, block.rows]);
            let mut h = block.of(h, pass.seq, hidden);
            if let Some(seed) = pass.training.filter(|_| pass.config.jitter_noise > 0.0) {
                self.jitter(pass, seed, layer, block, h, noisy);
                h = noisy;
            }
            let h = prepare_lhs(isa, h, block.rows, hidden, hidden, WeightDtype::Native, lhs);
            let bias = Init::Bias(&self.bias);
            matmul(isa, block.rows, h, self.kernel.view(), 0..experts, logits, experts, bias);
            log_sum_exp(isa, logits, experts, lse);
            softmax_in_place(isa, logits, experts);
            for ((out, p), lse) in out.chunks_exact_mut(width).zip(logits.chunks_exact(experts)).zip(lse) {
                out[..experts].copy_from_slice(p);
                out[experts] = *lse;
            }
        })?;
        let mut probabilities = context.buffer(groups * tokens * experts);
        let mut sum = 0f64;
        for (row, p) in rows.chunks_exact(width).zip(probabilities.chunks_exact_mut(experts)) {
            p.copy_from_slice(&row[..experts]);
            sum += row[experts].to_f64() * row[experts].to_f64();
        }
        let z_loss = R::from_f64(sum / (groups * tokens) as f64);
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
        Ok(Routing { grouping, experts, probabilities, indices, z_loss })
    }

    /// `out = h * noise`, noise uniform on `[1 - jitter, 1 + jitter)`.
    fn jitter(&self, pass: &Pass<'_, R>, seed: u64, layer: usize, block: RowBlock, h: &[R], out: &mut [R]) {
        let noise = pass.config.jitter_noise as f32;
        let first = (block.example * pass.seq + block.first) * self.kernel.k();
        Pass::<R>::stream(seed, Site::Jitter, layer).for_each_word(first as u64, h.len(), |i, word| {
            out[i] = h[i] * R::from_f32(1.0 - noise + 2.0 * noise * unit(word));
        });
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

impl<R: Real> Routing<'_, R> {
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
