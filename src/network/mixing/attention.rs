//! Multi-head self-attention:
//! `out = concat_n(softmax(mask((q_n / sqrt D) k_n^T)) v_n) Wo + bo`, `[rows, H]`, heads of size `D`.
//!
//! In pre-norm blocks queries come from the normalised stream, keys and values from the stream itself (the reference's
//! `TransformerScaffold` does so). The mask is `attention_mask.rs`'s. Scores exist for one block of queries and one head at a
//! time.
//! Source: `tf_keras.layers.MultiHeadAttention` and `SelfAttentionMask`.

use crate::error::Result;
use crate::kernels::{
    Init, LhsBuffer, PackedMatrix, Real, matmul, prepare_lhs, softmax_backward, softmax_in_place, transpose,
};
use crate::layers::{bias_gradient, kernel_gradient};
use crate::params::{Loader, Param, ParamMut, Spec};
use crate::random::Purpose;
use crate::runtime::{ActivationPanels, TaskScratch};

use crate::network::pass::{Pass, RowBlock};

/// A projection with bias.
#[derive(Clone, Debug)]
pub struct Projection<R> {
    /// `[H, N*D]`, of the output `[N*D, H]`
    pub kernel: PackedMatrix<R>,
    /// One value per output column.
    pub bias: Vec<R>,
}

/// The four projections.
#[derive(Clone, Debug)]
pub struct Attention<R> {
    /// To queries.
    pub query: Projection<R>,
    /// To keys.
    pub key: Projection<R>,
    /// To values.
    pub value: Projection<R>,
    /// Back to the stream.
    pub output: Projection<R>,
    heads: usize,
}

/// Keys and values of all tokens, one right operand per example and head.
#[derive(Debug)]
pub struct KeysValues<R: Real> {
    /// `[D, S]`
    keys: ActivationPanels<R>,
    /// `[S, D]`
    values: ActivationPanels<R>,
}

/// Score values that a task holds at once: bounds the block of queries for long sequences.
pub(in crate::network) const MAX_SCORES: usize = 1 << 16;

/// The weights.
pub fn specs(prefix: &str, hidden: usize, heads: usize) -> Vec<Spec> {
    let head = hidden / heads;
    let mut specs = Vec::new();
    for name in ["query", "key", "value"] {
        specs.push(Spec::kernel(format!("{prefix}/self_attention/{name}/kernel"), &[hidden, heads, head]));
        specs.push(Spec::bias(format!("{prefix}/self_attention/{name}/bias"), &[heads, head]));
    }
    let output = format!("{prefix}/self_attention/attention_output");
    specs.push(Spec::kernel(format!("{output}/kernel"), &[heads, head, hidden]));
    specs.push(Spec::bias(format!("{output}/bias"), &[hidden]));
    specs
}

impl<R: Real> Projection<R> {
    fn load(loader: &mut Loader<'_, R>, size: usize) -> Result<Self> {
        Ok(Projection { kernel: loader.matrix(size, size)?, bias: loader.vector(size)? })
    }

    /// Adds to the gradients of kernel and bias, over all rows.
    fn add_gradients(&self, pass: &Pass<'_, R>, x: &[R], dy: &[R], grads: &mut [Vec<R>]) -> Result<()> {
        let rows = pass.batch * pass.seq;
        kernel_gradient(pass.context, self.kernel.dtype(), rows, x, dy, &mut grads[0])?;
        bias_gradient(pass.context, dy, &mut grads[1])
    }

    /// `out = x W + b` for `rows` rows.
    fn forward(&self, pass: &Pass<'_, R>, x: &[R], rows: usize, out: &mut [R], lhs: &mut LhsBuffer) {
        let (k, n) = (self.kernel.k(), self.kernel.n());
        let isa = pass.context.isa;
        let x = prepare_lhs(isa, x, rows, k, k, self.kernel.dtype(), lhs);
        matmul(isa, rows, x, self.kernel.view(), 0..n, out, n, Init::Bias(&self.bias));
    }
}

impl<R: Real> Attention<R> {
    /// Takes the weights in the order of [`specs`].
    pub fn load(loader: &mut Loader<'_, R>, hidden: usize, heads: usize) -> Result<Self> {
        Ok(Attention {
            query: Projection::load(loader, hidden)?,
            key: Projection::load(loader, hidden)?,
            value: Projection::load(loader, hidden)?,
            output: Projection::load(loader, hidden)?,
            heads,
        })
    }

