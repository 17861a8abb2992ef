//! Multi-head self-attention:
//! `out = concat_n(softmax(mask((q_n / sqrt D) k_n^T)) v_n) Wo + bo`, `[rows, H]`, heads of size `D`.
//!
//! In pre-norm blocks queries come from the normalised stream, keys and values from the stream itself (the reference's
//! `TransformerScaffold` does so). The mask is `attention_mask.rs`'s, what a head does `attention_head.rs`'s.
//! Source: `tf_keras.layers.MultiHeadAttention` and `SelfAttentionMask`.

use crate::error::Result;
use crate::kernels::{LhsBuffer, PANEL, Real, add_in_place};
use crate::layers::{Dense, FEW_ROWS_TASKS, Product, join_columns};
use crate::params::{Gradients, WeightList};
use crate::runtime::{ActivationPanels, Buffer, TaskScratch};
use crate::sys::{Work, alloc_collect_up_to, alloc_zeroed, timed};

use crate::network::pass::{Pass, RowBlock, RowGroup, split_rows};
use crate::network::position_bias::PositionBias;

use super::attention_head::{Head, scale, scores_at_once};

/// The four projections.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// To queries.
    query: Dense,
    /// To keys.
    key: Dense,
    /// To values.
    value: Dense,
    /// Back to the stream.
    output: Dense,
    hidden: usize,
    heads: usize,
    /// What is added to scores, if something is.
    position_bias: Option<PositionBias>,
}

/// Keys and values of all tokens, one right operand per example and head.
#[derive(Debug)]
pub struct KeysValues<R: Real> {
    /// `[D, S]`
    keys: ActivationPanels<R>,
    /// `[S, D]`
    values: ActivationPanels<R>,
}

impl<R: Real> KeysValues<R> {
    /// Those of one head, number `index` of example and head together.
    fn head(&self, index: usize, layer: usize) -> Head<'_, R> {
        Head { keys: self.keys.view(index), values: self.values.view(index), index, layer }
    }
}

impl Attention {
    /// Declares the projections.
    pub fn new(
        list: &mut WeightList,
        prefix: &str,
        hidden: usize,
        heads: usize,
        position_bias: Option<PositionBias>,
    ) -> Self {
        let head = hidden / heads;
        let mut dense = |name: &str, kernel: &[usize], bias: &[usize]| {
            Dense::shaped(list, &format!("{prefix}/self_attention/{name}"), 1, (hidden, hidden), kernel, bias)
        };
        let query = dense("query", &[hidden, heads, head], &[heads, head]);
        let key = dense("key", &[hidden, heads, head], &[heads, head]);
        let value = dense("value", &[hidden, heads, head], &[heads, head]);
        let output = dense("attention_output", &[heads, head, hidden], &[hidden]);
        Attention { query, key, value, output, hidden, heads, position_bias }
    }

