//! Mixture of experts: route tokens to experts, run every expert on its tokens, add up what comes back.
//!
//! `y[t] = sum over experts e that t goes to, ascending, of p[t, e] * expert_e(h[t])`; a token that goes to none gets
//! zeros. Tokens are gathered and scattered by index: there is no `[group, token, expert, capacity]` mask.
//! Sources: `moe.MoeLayer`, `moe.FeedForwardExperts`; `layers.MoeLayer` of the JAX code.

use std::ops::Range;

use crate::config::{RouterKind, SparseMixerConfig};
use crate::error::{Error, Result};
use crate::kernels::{Real, add_in_place, axpy};
use crate::layers::Activation;
use crate::params::{Gradients, WeightList};
use crate::random::Purpose;
use crate::runtime::Buffer;

use super::dispatch::Dispatch;
use super::grouping::Grouping;
use super::router::{Router, Routing};
use crate::network::feed_forward::{FeedForward, Run};
use crate::network::pass::{Pass, RowBlock};
use crate::sys::{Place, Work, alloc_collect_up_to, at, timed};

/// Experts and router.
#[derive(Clone, Copy, Debug)]
pub struct Moe {
    /// The experts, feed-forward layers of one size.
    experts: FeedForward,
    count: usize,
    /// `F` of the experts.
    inner: usize,
    router: Router,
}

/// The routed tokens and what the experts made of them.
#[derive(Debug)]
pub struct Mixture<R: Real> {
    /// The routing assignment.
    pub routing: Routing<R>,
    /// Of all tokens.
    pub metrics: LayerMetrics<R>,
    /// The slots of tokens whose expert outputs are requested.
    slots: Dispatch<R>,
    /// `[rows, H]`, after dropout
    expert_out: Buffer<R>,
    /// `[rows, F]`: what the experts' activation is applied to, kept for backward.
    pre: Option<Buffer<R>>,
}

/// The metrics of one layer and call; names are the reference's, but for the last.
#[derive(Clone, Debug, Default)]
pub struct LayerMetrics<R> {
    /// Mean squared log-sum-exp of the router logits.
    pub unscaled_router_z_loss: R,
    /// The same times its weight.
    pub router_z_loss: R,
    /// Before its weight; 0 where experts choose.
    pub load_balancing_loss: R,
    /// Share of the tokens that go to no expert; infinite at capacity 0 where experts choose, as the reference has it.
    pub fraction_tokens_left_behind: R,
    /// Mean probability over all filled slots; NaN if there are none.
    pub router_confidence: R,
    /// Share of slots that are filled: 1 where experts choose.
    pub expert_usage: R,
    /// Sum of the weights of each expert's outputs over that of all outputs: 1 in sum, 0 if there are none. `[E]`
    pub expert_load: Vec<R>,
}

/// Gradients of the scalar that is differentiated with respect to the auxiliary losses of a mixture.
#[derive(Clone, Copy, Debug)]
pub struct LossScales<R> {
    /// Of the mean squared log-sum-exp.
    pub z_loss: R,
    /// Of the load-balancing loss.
    pub load_balancing: R,
}

/// Rows of one expert that a task takes at the most.
pub(in crate::network) const MAX_ROWS: usize = 256;

impl Moe {
    /// Declares experts and router.
    pub fn new(list: &mut WeightList, prefix: &str, config: &SparseMixerConfig) -> Self {
        let (hidden, inner, count) = (config.hidden_size, config.expert_inner_dim(), config.num_experts);
        let experts = FeedForward::stacked(list, &format!("{prefix}/moe/experts"), count, hidden, inner);
        Moe { experts, count, inner, router: Router::new(list, prefix, hidden, count) }
    }

