//! Mixture of experts: route tokens to experts, run every expert on its tokens, add up what comes back.
//!
//! `y[t] = sum over experts e that picked t, ascending, of p[t, e] * expert_e(h[t])`; a token that none picked gets
//! zeros. Tokens are gathered and scattered by index: there is no `[group, token, expert, capacity]` mask.
//! Source: `moe.MoeLayer`, `moe.FeedForwardExperts`.

use crate::config::SparseMixerConfig;
use crate::error::Result;
use crate::kernels::{Real, axpy};
use crate::layers::Activation;
use crate::params::{Loader, Param, ParamMut, Spec};
use crate::runtime::Buffer;

use super::feed_forward::FeedForward;
use super::moe_router::{Grouping, Router, Routing};
use super::pass::{Pass, RowBlock, Site, split_rows};

/// Experts and router.
#[derive(Clone, Debug)]
pub struct Moe<R> {
    /// The experts, feed-forward layers of one size.
    pub experts: Vec<FeedForward<R>>,
    /// The router.
    pub router: Router<R>,
}

/// The routed tokens and what the experts made of them.
pub struct Mixture<'p, R: Real> {
    /// Who went where.
    pub routing: Routing<'p, R>,
    /// `[E, G, C, H]`
    expert_out: Buffer<'p, R>,
    /// Slots of token `t` are `slots[first_slot[t]..first_slot[t + 1]]`, by expert.
    first_slot: Vec<u32>,
    /// Row of `expert_out`, and weight.
    slots: Vec<(u32, R)>,
}

/// The metrics of one layer and call; names are the reference's.
#[derive(Clone, Copy, Debug)]
pub struct LayerMetrics {
    /// Mean squared log-sum-exp of the router logits.
    pub unscaled_router_z_loss: f32,
    /// The same times its weight.
    pub router_z_loss: f32,
    /// 0 where experts choose.
    pub load_balancing_loss: f32,
    /// Share of the tokens that no expert picked; infinite at capacity 0, as the reference has it.
    pub fraction_tokens_left_behind: f32,
    /// Mean probability over all filled slots; NaN at capacity 0.
    pub router_confidence: f32,
    /// Share of slots that are filled: 1 where experts choose.
    pub expert_usage: f32,
}

/// The weights: experts, then router.
pub fn specs(prefix: &str, hidden: usize, inner: usize, experts: usize) -> Vec<Spec> {
    let base = format!("{prefix}/moe/experts");
    let mut specs = vec![
        Spec::kernel(format!("{base}/intermediate/kernel"), &[experts, hidden, inner]),
        Spec::bias(format!("{base}/intermediate/bias"), &[experts, 1, inner]),
        Spec::kernel(format!("{base}/output/kernel"), &[experts, inner, hidden]),
        Spec::bias(format!("{base}/output/bias"), &[experts, 1, hidden]),
    ];
    specs.extend(super::moe_router::specs(prefix, hidden, experts));
    specs
}

/// Rows of one expert that a task takes at the most.
const MAX_ROWS: usize = 256;

impl<R: Real> Moe<R> {
    /// Takes the weights in the order of [`specs`].
    pub fn load(loader: &mut Loader<'_, R>, config: &SparseMixerConfig) -> Result<Self> {
        let (hidden, inner, experts) = (config.hidden_size, config.inner_dim, config.num_experts);
        let intermediate = loader.matrices(experts, hidden, inner)?;
        let intermediate_bias = loader.vector(experts * inner)?;
        let output = loader.matrices(experts, inner, hidden)?;
        let output_bias = loader.vector(experts * hidden)?;
        let kernels = intermediate.into_iter().zip(output);
        let biases = intermediate_bias.chunks_exact(inner).zip(output_bias.chunks_exact(hidden));
        let experts =
            kernels.zip(biases).map(|((intermediate, output), (intermediate_bias, output_bias))| {
                let (intermediate_bias, output_bias) = (intermediate_bias.to_vec(), output_bias.to_vec());
                FeedForward { intermediate, intermediate_bias, output, output_bias }
            });
        Ok(Moe { experts: experts.collect(), router: Router::load(loader, hidden, config.num_experts)? })
    }

