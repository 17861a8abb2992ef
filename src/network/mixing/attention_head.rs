//! One head of attention for the queries of one example: scores, softmax and the weighted sum of values, for some queries
//! at a time. Forward and backward; `attention.rs` has the projections around it.

use crate::kernels::{
    Dtype, Init, LhsBuffer, Panels, Real, add_in_place, dropped_softmax_backward, exponentials,
    exponentials_lhs, full_precision_stride, matmul, prepare_lhs, prepare_transposed_lhs, softmax_backward,
    softmax_in_place,
};
use crate::random::Purpose;
use crate::runtime::TaskScratch;
use crate::sys::{Work, timed};

use crate::network::pass::{Pass, RowBlock};
use crate::network::position_bias::of_query_mut;

/// Score values that a task holds at once: bounds the block of queries for long sequences.
const MAX_SCORES: usize = 1 << 16;

/// Queries whose scores a task holds at once, of `rows` queries for `seq` keys.
pub fn scores_at_once(rows: usize, seq: usize) -> usize {
    (MAX_SCORES / seq).clamp(1, rows.max(1))
}

/// What queries of heads of `head` values are multiplied by: `1 / sqrt D`.
pub fn scale<R: Real>(head: usize) -> R {
    R::from_f64(1.0 / (head as f64).sqrt())
}

/// One example's keys and values of one head.
pub struct Head<'a, R> {
    /// `[D, S]`
    pub keys: Panels<'a, R>,
    /// `[S, D]`
    pub values: Panels<'a, R>,
    /// Number of example and head together.
    pub index: usize,
    /// Number of the layer, which dropout depends on.
    pub layer: usize,
}

