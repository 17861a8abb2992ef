//! Mixture of experts: route tokens to experts, run every expert on its tokens, add up what comes back.
//!
//! `y[t] = sum over experts e that picked t, ascending, of p[t, e] * expert_e(h[t])`; a token that none picked gets
//! zeros. Tokens are gathered and scattered by index: there is no `[group, token, expert, capacity]` mask.
//! Source: `moe.MoeLayer`, `moe.FeedForwardExperts`.

use crate::config::SparseMixerConfig;
use crate::error::{Error, Result};
use crate::kernels::{Real, add_in_place, axpy};
use crate::layers::Activation;
use crate::params::{Loader, Param, ParamMut, Spec};
use crate::runtime::Buffer;

use super::feed_forward::{FeedForward, Run};
use super::moe_router::{Grouping, Router, Routing};
use super::pass::{Pass, RowBlock, Site};

/// Experts and router.
#[derive(Clone, Debug)]
pub struct Moe<R> {
    /// The experts, feed-forward layers of one size.
    pub experts: Vec<FeedForward<R>>,
    /// The router.
    pub router: Router<R>,
}

/// The routed tokens and what the experts made of them.
#[derive(Debug)]
pub struct Mixture<R: Real> {
    /// Who went where.
    pub routing: Routing<R>,
    /// `[E, G, C, H]`, after dropout
    expert_out: Buffer<R>,
    /// `[E, G, C, F]`: what the experts' activation is applied to, kept for backward.
    pre: Option<Buffer<R>>,
    /// Slots of token `t` are `slots[first_slot[t]..first_slot[t + 1]]`, by expert.
    first_slot: Vec<u32>,
    /// Row of `expert_out`, and weight.
    slots: Vec<(u32, R)>,
}