    /// Keys and values of all tokens of `x` (`[B*S, H]`).
    pub fn prepare<R: Real>(self, pass: &Pass<'_, R>, x: &[R]) -> Result<KeysValues<R>> {
        let (context, isa, seq) = (pass.context, pass.context.isa, pass.seq);
        let Attention { hidden, heads, .. } = self;
        let head = hidden / heads;
        let products = [self.key, self.value].map(|dense| dense.product(pass.weights));
        let [key, _] = &products;
        let mut keys = context.panels(key.dtype(), pass.batch * heads, head, seq);
        let mut values = context.panels(key.dtype(), pass.batch * heads, seq, head);
        let blocks = pass.row_blocks(seq);
        let groups = pass.groups(&blocks);
        // Where each block's keys and values go, the keys transposed
        let longest = blocks.first().map_or(PANEL, |block| block.rows.next_multiple_of(PANEL));
        let chunks = keys.column_chunks_mut(heads, longest)?.zip(values.row_chunks_mut(heads, longest)?);
        let mut chunks = alloc_collect_up_to(blocks.len(), chunks);
        let tasks = groups.iter().zip(split_rows(&mut chunks, groups.iter().map(|group| group.blocks.len())));
        let run = heads_per_run(heads, head);
        context.each(tasks, |(group, chunks), scratch| {
            let ([rows], [lhs, _]) = scratch.split([group.rows * run * head]);
            let left = key.prepare(isa, group.of(x, seq, hidden, &mut []), group.rows, lhs);
            for (product, of_keys) in products.iter().zip([true, false]) {
                // Some heads at a time, which go to their panels while they are in the L1 cache
                for first in (0..heads).step_by(run) {
                    let width = run.min(heads - first) * head;
                    let rows = &mut rows[..group.rows * width];
                    product.columns(isa, left, group.rows, first * head..first * head + width, rows);
                    let mut done = 0;
                    for (block, (keys, values)) in group.blocks.iter().zip(&mut *chunks) {
                        for n in 0..width / head {
                            let rows = &rows[done * width + n * head..];
                            if of_keys {
                                keys.pack_transposed(isa, first + n, rows, width, head, block.rows);
                            } else {
                                values.pack(isa, first + n, rows, width, block.rows, 0..head);
                            }
                        }
                        done += block.rows;
                    }
                }
            }
        })?;
        drop(chunks);
        Ok(KeysValues { keys, values })
    }

    /// `out` = attention output for the rows of `group`, whose queries come from `x` (`[B*S, H]`). `kept`, unless empty,
    /// receives the queries over `sqrt D` and what heads mix.
    pub fn rows<R: Real>(
        self,
        pass: &Pass<'_, R>,
        state: &KeysValues<R>,
        layer: usize,
        group: RowGroup<'_>,
        x: &[R],
        out: &mut [R],
        kept: [&mut [R]; 2],
        scratch: &mut TaskScratch<R>,
    ) {
        let (isa, seq, hidden) = (pass.context.isa, pass.seq, self.hidden);
        let head = hidden / self.heads;
        let [query, output] = [self.query, self.output].map(|dense| dense.product(pass.weights));
        let most = group.blocks.iter().map(|block| scores_at_once(block.rows, seq)).max().unwrap_or(0);
        let len = group.rows * hidden;
        let own = if kept[0].is_empty() { len } else { 0 };
        let ([own_queries, own_mixed, scores, sums], lhs) = scratch.split([own, own, most * seq, most]);
        let [queries, mixed] = if own > 0 { [own_queries, own_mixed] } else { kept };
        // 1. q = (x Wq + bq) / sqrt D; rows that do not follow each other meet where their results go
        let x = group.of(x, seq, hidden, mixed);
        query.rows(isa, x, group.rows, queries, &mut lhs[0]);
        self.scale(queries);
        let mut first = 0;
        for (block, mixed) in group.split(mixed, hidden) {
            let queries = &queries[first..][..mixed.len()];
            first += mixed.len();
            for n in 0..self.heads {
                let index = block.example * self.heads + n;
                let at = n * head;
                state.head(index, layer).attend(
                    pass,
                    block,
                    &queries[at..],
                    &mut mixed[at..],
                    hidden,
                    (scores, sums),
                    lhs,
                );
            }
        }
        // 5. out = mixed Wo + bo
        output.rows(isa, mixed, group.rows, out, &mut lhs[0]);
    }