    /// Routes all tokens of `h` (`[B*S, H]`) in block `layer` and runs the experts for the first `requested` of every
    /// example.
    pub fn forward<R: Real>(
        self,
        pass: &Pass<'_, R>,
        activation: &Activation<R>,
        layer: usize,
        h: &[R],
        requested: usize,
    ) -> Result<Mixture<R>> {
        let _place = at(Place::Mixture);
        // 1. the routing assignment
        let routing_place = at(Place::Router);
        let routing = self.router.route(pass, layer, h)?;
        let mut slots = Dispatch::new(pass.context, &routing, pass.config.group_mixup);
        let metrics = match pass.context.is_dry() {
            true => LayerMetrics::default(),
            false => LayerMetrics::new(pass.config, &routing, &slots),
        };
        drop(routing_place);
        // 2. experts on their tokens, gathered; dropout counts the rows of all tokens
        let dropout = pass.dropout(pass.config.expert_dropout(), Purpose::ExpertDropout, layer);
        if requested < pass.seq && dropout.is_none() {
            slots = slots.retain(pass.context, requested, pass.seq);
        }
        let (hidden, rows) = (pass.config.hidden_size, slots.rows());
        let mut expert_out = pass.context.buffer(rows * hidden);
        let gather = |task: RowBlock, x: &mut [R]| slots.gather(rows_of(&slots, task), h, x);
        let segments = self.segments(pass, &slots);
        let mut pre = pass.training_buffer(rows * self.inner);
        let finish = |task: RowBlock, out: &mut [R]| {
            if let Some(dropout) = &dropout {
                dropout.apply(pass.context.isa, out, rows_of(&slots, task).start * hidden);
            }
        };
        let run = Run { activation, layers: self.experts, segments: &segments };
        run.forward(pass, gather, &mut expert_out, pre.as_deref_mut(), finish)?;
        Ok(Mixture { routing, metrics, slots, expert_out, pre })
    }

    /// Runs of rows of one expert (the block's `example`), in order.
    fn segments<R: Real>(self, pass: &Pass<'_, R>, slots: &Dispatch<R>) -> Vec<RowBlock> {
        let all = slots.rows();
        let size = all.div_ceil(pass.context.threads()).next_multiple_of(32).clamp(1, MAX_ROWS);
        let segments = (0..self.count).flat_map(|example| {
            let rows = slots.of_expert(example).len();
            (0..rows).step_by(size).map(move |first| RowBlock {
                example,
                first,
                rows: size.min(rows - first),
            })
        });
        alloc_collect_up_to((self.count + all / size).min(pass.context.enough_tasks()), segments)
    }
}

/// The rows of a run of rows of one expert.
fn rows_of<R: Real>(slots: &Dispatch<R>, task: RowBlock) -> Range<usize> {
    let first = slots.of_expert(task.example).start + task.first;
    first..first + task.rows
}