    /// The weights in the order of [`specs`].
    pub fn params(&self) -> Vec<Param<'_, R>> {
        [&self.query, &self.key, &self.value, &self.output]
            .into_iter()
            .flat_map(|p| [Param::matrix(&p.kernel), Param::vector(&p.bias)])
            .collect()
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> Vec<ParamMut<'_, R>> {
        [&mut self.query, &mut self.key, &mut self.value, &mut self.output]
            .into_iter()
            .flat_map(|p| [ParamMut::matrix(&mut p.kernel), ParamMut::vector(&mut p.bias)])
            .collect()
    }

    /// Keys and values of all tokens of `x` (`[B*S, H]`).
    pub fn prepare(&self, pass: &Pass<'_, R>, x: &[R]) -> Result<KeysValues<R>> {
        let (context, seq, heads) = (pass.context, pass.seq, self.heads);
        let hidden = self.key.kernel.n();
        let head = hidden / heads;
        let mut rows = context.buffer(pass.batch * seq * 2 * hidden);
        // 1. rows of [key | value]
        let blocks = pass.row_blocks(seq);
        pass.each_block(&blocks, &mut rows, 2 * hidden, |block, out, scratch| {
            let x = block.of(x, seq, hidden);
            let (_, [lhs, _]) = scratch.split([]);
            let (keys, values) = out.split_at_mut(block.rows * hidden);
            self.key.forward(pass, x, block.rows, keys, lhs);
            self.value.forward(pass, x, block.rows, values, lhs);
        })?;
        // 2. panels: keys transposed, values as they are
        let dtype = self.key.kernel.dtype();
        let mut keys = context.panels(dtype, pass.batch * heads, head, seq);
        let mut values = context.panels(dtype, pass.batch * heads, seq, head);
        let tasks = keys.chunks_mut(usize::MAX).into_iter().zip(values.chunks_mut(usize::MAX)).enumerate();
        let tasks: Vec<_> = tasks.collect();
        context.each(tasks.into_iter(), |(index, (mut keys, mut values)), scratch| {
            let (example, n) = (index / heads, index % heads);
            let ([own_keys, own_values], _) = scratch.split([seq * head, seq * head]);
            for block in blocks.iter().filter(|block| block.example == example) {
                let pair = block.of(&rows, seq, 2 * hidden);
                let (k, v) = pair.split_at(block.rows * hidden);
                for r in 0..block.rows {
                    let at = (block.first + r) * head;
                    let from = r * hidden + n * head;
                    own_keys[at..at + head].copy_from_slice(&k[from..from + head]);
                    own_values[at..at + head].copy_from_slice(&v[from..from + head]);
                }
            }
            keys.pack(context.isa, own_keys, head, true, head, seq);
            values.pack(context.isa, own_values, head, false, seq, head);
        })?;
        Ok(KeysValues { keys, values })
    }

    /// `out` = attention output for the rows of `block`, whose queries come from `x` (`[rows, H]`).
    pub fn rows(
        &self,
        pass: &Pass<'_, R>,
        state: &KeysValues<R>,
        layer: usize,
        block: RowBlock,
        x: &[R],
        out: &mut [R],
        scratch: &mut TaskScratch<R>,
    ) {
        let (isa, seq) = (pass.context.isa, pass.seq);
        let hidden = self.query.kernel.n();
        let head = hidden / self.heads;
        let dtype = self.key.kernel.dtype().of_activations();
        let dropout = pass.dropout(pass.config.attention_dropout, Purpose::AttentionDropout, layer);
        let scale = R::from_f64(1.0 / (head as f64).sqrt());
        let step = (MAX_SCORES / seq).clamp(1, block.rows);
        let ([queries, mixed, scores], [lhs, score_lhs]) =
            scratch.split([block.rows * hidden, block.rows * hidden, step * seq]);
        // 1. q = (x Wq + bq) / sqrt D
        self.query.forward(pass, x, block.rows, queries, lhs);
        queries.iter_mut().for_each(|q| *q *= scale);
        for n in 0..self.heads {
            let matrix = block.example * self.heads + n;
            let (keys, values) = (state.keys.view(matrix), state.values.view(matrix));
            for first in (0..block.rows).step_by(step) {
                let rows = step.min(block.rows - first);
                let at = first * hidden + n * head;
                let scores = &mut scores[..rows * seq];
                // 2. scores = q k^T, masked
                let q = prepare_lhs(isa, &queries[at..], rows, head, hidden, dtype, lhs);
                matmul(isa, rows, q, keys, 0..seq, scores, seq, Init::Zero);
                pass.attention_mask.mask(isa, block.example, block.first + first, scores, seq);
                // 3. softmax over keys, dropout
                softmax_in_place(isa, scores, seq);
                if let Some(dropout) = &dropout {
                    dropout.apply(
                        isa,
                        scores,
                        (dropout_matrix(pass, matrix) * seq + block.first + first) * seq,
                    );
                }
                // 4. weighted sum of values
                let p = prepare_lhs(isa, scores, rows, seq, seq, dtype, score_lhs);
                matmul(isa, rows, p, values, 0..head, &mut mixed[at..], hidden, Init::Zero);
            }
        }
        // 5. out = mixed Wo + bo
        self.output.forward(pass, mixed, block.rows, out, lhs);
    }

    /// Undoes the layer: writes `dx` (gradient of what the queries come from), adds to `dkv` (of what keys and values come
    /// from) and to the gradients, in the order of [`specs`]. All arrays are `[B*S, H]`.
    ///
    /// `state` is what [`Attention::prepare`] made; queries and attention weights are computed again rather than kept.
    pub fn backward(
        &self,
        pass: &Pass<'_, R>,
        state: &KeysValues<R>,
        layer: usize,
        x: &[R],
        kv: &[R],
        dy: &[R],
        dx: &mut [R],
        dkv: &mut [R],
        grads: &mut [Vec<R>],
    ) -> Result<()> {
        let (context, isa, seq, heads) = (pass.context, pass.context.isa, pass.seq, self.heads);
        let hidden = self.query.kernel.n();
        let (head, all) = (hidden / heads, pass.batch * seq);
        let scale = R::from_f64(1.0 / (head as f64).sqrt());
        let weights = self.key.kernel.dtype();
        let dtype = weights.of_activations();
        let blocks = Pass::<R>::fixed_blocks(all);
        // Forward again, and 5. undone: rows of [query / sqrt D | d mixed = dy Wo^T]
        let mut rows = context.buffer(all * 2 * hidden);
        let turned_output = context.transposed(&self.output.kernel)?;
        pass.each_block(&blocks, &mut rows, 2 * hidden, |block, out, scratch| {
            let ([own], [lhs, _]) = scratch.split([block.rows * hidden]);
            let of = |values| block.of(values, all, hidden);
            self.query.forward(pass, of(x), block.rows, own, lhs);
            own.iter_mut().for_each(|q| *q *= scale);
            place(own, out, 0, hidden);
            let dy = prepare_lhs(isa, of(dy), block.rows, hidden, hidden, weights, lhs);
            matmul(isa, block.rows, dy, turned_output.view(0), 0..hidden, own, hidden, Init::Zero);
            place(own, out, 1, hidden);
        })?;
        // Per example and head: [d query, d key, d value, mixed], each [S, D]
        let dropout = pass.dropout(pass.config.attention_dropout, Purpose::AttentionDropout, layer);
        let step = (MAX_SCORES / seq).clamp(1, seq);
        let size = seq * head;
        let mut by_head = context.buffer(pass.batch * heads * 4 * size);
        context.each(by_head.chunks_exact_mut(4 * size).enumerate(), |(matrix, out), scratch| {
            let (example, n) = (matrix / heads, matrix % heads);
            let scores = step * seq;
            let ([own, p, dp, dropped, transposed], [lhs, other_lhs]) =
                scratch.split([2 * size, scores, scores, scores, scores]);
            for s in 0..seq {
                let row = &rows[(example * seq + s) * 2 * hidden + n * head..];
                for part in 0..2 {
                    own[part * size + s * head..][..head].copy_from_slice(&row[part * hidden..][..head]);
                }
            }
            let (queries, dmixed) = own.split_at(size);
            let (key_columns, value_rows) = (state.keys.view(matrix), state.values.view(matrix));
            let mut key_rows = context.panels(weights, 1, seq, head);
            let mut value_columns = context.panels(weights, 1, head, seq);
            for (matrix, transposed) in [(key_columns, &mut key_rows), (value_rows, &mut value_columns)] {
                for (panel, mut out) in transposed.chunks_mut(1).into_iter().enumerate() {
                    out.transpose(isa, &matrix, panel);
                }
            }
            let (dqueries, rest) = out.split_at_mut(size);
            let (dkeys, rest) = rest.split_at_mut(size);
            let (dvalues, mixed) = rest.split_at_mut(size);
            dkeys.fill(R::ZERO);
            dvalues.fill(R::ZERO);
            for first in (0..seq).step_by(step) {
                let count = step.min(seq - first);
                let at = first * head..(first + count) * head;
                let (p, dp) = (&mut p[..count * seq], &mut dp[..count * seq]);
                // 2, 3. attention weights, again
                let q = prepare_lhs(isa, &queries[at.clone()], count, head, head, dtype, lhs);
                matmul(isa, count, q, key_columns, 0..seq, p, seq, Init::Zero);
                pass.attention_mask.mask(isa, example, first, p, seq);
                softmax_in_place(isa, p, seq);
                let at_element = (dropout_matrix(pass, matrix) * seq + first) * seq;
                // 4. mixed = dropped(p) v: dp = dropped(d mixed v^T), dv += dropped(p)^T d mixed
                let dm = prepare_lhs(isa, &dmixed[at.clone()], count, head, head, dtype, lhs);
                matmul(isa, count, dm, value_columns.view(0), 0..seq, dp, seq, Init::Zero);
                let transposed = &mut transposed[..seq * count];
                let dropped = &mut dropped[..count * seq];
                dropped.copy_from_slice(p);
                if let Some(dropout) = &dropout {
                    dropout.apply(isa, dp, at_element);
                    dropout.apply(isa, dropped, at_element);
                }
                transpose(isa, dropped, count, seq, seq, transposed, count);
                let w = prepare_lhs(isa, dropped, count, seq, seq, dtype, lhs);
                let out = &mut mixed[at.clone()];
                matmul(isa, count, w, value_rows, 0..head, out, head, Init::Zero);
                let w = prepare_lhs(isa, transposed, seq, count, count, dtype, other_lhs);
                let mut own_rows = context.panels(weights, 1, count, head);
                own_rows.whole_mut(0).pack(isa, &dmixed[at.clone()], head, false, count, head);
                matmul(isa, seq, w, own_rows.view(0), 0..head, dvalues, head, Init::Accumulate);
                // 3. softmax
                softmax_backward(isa, p, dp, seq);
                pass.attention_mask.mask_gradient(example, first, dp, seq);
                // 2. scores = q k^T: dq = ds k, dk += ds^T q
                let ds = prepare_lhs(isa, dp, count, seq, seq, dtype, lhs);
                let out = &mut dqueries[at.clone()];
                matmul(isa, count, ds, key_rows.view(0), 0..head, out, head, Init::Zero);
                out.iter_mut().for_each(|q| *q *= scale);
                transpose(isa, dp, count, seq, seq, transposed, count);
                let ds = prepare_lhs(isa, transposed, seq, count, count, dtype, other_lhs);
                own_rows.whole_mut(0).pack(isa, &queries[at.clone()], head, false, count, head);
                matmul(isa, seq, ds, own_rows.view(0), 0..head, dkeys, head, Init::Accumulate);
            }
        })?;
        // Heads side by side again: [d query, d key, d value, mixed], each [B*S, H]
        let mut parts = [(); 4].map(|()| context.buffer(all * hidden));
        for (part, out) in parts.iter_mut().enumerate() {
            pass.each_block(&pass.row_blocks(seq), out, hidden, |block, out, _| {
                for (s, row) in (block.first..).zip(out.chunks_exact_mut(hidden)) {
                    for (n, own) in row.chunks_exact_mut(head).enumerate() {
                        let at = ((block.example * heads + n) * 4 + part) * size + s * head;
                        own.copy_from_slice(&by_head[at..at + head]);
                    }
                }
            })?;
        }
        let [dqueries, dkeys, dvalues, mixed] = &parts;
        // 1 and 5. the projections
        self.query.add_gradients(pass, x, dqueries, &mut grads[0..2])?;
        self.key.add_gradients(pass, kv, dkeys, &mut grads[2..4])?;
        self.value.add_gradients(pass, kv, dvalues, &mut grads[4..6])?;
        self.output.add_gradients(pass, mixed, dy, &mut grads[6..8])?;
        let [query, key, value] =
            [&self.query, &self.key, &self.value].map(|p| context.transposed(&p.kernel));
        let transposed = [query?, key?, value?];
        pass.each_block_of(&blocks, [(dx, hidden), (dkv, hidden)], |block, [dx, dkv], scratch| {
            let (_, [lhs, _]) = scratch.split([]);
            let mut back = |part: usize, out: &mut [R], init| {
                let dy = block.of(&parts[part], all, hidden);
                let dy = prepare_lhs(isa, dy, block.rows, hidden, hidden, weights, lhs);
                matmul(isa, block.rows, dy, transposed[part].view(0), 0..hidden, out, hidden, init);
            };
            back(0, dx, Init::Zero);
            back(1, dkv, Init::Accumulate);
            back(2, dkv, Init::Accumulate);
        })
    }
}

/// The matrix of dropout numbers that attention weights number `matrix` use.
fn dropout_matrix<R>(pass: &Pass<'_, R>, matrix: usize) -> usize {
    if pass.config.semantics().shared_attention_dropout { 0 } else { matrix }
}

/// Copies rows of `width` to part number `part` of rows of `2 * width`.
fn place<R: Copy>(rows: &[R], out: &mut [R], part: usize, width: usize) {
    for (row, out) in rows.chunks_exact(width).zip(out.chunks_exact_mut(2 * width)) {
        out[part * width..][..width].copy_from_slice(row);
    }
}