    /// [`Attention::prepare`] and [`Attention::rows`] for few rows, which tasks share out by heads, then by columns:
    /// `out` = attention output for the first `rows` rows of every example, `[B*rows, H]`. Queries come from `q`, keys
    /// and values from `kv`, both `[B*S, H]`.
    pub fn few_rows<R: Real>(
        self,
        pass: &Pass<'_, R>,
        layer: usize,
        q: &[R],
        kv: &[R],
        rows: usize,
        out: &mut [R],
    ) -> Result<()> {
        let (context, isa, seq) = (pass.context, pass.context.isa, pass.seq);
        let Attention { hidden, heads, .. } = self;
        let (head, all, keys) = (hidden / heads, pass.batch * rows, pass.batch * seq);
        let dense = [self.query, self.key, self.value, self.output];
        let [query, key, value, output] = dense.map(|dense| dense.product(pass.weights));
        let (mut lhs, mut kv_lhs) = (LhsBuffer::default(), LhsBuffer::default());
        let mut first_rows = context.buffer(all * hidden);
        let kv_left = key.prepare(isa, kv, keys, &mut kv_lhs);
        let left = if std::ptr::eq(q, kv) && rows == seq {
            kv_left
        } else {
            let examples = q.chunks_exact(seq * hidden);
            let _time = timed(Work::Copy);
            for (own, example) in first_rows.chunks_exact_mut(rows * hidden).zip(examples) {
                own.copy_from_slice(&example[..rows * hidden]);
            }
            query.prepare(isa, &first_rows, all, &mut lhs)
        };
        // 1 to 4. runs of heads whose columns begin at the start of a panel
        let least = heads_per_run(heads, head);
        let per_task = least * heads.div_ceil(least).div_ceil(FEW_ROWS_TASKS * context.threads());
        let mut mixed = context.buffer(all * hidden);
        context.each(mixed.chunks_mut(all * per_task * head).enumerate(), |(task, mixed), scratch| {
            let width = mixed.len() / all;
            let columns = task * per_task * head..task * per_task * head + width;
            let most = scores_at_once(rows, seq);
            let lengths = [all * width, keys * width, keys * width, most * seq, most];
            let ([queries, key_rows, value_rows, scores, sums], lhs) = scratch.split(lengths);
            query.columns(isa, left, all, columns.clone(), queries);
            self.scale(queries);
            key.columns(isa, kv_left, keys, columns.clone(), key_rows);
            value.columns(isa, kv_left, keys, columns, value_rows);
            let mut own_keys = context.panels(key.dtype(), 1, head, seq);
            let mut own_values = context.panels(key.dtype(), 1, seq, head);
            for (example, n) in
                (0..pass.batch).flat_map(|example| (0..width / head).map(move |n| (example, n)))
            {
                let at = example * seq * width + n * head;
                own_keys.whole_mut(0).pack(isa, &key_rows[at..], width, true, head, seq);
                own_values.whole_mut(0).pack(isa, &value_rows[at..], width, false, seq, head);
                let index = example * heads + task * per_task + n;
                let matrix = Head { keys: own_keys.view(0), values: own_values.view(0), index, layer };
                let (block, at) = (RowBlock { example, first: 0, rows }, example * rows * width + n * head);
                matrix.attend(pass, block, &queries[at..], &mut mixed[at..], width, (scores, sums), lhs);
            }
        })?;
        // 5. out = mixed Wo + bo
        let mut by_row = first_rows;
        join_columns(&mixed, all, per_task * head, &mut by_row, hidden);
        let left = output.prepare(isa, &by_row, all, &mut kv_lhs);
        output.few_rows(context, left, all, out, |_| {})
    }

    /// `q / sqrt D`
    fn scale<R: Real>(self, queries: &mut [R]) {
        let scale = scale::<R>(self.hidden / self.heads);
        queries.iter_mut().for_each(|q| *q *= scale);
    }