impl Moe {
    /// Backward of [`Moe::forward`] on `h`: writes `dh`, adds to the gradients.
    ///
    /// `dy` is the gradient of the layer's result, `[B*S, H]`. The routing assignment is held constant.
    pub fn backward<R: Real>(
        self,
        pass: &Pass<'_, R>,
        activation: &Activation<R>,
        layer: usize,
        h: &[R],
        mixture: &Mixture<R>,
        dy: &[R],
        scales: LossScales<R>,
        dh: &mut [R],
        gradients: &mut Gradients<R>,
    ) -> Result<()> {
        let _place = at(Place::MixtureBackward);
        let (isa, hidden, inner) = (pass.context.isa, pass.config.hidden_size, self.inner);
        let Some(pre) = &mixture.pre else {
            return Err(Error::Internal("a mixture without its training record".into()));
        };
        let (routing, slots) = (&mixture.routing, &mixture.slots);
        let (experts, rows) = (self.count, slots.rows());
        // 3. y[t] = sum of p * expert_out: gradients of the experts' results, and of p (one more column)
        let dropout = pass.dropout(pass.config.expert_dropout(), Purpose::ExpertDropout, layer);
        let mut dout = pass.context.buffer(rows * hidden);
        let mut dp = pass.context.buffer(rows);
        let segments = self.segments(pass, slots);
        pass.each_block_of(&segments, [(&mut dout, hidden), (&mut dp, 1)], |task, [dout, dp], _| {
            let _time = timed(Work::Residual);
            let own = rows_of(slots, task);
            let first = own.start * hidden;
            let outputs = mixture.expert_out[first..own.end * hidden].chunks_exact(hidden);
            for (((slot, dout), dp), output) in
                own.map(|row| slots.slot(row)).zip(dout.chunks_exact_mut(hidden)).zip(dp).zip(outputs)
            {
                let dy = &dy[slot.token as usize * hidden..][..hidden];
                *dp = dot(output, dy);
                dout.iter_mut().zip(dy).for_each(|(d, &g)| *d = slot.weight * g);
            }
            if let Some(dropout) = &dropout {
                dropout.apply(pass.context.isa, dout, first);
            }
        })?;
        // 2. the experts, on their tokens again
        let mut dx = pass.context.buffer(rows * hidden);
        for e in 0..experts {
            let rows = slots.of_expert(e);
            let mut x = pass.context.buffer(rows.len() * hidden);
            pass.each_block(&Pass::<R>::fixed_blocks(rows.len()), &mut x, hidden, |task, x, _| {
                slots.gather(rows_of(slots, RowBlock { example: e, ..task }), h, x);
            })?;
            let at = |width: usize| rows.start * width..rows.end * width;
            self.experts.backward(
                pass,
                activation,
                e,
                &x,
                &pre[at(inner)],
                &dout[at(hidden)],
                &mut dx[at(hidden)],
                gradients,
            )?;
        }
        // 1. routing, and what came back to each token, by expert
        let mut dprobabilities = pass.context.buffer(pass.batch * pass.seq * experts);
        routing.load_balancing_gradient(scales.load_balancing, &mut dprobabilities);
        for (row, &dp) in dp.iter().enumerate() {
            let slot = slots.slot(row);
            dprobabilities[slot.token as usize * experts + slot.expert as usize] += dp;
        }
        let routing_place = at(Place::Router);
        self.router.backward(pass, layer, h, routing, &mut dprobabilities, scales.z_loss, dh, gradients)?;
        drop(routing_place);
        let _time = timed(Work::Residual);
        pass.each_block(&pass.row_blocks(pass.seq), dh, hidden, |block, dh, _| {
            let first = block.example * pass.seq + block.first;
            for (token, dh) in (first..).zip(dh.chunks_exact_mut(hidden)) {
                for &row in slots.of_token(token) {
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
    /// Adds the expert outputs for the tokens of `block` to `out` (`[rows, H]`).
    pub fn add_rows(&self, pass: &Pass<'_, R>, block: RowBlock, out: &mut [R]) {
        let _time = timed(Work::Residual);
        let hidden = pass.config.hidden_size;
        let first = block.example * pass.seq + block.first;
        for (token, out) in (first..).zip(out.chunks_exact_mut(hidden)) {
            for &row in self.slots.of_token(token) {
                let weight = self.slots.slot(row as usize).weight;
                axpy(pass.context.isa, out, weight, &self.expert_out[row as usize * hidden..][..hidden]);
            }
        }
    }
}

impl<R: Real> LayerMetrics<R> {
    /// The metrics of what `routing` did; `slots` are all that it filled.
    fn new(config: &SparseMixerConfig, routing: &Routing<R>, slots: &Dispatch<R>) -> Self {
        let Grouping { groups, tokens, capacity } = routing.grouping;
        let all = groups * tokens;
        let reached = (0..all).filter(|&token| !slots.of_token(token).is_empty()).count();
        let filled = slots.rows() as f64;
        let confidence: f64 = (0..all)
            .flat_map(|token| slots.of_token(token))
            .map(|&row| slots.slot(row as usize).weight.to_f64())
            .sum();
        let mut load = vec![0.0; routing.experts()];
        for slot in (0..slots.rows()).map(|row| slots.slot(row)) {
            load[slot.expert as usize] += slot.weight.to_f64();
        }
        let whole = if confidence > 0.0 { confidence } else { 1.0 };
        let experts_choose = config.router == RouterKind::ExpertsChoose;
        LayerMetrics {
            unscaled_router_z_loss: routing.z_loss,
            router_z_loss: routing.z_loss * R::from_f64(config.semantics().router_z_loss_weight),
            load_balancing_loss: routing.load_balancing_loss,
            fraction_tokens_left_behind: R::from_f64(if capacity == 0 && experts_choose {
                f64::INFINITY
            } else {
                1.0 - reached as f64 / all as f64
            }),
            router_confidence: R::from_f64(confidence / filled),
            expert_usage: if experts_choose {
                R::ONE
            } else {
                R::from_f64(filled / (groups * routing.experts()) as f64 / capacity as f64)
            },
            expert_load: load.into_iter().map(|weight| R::from_f64(weight / whole)).collect(),
        }
    }
}
