//! Multi-head self-attention:
//! `out = concat_n(softmax((q_n / sqrt D) k_n^T + adder) v_n) Wo + bo`, `[rows, H]`, heads of size `D`.
//!
//! In pre-norm blocks queries come from the normalised stream, keys and values from the stream itself (the reference's
//! `TransformerScaffold` does so). The mask enters as `adder[key] = (1 - mask) * -1e9` in 32-bit arithmetic; a fully
//! masked row therefore attends evenly. Scores exist for one block of queries and one head at a time.
//! Source: `tf_keras.layers.MultiHeadAttention` and `SelfAttentionMask`.

use crate::error::Result;
use crate::kernels::{Init, PackedMatrix, Real, add_in_place, matmul, prepare_lhs, softmax_in_place};
use crate::params::{Loader, Param, ParamMut, Spec};
use crate::runtime::{ActivationPanels, TaskScratch, product_dtype};

use super::pass::{Pass, RowBlock, Site};

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
pub struct Attend<R> {
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
pub struct KeysValues<'p, R: Real> {
    /// `[D, S]`
    keys: ActivationPanels<'p, R>,
    /// `[S, D]`
    values: ActivationPanels<'p, R>,
}

/// Score values that a task holds at once: bounds the block of queries for long sequences.
const MAX_SCORES: usize = 1 << 16;

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

    /// `out = x W + b` for `rows` rows.
    fn forward(
        &self,
        pass: &Pass<'_, R>,
        x: &[R],
        rows: usize,
        out: &mut [R],
        lhs: &mut crate::kernels::LhsBuffer,
    ) {
        let (k, n) = (self.kernel.k(), self.kernel.n());
        let isa = pass.context.isa;
        let x = prepare_lhs(isa, x, rows, k, k, self.kernel.dtype(), lhs);
        matmul(isa, rows, x, self.kernel.view(), 0..n, out, n, Init::Bias(&self.bias));
    }
}

impl<R: Real> Attend<R> {
    /// Takes the weights in the order of [`specs`].
    pub fn load(loader: &mut Loader<'_, R>, hidden: usize, heads: usize) -> Result<Self> {
        Ok(Attend {
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
    pub fn prepare<'p>(&self, pass: &'p Pass<'_, R>, x: &[R]) -> Result<KeysValues<'p, R>> {
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
        // 2. panels: keys turned, values as they are
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
        state: &KeysValues<'_, R>,
        layer: usize,
        block: RowBlock,
        x: &[R],
        out: &mut [R],
        scratch: &mut TaskScratch<R>,
    ) {
        let (isa, seq) = (pass.context.isa, pass.seq);
        let hidden = self.query.kernel.n();
        let head = hidden / self.heads;
        let dtype = product_dtype(self.key.kernel.dtype());
        let dropout = pass.dropout(pass.config.attention_dropout, Site::AttentionWeights, layer);
        let scale = R::from_f64(1.0 / (head as f64).sqrt());
        let adder = &pass.score_adder[block.example * seq..][..seq];
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
                // 2. scores = q k^T + adder
                let q = prepare_lhs(isa, &queries[at..], rows, head, hidden, dtype, lhs);
                matmul(isa, rows, q, keys, 0..seq, scores, seq, Init::Zero);
                scores.chunks_exact_mut(seq).for_each(|row| add_in_place(isa, row, adder));
                // 3. softmax over keys, dropout
                softmax_in_place(isa, scores, seq);
                if let Some(dropout) = &dropout {
                    dropout.apply(scores, (matrix * seq + block.first + first) * seq);
                }
                // 4. weighted sum of values
                let p = prepare_lhs(isa, scores, rows, seq, seq, dtype, score_lhs);
                matmul(isa, rows, p, values, 0..head, &mut mixed[at..], hidden, Init::Zero);
            }
        }
        // 5. out = mixed Wo + bo
        self.output.forward(pass, mixed, block.rows, out, lhs);
    }
}