    /// Backward of the layer: writes `dx` (gradient of what the queries come from), adds to `dkv` (of what keys and values come
    /// from) and to the gradients. All arrays are `[B*S, H]`.
    ///
    /// `state` is what [`Attention::prepare`] made, `queries` (over `sqrt D`) and `mixed` what [`Attention::rows`] kept;
    /// attention weights, far larger, are computed again.
    pub fn backward<R: Real>(
        self,
        pass: &Pass<'_, R>,
        state: &KeysValues<R>,
        [queries, mixed]: &[Buffer<R>; 2],
        layer: usize,
        x: &[R],
        kv: &[R],
        dy: &[R],
        dx: &mut [R],
        dkv: &mut [R],
        gradients: &mut Gradients<R>,
    ) -> Result<()> {
        let (context, isa, seq) = (pass.context, pass.context.isa, pass.seq);
        let Attention { hidden, heads, .. } = self;
        let (head, all) = (hidden / heads, pass.batch * seq);
        let transposed = |dense: Dense| context.transposed(dense.kernel(pass.weights, 0));
        let blocks = Pass::<R>::fixed_blocks(all);
        // 5. undone: d mixed = dy Wo^T
        let mut dmixed = context.buffer(all * hidden);
        let output = transposed(self.output)?;
        let output = Product::transposed(&output);
        pass.each_block(&blocks, &mut dmixed, hidden, |block, out, scratch| {
            let (_, [lhs, _]) = scratch.split([]);
            output.rows(isa, block.of(dy, all, hidden), block.rows, out, lhs);
        })?;
        // Per example and head: [d query, d key, d value], each [S, D], and d biases
        let size = seq * head;
        let offsets = self.position_bias.map_or(0, |_| 2 * seq - 1);
        let whole = 3 * size + offsets;
        let mut by_head = context.buffer(pass.batch * heads * whole);
        context.each(by_head.chunks_exact_mut(whole).enumerate(), |(index, gradients), scratch| {
            // Rows of the head, `hidden` values apart
            let at = index / heads * seq * hidden + index % heads * head;
            let (queries, dmixed) = (&queries[at..], &dmixed[at..]);
            state.head(index, layer).backward(pass, queries, dmixed, hidden, gradients, scratch);
        })?;
        // Heads side by side again: [d query, d key, d value], each [B*S, H]
        let copying = timed(Work::Copy);
        let mut parts = [(); 3].map(|()| context.buffer(all * hidden));
        for (part, out) in parts.iter_mut().enumerate() {
            pass.each_block(&pass.row_blocks(seq), out, hidden, |block, out, _| {
                for (s, row) in (block.first..).zip(out.chunks_exact_mut(hidden)) {
                    for (n, own) in row.chunks_exact_mut(head).enumerate() {
                        let at = (block.example * heads + n) * whole + part * size + s * head;
                        own.copy_from_slice(&by_head[at..at + head]);
                    }
                }
            })?;
        }
        drop(copying);
        if let Some(position_bias) = self.position_bias {
            let mut dbiases: Vec<R> = alloc_zeroed(heads * offsets);
            for example in by_head.chunks_exact(heads * whole) {
                for (sum, own) in dbiases.chunks_exact_mut(offsets).zip(example.chunks_exact(whole)) {
                    add_in_place(isa, sum, &own[3 * size..]);
                }
            }
            position_bias.add_gradients(context, &dbiases, seq, gradients);
        }
        let [dqueries, dkeys, dvalues] = &parts;
        // 1 and 5. the projections
        let projections = [(self.query, x, dqueries), (self.key, kv, dkeys), (self.value, kv, dvalues)];
        for (dense, x, dy) in projections {
            dense.add_gradients(context, pass.weights, 0, x, dy, gradients)?;
        }
        self.output.add_gradients(context, pass.weights, 0, mixed, dy, gradients)?;
        let [query, key, value] = [self.query, self.key, self.value].map(transposed);
        let (query, key, value) = (query?, key?, value?);
        let [query, key, value] = [&query, &key, &value].map(Product::transposed);
        pass.each_block_of(&blocks, [(dx, hidden), (dkv, hidden)], |block, [dx, dkv], scratch| {
            let (_, [lhs, _]) = scratch.split([]);
            query.rows(isa, block.of(dqueries, all, hidden), block.rows, dx, lhs);
            key.add_rows(isa, block.of(dkeys, all, hidden), block.rows, dkv, lhs);
            value.add_rows(isa, block.of(dvalues, all, hidden), block.rows, dkv, lhs);
        })
    }
}

/// The fewest of `heads` heads of `head` columns each, side by side, that are whole panels; or all of them.
fn heads_per_run(heads: usize, head: usize) -> usize {
    (1..=heads).find(|count| (count * head).is_multiple_of(PANEL)).unwrap_or(heads)
}