/// The metrics of one layer and call; names are the reference's.
#[derive(Clone, Copy, Debug)]
pub struct LayerMetrics<R> {
    /// Mean squared log-sum-exp of the router logits.
    pub unscaled_router_z_loss: R,
    /// The same times its weight.
    pub router_z_loss: R,
    /// 0 where experts choose.
    pub load_balancing_loss: R,
    /// Share of the tokens that no expert picked; infinite at capacity 0, as the reference has it.
    pub fraction_tokens_left_behind: R,
    /// Mean probability over all filled slots; NaN at capacity 0.
    pub router_confidence: R,
    /// Share of slots that are filled: 1 where experts choose.
    pub expert_usage: R,
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
    pub fn forward(
        &self,
        pass: &Pass<'_, R>,
        activation: &Activation<R>,
        layer: usize,
        h: &[R],
    ) -> Result<Mixture<R>> {
        // 1. who goes where
        let routing = self.router.route(pass, layer, h)?;
        let Grouping { groups, capacity, .. } = routing.grouping;
        let hidden = pass.config.hidden_size;
        let rows_per_expert = groups * capacity;
        // 2. experts on their tokens, gathered
        let dropout = pass.dropout(pass.config.output_dropout, Site::Expert, layer);
        let mut expert_out = pass.context.buffer(self.experts.len() * rows_per_expert * hidden);
        let gather = |task: RowBlock, x: &mut [R]| gather(&routing, h, task, x);
        let segments = self.segments(pass, rows_per_expert);
        let mut pre = pass.training_buffer(self.experts.len() * rows_per_expert * pass.config.inner_dim);
        let finish = |task: RowBlock, out: &mut [R]| {
            if let Some(dropout) = &dropout {
                dropout.apply(out, (task.example * rows_per_expert + task.first) * hidden);
            }
        };
        let run = Run { activation, layers: &self.experts, segments: &segments };
        run.forward(pass, gather, &mut expert_out, pre.as_deref_mut(), finish)?;
        // 3. slots by token
        let (first_slot, slots) = slots_by_token(&routing, pass.batch * pass.seq);
        Ok(Mixture { routing, expert_out, pre, first_slot, slots })
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

/// Copies the tokens behind rows `task` of one expert (the block's `example`) from `h` to `x`.
fn gather<R: Real>(routing: &Routing<R>, h: &[R], task: RowBlock, x: &mut [R]) {
    let capacity = routing.grouping.capacity;
    let hidden = x.len() / task.rows.max(1);
    for (row, x) in (task.first..).zip(x.chunks_exact_mut(hidden.max(1))) {
        let (token, _) = routing.pick(row / capacity, task.example, row % capacity);
        x.copy_from_slice(&h[token * hidden..][..hidden]);
    }
}

/// For each token its slots (row of the experts' output, probability), by expert; `first[t]..first[t + 1]` are token `t`'s.
fn slots_by_token<R: Real>(routing: &Routing<R>, tokens: usize) -> (Vec<u32>, Vec<(u32, R)>) {
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

impl<R: Real> Moe<R> {
    /// Undoes [`Moe::forward`] on `h`: writes `dh`, adds to the gradients (in the order of [`specs`]).
    ///
    /// `dy` is the gradient of the layer's result, `[B*S, H]`; `z_loss_scale` that of the mean squared log-sum-exp.
    /// Which tokens were picked is held constant.
    pub fn backward(
        &self,
        pass: &Pass<'_, R>,
        activation: &Activation<R>,
        layer: usize,
        h: &[R],
        mixture: &Mixture<R>,
        dy: &[R],
        z_loss_scale: R,
        dh: &mut [R],
        grads: &mut [Vec<R>],
    ) -> Result<()> {
        let (isa, hidden, inner) = (pass.context.isa, pass.config.hidden_size, pass.config.inner_dim);
        let Some(pre) = &mixture.pre else {
            return Err(Error::Internal("a mixture without its training record".into()));
        };
        let routing = &mixture.routing;
        let Grouping { groups, capacity, .. } = routing.grouping;
        let (experts, rows) = (self.experts.len(), groups * capacity);
        // 3. y[t] = sum of p * expert_out: gradients of the experts' results, and of p (one more column)
        let dropout = pass.dropout(pass.config.output_dropout, Site::Expert, layer);
        let mut dout = pass.context.buffer(experts * rows * hidden);
        let mut dp = pass.context.buffer(experts * rows);
        let segments = self.segments(pass, rows);
        pass.each_block_of(&segments, [(&mut dout, hidden), (&mut dp, 1)], |task, [dout, dp], _| {
            let answers = task.of(&mixture.expert_out, rows, hidden).chunks_exact(hidden);
            for (((row, dout), dp), answer) in
                (task.first..).zip(dout.chunks_exact_mut(hidden)).zip(dp).zip(answers)
            {
                let (token, p) = routing.pick(row / capacity, task.example, row % capacity);
                let dy = &dy[token * hidden..][..hidden];
                *dp = dot(answer, dy);
                dout.iter_mut().zip(dy).for_each(|(d, &g)| *d = p * g);
            }
            if let Some(dropout) = &dropout {
                dropout.apply(dout, (task.example * rows + task.first) * hidden);
            }
        })?;
        // 2. the experts, on their tokens again
        let mut x = pass.context.buffer(rows * hidden);
        let mut dx = pass.context.buffer(experts * rows * hidden);
        let [kernel, bias, output_kernel, output_bias, router_grads @ ..] = grads else {
            return Err(Error::Internal("a mixture has six gradients".into()));
        };
        for (e, expert) in self.experts.iter().enumerate() {
            let blocks: Vec<_> = Pass::<R>::fixed_blocks(rows)
                .into_iter()
                .map(|block| RowBlock { example: e, ..block })
                .collect();
            pass.each_block(&blocks, &mut x, hidden, |task, x, _| gather(routing, h, task, x))?;
            let own = |len: usize| e * len..(e + 1) * len;
            expert.backward(
                pass,
                activation,
                rows,
                &x,
                &pre[own(rows * inner)],
                &dout[own(rows * hidden)],
                &mut dx[own(rows * hidden)],
                [
                    &mut kernel[own(hidden * inner)],
                    &mut bias[own(inner)],
                    &mut output_kernel[own(inner * hidden)],
                    &mut output_bias[own(hidden)],
                ],
            )?;
        }
        // 1. routing, and what came back to each token, by expert
        let mut dprobabilities = pass.context.buffer(pass.batch * pass.seq * experts);
        dprobabilities.fill(R::ZERO);
        for token in 0..pass.batch * pass.seq {
            for &(row, _) in mixture.slots_of(token) {
                dprobabilities[token * experts + row as usize / rows] += dp[row as usize];
            }
        }
        self.router.backward(pass, layer, h, routing, &mut dprobabilities, z_loss_scale, dh, router_grads)?;
        pass.each_block(&pass.row_blocks(pass.seq), dh, hidden, |block, dh, _| {
            let first = block.example * pass.seq + block.first;
            for (token, dh) in (first..).zip(dh.chunks_exact_mut(hidden)) {
                for &(row, _) in mixture.slots_of(token) {
                    add_in_place(isa, dh, &dx[row as usize * hidden..][..hidden]);
                }
            }
        })
    }
}

/// The dot product, summed in the order of the elements in 16 interleaved parts.
fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    let mut parts = [R::ZERO; 16];
    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
        for ((part, &a), &b) in parts.iter_mut().zip(a).zip(b) {
            *part += a * b;
        }
    }
    parts.iter().fold(R::ZERO, |sum, &part| sum + part)
}

impl<R: Real> Mixture<R> {
    /// Slots of a token, by expert.
    fn slots_of(&self, token: usize) -> &[(u32, R)] {
        &self.slots[self.first_slot[token] as usize..self.first_slot[token + 1] as usize]
    }

    /// Adds the experts' answers for the tokens of `block` to `out` (`[rows, H]`).
    pub fn add_rows(&self, pass: &Pass<'_, R>, block: RowBlock, out: &mut [R]) {
        let hidden = pass.config.hidden_size;
        let first = block.example * pass.seq + block.first;
        for (token, out) in (first..).zip(out.chunks_exact_mut(hidden)) {
            for &(row, p) in self.slots_of(token) {
                axpy(pass.context.isa, out, p, &self.expert_out[row as usize * hidden..][..hidden]);
            }
        }
    }

    /// The layer's metrics.
    pub fn metrics(&self, z_loss_weight: f64) -> LayerMetrics<R> {
        let Grouping { groups, tokens, capacity } = self.routing.grouping;
        let all = (groups * tokens) as f64;
        let picked = self.first_slot.windows(2).filter(|slots| slots[0] < slots[1]).count() as f64;
        let filled = (groups * self.routing.experts() * capacity) as f64;
        let confidence: f64 = self.slots.iter().map(|(_, p)| p.to_f64()).sum();
        LayerMetrics {
            unscaled_router_z_loss: self.routing.z_loss,
            router_z_loss: self.routing.z_loss * R::from_f64(z_loss_weight),
            load_balancing_loss: R::ZERO,
            fraction_tokens_left_behind: R::from_f64(if capacity == 0 {
                f64::INFINITY
            } else {
                1.0 - picked / all
            }),
            router_confidence: R::from_f64(confidence / filled),
            expert_usage: R::ONE,
        }
    }
}