    /// The weights in the order of [`specs`].
    pub fn params(&self) -> Vec<Param<'_, R>> {
        let experts = || self.experts.iter();
        let mut params = vec![
            Param::Matrices(experts().map(|e| &e.intermediate).collect()),
            Param::Vectors(experts().map(|e| &e.intermediate_bias[..]).collect()),
            Param::Matrices(experts().map(|e| &e.output).collect()),
            Param::Vectors(experts().map(|e| &e.output_bias[..]).collect()),
        ];
        params.extend(self.router.params());
        params
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> Vec<ParamMut<'_, R>> {
        let (mut kernels, mut biases, mut outputs, mut output_biases) = (vec![], vec![], vec![], vec![]);
        for expert in &mut self.experts {
            kernels.push(&mut expert.intermediate);
            biases.push(&mut expert.intermediate_bias[..]);
            outputs.push(&mut expert.output);
            output_biases.push(&mut expert.output_bias[..]);
        }
        let mut params = vec![
            ParamMut::Matrices(kernels),
            ParamMut::Vectors(biases),
            ParamMut::Matrices(outputs),
            ParamMut::Vectors(output_biases),
        ];
        params.extend(self.router.params_mut());
        params
    }

    /// Routes all tokens of `h` (`[B*S, H]`) in block `layer` and runs the experts.
    pub fn forward<'p>(
        &self,
        pass: &'p Pass<'_, R>,
        activation: &Activation<R>,
        layer: usize,
        h: &[R],
    ) -> Result<Mixture<'p, R>> {
        // 1. who goes where
        let routing = self.router.route(pass, layer, h)?;
        let Grouping { groups, capacity, .. } = routing.grouping;
        let hidden = pass.config.hidden_size;
        let rows_per_expert = groups * capacity;
        // 2. experts on their tokens, gathered
        let dropout = pass.dropout(pass.config.output_dropout, Site::Expert, layer);
        let mut expert_out = pass.context.buffer(self.experts.len() * rows_per_expert * hidden);
        let gather = |task: RowBlock, x: &mut [R]| {
            for (row, x) in (task.first..).zip(x.chunks_exact_mut(hidden)) {
                let (token, _) = routing.pick(row / capacity, task.example, row % capacity);
                x.copy_from_slice(&h[token * hidden..][..hidden]);
            }
        };
        let segments = self.segments(pass, rows_per_expert);
        run_experts(pass, activation, &self.experts, &segments, gather, &mut expert_out, |task, out| {
            if let Some(dropout) = &dropout {
                dropout.apply(out, (task.example * rows_per_expert + task.first) * hidden);
            }
        })?;
        // 3. slots by token
        let (first_slot, slots) = slots_by_token(&routing, pass.batch * pass.seq);
        Ok(Mixture { routing, expert_out, first_slot, slots })
    }

    /// Runs of rows of one expert (the block's `example`), in order.
    fn segments(&self, pass: &Pass<'_, R>, rows_per_expert: usize) -> Vec<RowBlock> {
        let all = self.experts.len() * rows_per_expert;
        let size = all.div_ceil(pass.context.threads()).next_multiple_of(32).clamp(1, MAX_ROWS);
        (0..self.experts.len())
            .flat_map(|example| {
                (0..rows_per_expert).step_by(size).map(move |first| RowBlock {
                    example,
                    first,
                    rows: size.min(rows_per_expert - first),
                })
            })
            .collect()
    }
}