impl<R: Real> Head<'_, R> {
    /// `out` = weighted sums of values for the queries of `block`, both rows of `D` values `stride` apart. `scores` holds
    /// those of [`scores_at_once`] queries, `sums` one value for each of these.
    pub fn attend(
        &self,
        pass: &Pass<'_, R>,
        block: RowBlock,
        queries: &[R],
        out: &mut [R],
        stride: usize,
        (scores, sums): (&mut [R], &mut [R]),
        [lhs, score_lhs]: &mut [LhsBuffer; 2],
    ) {
        let (isa, seq, head) = (pass.context.isa, pass.seq, self.keys.k);
        let dtype = self.keys.dtype();
        let dropout = pass.dropout(pass.config.attention_dropout, Purpose::AttentionDropout, self.layer);
        let step = scores_at_once(block.rows, seq);
        for first in (0..block.rows).step_by(step) {
            let rows = step.min(block.rows - first);
            let (at, row) = (first * stride, block.first + first);
            let scores = &mut scores[..rows * seq];
            // 2. scores = q k^T, masked
            let q = prepare_lhs(isa, &queries[at..], rows, head, stride, dtype, lhs);
            matmul(isa, rows, q, self.keys, 0..seq, scores, seq, Init::Zero);
            let n = self.index % pass.config.num_attention_heads;
            pass.attention_mask.mask(isa, block.example, n, row, scores, seq);
            // 3. softmax over keys but for the division, dropout
            let p = if let Some(dropout) = &dropout {
                exponentials(isa, scores, seq, sums);
                dropout.apply(isa, scores, (dropout_matrix(pass, self.index) * seq + row) * seq);
                prepare_lhs(isa, scores, rows, seq, seq, dtype, score_lhs)
            } else {
                exponentials_lhs(isa, scores, seq, sums, dtype, score_lhs)
            };
            // 4. weighted sum of values, over the sum of the weights
            let out = &mut out[at..];
            matmul(isa, rows, p, self.values, 0..head, out, stride, Init::Zero);
            for (out, &sum) in out.chunks_mut(stride).zip(&sums[..rows]) {
                let scale = R::ONE / sum;
                out[..head].iter_mut().for_each(|out| *out *= scale);
            }
        }
    }

    /// Backward of [`Head::attend`] for all queries: writes `gradients`, `[d query, d key, d value]` (each `[S, D]`, the first
    /// of the queries before their division by `sqrt D`), then those of the `2 S - 1` position biases, if there are such.
    ///
    /// `queries` (over `sqrt D`) and `dmixed` are rows of `D` values `stride` apart. Attention weights, far larger, are
    /// computed again.
    pub fn backward(
        &self,
        pass: &Pass<'_, R>,
        queries: &[R],
        dmixed: &[R],
        stride: usize,
        gradients: &mut [R],
        scratch: &mut TaskScratch<R>,
    ) {
        let (context, isa, seq, head) = (pass.context, pass.context.isa, pass.seq, self.keys.k);
        let dtype = self.keys.dtype();
        let scale = scale::<R>(head);
        let heads = pass.config.num_attention_heads;
        let (example, n) = (self.index / heads, self.index % heads);
        let dropout = pass.dropout(pass.config.attention_dropout, Purpose::AttentionDropout, self.layer);
        let step = scores_at_once(seq, seq);
        let scores = step * seq;
        let turned = if dtype == Dtype::Bfloat16 { 0 } else { seq * full_precision_stride::<R>(step) };
        let lengths = [scores, scores, if dropout.is_some() { scores } else { 0 }, turned];
        let ([p, dp, dropped, turned], [lhs, other_lhs]) = scratch.split(lengths);
        let mut key_rows = context.panels(dtype, 1, seq, head);
        let mut value_columns = context.panels(dtype, 1, head, seq);
        let transposing = timed(Work::Transpose);
        for (matrix, transposed) in [(self.keys, &mut key_rows), (self.values, &mut value_columns)] {
            for (panel, mut out) in transposed.chunks_mut(1).enumerate() {
                out.transpose(isa, &matrix, panel);
            }
        }
        drop(transposing);
        let size = seq * head;
        let (dqueries, rest) = gradients.split_at_mut(size);
        let (dkeys, rest) = rest.split_at_mut(size);
        let (dvalues, dbiases) = rest.split_at_mut(size);
        dbiases.fill(R::ZERO);
        dkeys.fill(R::ZERO);
        dvalues.fill(R::ZERO);
        for first in (0..seq).step_by(step) {
            let count = step.min(seq - first);
            let at = first * head..(first + count) * head;
            let (p, dp) = (&mut p[..count * seq], &mut dp[..count * seq]);
            // 2, 3. attention weights, again
            let (queries, dmixed) = (&queries[first * stride..], &dmixed[first * stride..]);
            let q = prepare_lhs(isa, queries, count, head, stride, dtype, lhs);
            matmul(isa, count, q, self.keys, 0..seq, p, seq, Init::Zero);
            pass.attention_mask.mask(isa, example, n, first, p, seq);
            softmax_in_place(isa, p, seq);
            let dropped = dropout.as_ref().map(|dropout| {
                let dropped = &mut dropped[..count * seq];
                dropped.copy_from_slice(p);
                dropout.apply(isa, dropped, (dropout_matrix(pass, self.index) * seq + first) * seq);
                &*dropped
            });
            // 4. mixed = dropped(p) v: d dropped(p) = d mixed v^T, dv += dropped(p)^T d mixed
            let dm = prepare_lhs(isa, dmixed, count, head, stride, dtype, lhs);
            matmul(isa, count, dm, value_columns.view(0), 0..seq, dp, seq, Init::Zero);
            let (shape, weights) = ((seq, count), dropped.unwrap_or(p));
            let w = prepare_transposed_lhs(isa, weights, shape, seq, dtype, turned, other_lhs);
            let mut own_rows = context.panels(dtype, 1, count, head);
            own_rows.whole_mut(0).pack(isa, dmixed, stride, false, count, head);
            matmul(isa, seq, w, own_rows.view(0), 0..head, dvalues, head, Init::Accumulate);
            // 3. dropout, softmax
            match dropped {
                Some(dropped) => dropped_softmax_backward(isa, p, dropped, dp, seq),
                None => softmax_backward(isa, p, dp, seq),
            }
            pass.attention_mask.mask_gradient(example, first, dp, seq);
            if !dbiases.is_empty() {
                for (ds, query) in dp.chunks_exact(seq).zip(first..) {
                    add_in_place(isa, of_query_mut(dbiases, query, seq), ds);
                }
            }
            // 2. scores = q k^T: dq = ds k, dk += ds^T q
            let ds = prepare_lhs(isa, dp, count, seq, seq, dtype, lhs);
            let out = &mut dqueries[at];
            matmul(isa, count, ds, key_rows.view(0), 0..head, out, head, Init::Zero);
            out.iter_mut().for_each(|q| *q *= scale);
            let ds = prepare_transposed_lhs(isa, dp, shape, seq, dtype, turned, other_lhs);
            own_rows.whole_mut(0).pack(isa, queries, stride, false, count, head);
            matmul(isa, seq, ds, own_rows.view(0), 0..head, dkeys, head, Init::Accumulate);
        }
    }
}

/// The matrix of dropout numbers that attention weights number `matrix` use.
fn dropout_matrix<R: Real>(pass: &Pass<'_, R>, matrix: usize) -> usize {
    if pass.config.semantics().shared_attention_dropout { 0 } else { matrix }
}