/// Runs feed-forward layers on segments of rows: `layers[segment.example]` on the rows that `gather` fetches, into the
/// segment's rows of `out`, then `finish` on those.
///
/// A custom activation is called on the coordinating thread, between two passes over the segments.
pub(super) fn run_experts<R: Real>(
    pass: &Pass<'_, R>,
    activation: &Activation<R>,
    layers: &[FeedForward<R>],
    segments: &[RowBlock],
    gather: impl Fn(RowBlock, &mut [R]) + Sync,
    out: &mut [R],
    finish: impl Fn(RowBlock, &mut [R]) + Sync,
) -> Result<()> {
    let (isa, hidden, inner) = (pass.context.isa, pass.config.hidden_size, pass.config.inner_dim);
    if !activation.is_custom() {
        return pass.each_block(segments, out, hidden, |segment, out, scratch| {
            let layer = &layers[segment.example];
            let lengths = [segment.rows * hidden, layer.scratch_len(activation, segment.rows)];
            let ([x, slice], lhs) = scratch.split(lengths);
            gather(segment, x);
            layer.forward(isa, activation, x, segment.rows, out, slice, lhs);
            finish(segment, out);
        });
    }
    let mut pre = pass.context.buffer(segments.iter().map(|s| s.rows).sum::<usize>() * inner);
    pass.each_block(segments, &mut pre, inner, |segment, pre, scratch| {
        let ([x], [lhs, _]) = scratch.split([segment.rows * hidden]);
        gather(segment, x);
        layers[segment.example].forward_intermediate(isa, x, segment.rows, pre, lhs);
    })?;
    activation.forward(isa, &mut pre, inner)?;
    let pieces: Vec<_> = split_rows(&mut pre, segments.iter().map(|s| s.rows * inner)).collect();
    let tasks = segments.iter().zip(pieces).zip(split_rows(out, segments.iter().map(|s| s.rows * hidden)));
    let tasks: Vec<_> = tasks.collect();
    pass.context.each(tasks.into_iter(), |((segment, inner), out), scratch| {
        let (_, [lhs, _]) = scratch.split([]);
        layers[segment.example].forward_output(isa, inner, segment.rows, out, lhs);
        finish(*segment, out);
    })
}

/// For each token its slots (row of the experts' output, probability), by expert; `first[t]..first[t + 1]` are token `t`'s.
fn slots_by_token<R: Real>(routing: &Routing<'_, R>, tokens: usize) -> (Vec<u32>, Vec<(u32, R)>) {
    let Grouping { groups, capacity, .. } = routing.grouping;
    let each_slot = |visit: &mut dyn FnMut(usize, u32, R)| {
        for expert in 0..routing.experts() {
            for row in 0..groups * capacity {
                let (token, p) = routing.pick(row / capacity, expert, row % capacity);
                visit(token, (expert * groups * capacity + row) as u32, p);
            }
        }
    };
    let mut first = vec![0u32; tokens + 1];
    each_slot(&mut |token, _, _| first[token + 1] += 1);
    for token in 0..tokens {
        first[token + 1] += first[token];
    }
    let mut next = first.clone();
    let mut slots = vec![(0, R::ZERO); first[tokens] as usize];
    each_slot(&mut |token, row, p| {
        slots[next[token] as usize] = (row, p);
        next[token] += 1;
    });
    (first, slots)
}

impl<R: Real> Mixture<'_, R> {
    /// Adds the experts' answers for the tokens of `block` to `out` (`[rows, H]`).
    pub fn add_rows(&self, pass: &Pass<'_, R>, block: RowBlock, out: &mut [R]) {
        let hidden = pass.config.hidden_size;
        let first = block.example * pass.seq + block.first;
        for (token, out) in (first..).zip(out.chunks_exact_mut(hidden)) {
            let slots = self.first_slot[token] as usize..self.first_slot[token + 1] as usize;
            for &(row, p) in &self.slots[slots] {
                axpy(pass.context.isa, out, p, &self.expert_out[row as usize * hidden..][..hidden]);
            }
        }
    }

    /// The layer's metrics.
    pub fn metrics(&self, z_loss_weight: f64) -> LayerMetrics {
        let Grouping { groups, tokens, capacity } = self.routing.grouping;
        let all = (groups * tokens) as f64;
        let picked = self.first_slot.windows(2).filter(|slots| slots[0] < slots[1]).count() as f64;
        let filled = (groups * self.routing.experts() * capacity) as f64;
        let confidence: f64 = self.slots.iter().map(|(_, p)| p.to_f64()).sum();
        LayerMetrics {
            unscaled_router_z_loss: self.routing.z_loss.to_f32(),
            router_z_loss: self.routing.z_loss.to_f32() * z_loss_weight as f32,
            load_balancing_loss: 0.0,
            fraction_tokens_left_behind: if capacity == 0 {
                f32::INFINITY
            } else {
                (1.0 - picked / all) as f32
            },
            router_confidence: (confidence / filled) as f32,
            expert_usage: 1.0,
        }
    }
}
