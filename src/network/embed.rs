//! Embeddings: `dropout(LN(word + position + type))`, `[B*S, W]`, then a projection to `H` if `W != H`.
//!
//! Norm, dropout, projection, in this order, and no norm after the projection. By another rule there is always a
//! projection, and dropout comes after it. Sources: `SparseMixer.call`, `OnDeviceEmbedding`, `PositionEmbedding`;
//! `layers.EmbeddingLayer` of the JAX code.

use std::ops::Range;

use crate::config::SparseMixerConfig;
use crate::error::Result;
use crate::kernels::{Real, add_in_place};
use crate::layers::{Dense, EmbeddingTable, LayerNorm, Product};
use crate::params::{Gradients, Role, Table, WeightList};
use crate::random::Purpose;

use super::inputs::{Inputs, Words};
use super::pass::{Pass, split_rows};
use super::position_bias::PositionBias;
use crate::sys::{Place, at};

/// Tables, norm, and the projection if there is one.
#[derive(Clone, Copy, Debug)]
pub struct Embed {
    /// `[V, W]`
    pub word: EmbeddingTable,
    /// `[S, W]`
    position: EmbeddingTable,
    /// `[Y, W]`
    types: EmbeddingTable,
    /// Over `W`.
    norm: LayerNorm,
    /// `[W, H]`
    projection: Option<Dense>,
    /// What the blocks' attention adds to its scores, if it does.
    pub position_bias: Option<PositionBias>,
    /// Dropout after the projection instead of before.
    drop_projected: bool,
    /// Number of the embeddings' weights, which are the first of all.
    count: usize,
}

impl Embed {
    /// Declares the embeddings.
    pub fn new(list: &mut WeightList, config: &SparseMixerConfig) -> Self {
        let (width, hidden, semantics) = (config.embedding_width(), config.hidden_size, config.semantics());
        let mut table = |name: &str, rows| EmbeddingTable::new(list, name, rows, width);
        let word = table("word_embeddings/embeddings", config.vocab_size);
        let position = table("position_embedding/embeddings", config.max_sequence_length);
        let types = table("type_embeddings/embeddings", config.type_vocab_size);
        let norm = LayerNorm::new(list, "embeddings/layer_norm", width, config.layer_norm_epsilon);
        let projects = width != hidden || semantics.project_embeddings;
        let projection = projects.then(|| Dense::new(list, "embedding_projection", width, hidden));
        if let Some(projection) = projection.filter(|_| semantics.lecun_projection) {
            list.initialize_as(projection.kernel, Role::LecunKernel);
        }
        let buckets = config.relative_attention_num_buckets;
        let position_bias =
            buckets.map(|buckets| PositionBias::new(list, buckets, config.num_attention_heads));
        let (drop_projected, count) = (semantics.project_embeddings, list.specs().len());
        Embed { word, position, types, norm, projection, position_bias, drop_projected, count }
    }

    /// Numbers of the embeddings' weights.
    pub fn weights(&self) -> Range<usize> {
        0..self.count
    }

    /// The residual that the first block reads, `[B*S, H]`, into `out`. `sums`, when given (`[B*S, W]`), receives what the
    /// norm reads.
    pub fn forward<R: Real>(
        self,
        pass: &Pass<'_, R>,
        inputs: &Inputs<'_, R>,
        out: &mut [R],
        sums: Option<&mut [R]>,
    ) -> Result<()> {
        let _place = at(Place::Embeddings);
        let (isa, seq, weights) = (pass.context.isa, pass.seq, pass.weights);
        let (width, hidden) = (self.word.width(), pass.config.hidden_size);
        let [word, position, types] = [self.word, self.position, self.types].map(|t| t.table(weights));
        let projection = self.projection.map(|dense| dense.product(weights));
        let dropout = pass.dropout(pass.config.output_dropout, Purpose::EmbeddingDropout, 0);
        let (sums, kept) = sums.map_or((&mut [][..], 0), |sums| (sums, width));
        pass.each_block_of(
            &pass.row_blocks(seq),
            [(out, hidden), (sums, kept)],
            |block, [out, sums], scratch| {
                let n = block.rows * width;
                let ([sum, row, normal], [lhs, _]) = scratch.split([n, width, n]);
                // 1. word + position + type
                for (r, sum) in sum.chunks_exact_mut(width).enumerate() {
                    let (example, s) = (block.example, block.first + r);
                    word_row(word, inputs, example, s, seq, sum);
                    position.copy_row(s, row);
                    add_in_place(isa, sum, row);
                    if let Ok(id) = usize::try_from(inputs.type_ids[example * seq + s])
                        && id < types.rows()
                    {
                        types.copy_row(id, row);
                        add_in_place(isa, sum, row);
                    }
                }
                if !sums.is_empty() {
                    sums.copy_from_slice(sum);
                }
                // 2. norm
                let target = if self.projection.is_some() { &mut *normal } else { &mut *out };
                self.norm.forward(isa, weights, sum, target, None);
                // 3. dropout
                let first_row = block.example * seq + block.first;
                if let Some(dropout) = dropout.filter(|_| !self.drop_projected) {
                    dropout.apply(isa, target, first_row * width);
                }
                // 4. projection
                if let Some(projection) = &projection {
                    projection.rows(isa, normal, block.rows, out, lhs);
                }
                // 3. dropout, by the other rule
                if let Some(dropout) = dropout.filter(|_| self.drop_projected) {
                    dropout.apply(isa, out, first_row * hidden);
                }
            },
        )
    }

    /// Backward of the layer: adds to the gradients and writes that of the word rows, given, looked
    /// up or dense, `[B*S, W]`, to `drows`. `sums` is what `forward` kept, `dy` (`[B*S, H]`) the gradient of its result.
    pub fn backward<R: Real>(
        self,
        pass: &Pass<'_, R>,
        inputs: &Inputs<'_, R>,
        sums: &[R],
        dy: &[R],
        drows: &mut [R],
        gradients: &mut Gradients<R>,
    ) -> Result<()> {
        let _place = at(Place::Embeddings);
        let (context, isa, seq, weights) = (pass.context, pass.context.isa, pass.seq, pass.weights);
        let (width, hidden, all) = (self.word.width(), pass.config.hidden_size, pass.batch * seq);
        let dropout = pass.dropout(pass.config.output_dropout, Purpose::EmbeddingDropout, 0);
        let blocks = Pass::<R>::fixed_blocks(all);
        let mut partials = context.buffer(blocks.len() * 2 * width);
        partials.fill(R::ZERO);
        let partial_rows = partials.chunks_exact_mut(2 * width);
        let transposed =
            self.projection.map(|dense| context.transposed(dense.kernel(weights, 0))).transpose()?;
        let transposed = transposed.as_ref().map(Product::transposed);
        // 3. dropout, by the other rule
        let mut dprojected = None;
        if let Some(dropout) = dropout.filter(|_| self.drop_projected) {
            let dropped = dprojected.insert(context.buffer(all * hidden));
            pass.each_block(&blocks, dropped, hidden, |block, out, _| {
                out.copy_from_slice(block.of(dy, all, hidden));
                dropout.apply(isa, out, block.first * hidden);
            })?;
        }
        let dy = dprojected.as_deref().unwrap_or(dy);
        let dropout = dropout.filter(|_| !self.drop_projected);
        // 4. projection, for its own gradients: needs what it read
        if let Some(projection) = self.projection {
            let mut normal = context.buffer(all * width);
            pass.each_block(&blocks, &mut normal, width, |block, out, _| {
                self.norm.forward(isa, weights, block.of(sums, all, width), out, None);
                if let Some(dropout) = &dropout {
                    dropout.apply(isa, out, block.first * width);
                }
            })?;
            projection.add_gradients(context, weights, 0, &normal, dy, gradients)?;
        }
        // 4 to 2, row by row
        let tasks =
            blocks.iter().zip(split_rows(drows, blocks.iter().map(|b| b.rows * width))).zip(partial_rows);
        context.each(tasks, |((block, drows), partial), scratch| {
            let n = block.rows * width;
            let ([dnormal, own], [lhs, _]) = scratch.split([n, n + 2 * block.rows]);
            let dy = block.of(dy, all, hidden);
            match &transposed {
                Some(transposed) => transposed.rows(isa, dy, block.rows, dnormal, lhs),
                None => dnormal.copy_from_slice(dy),
            }
            if let Some(dropout) = &dropout {
                dropout.apply(isa, dnormal, block.first * width);
            }
            let sums = block.of(sums, all, width);
            self.norm.backward_rows(isa, weights, sums, dnormal, drows, partial, own);
        })?;
        self.norm.add_partials(&partials, gradients);
        // 1. tables, row after row
        let rows = || drows.chunks_exact(width).enumerate();
        if let Words::Ids(ids) = inputs.words {
            let words = rows().filter(|(row, _)| row % seq < inputs.word_len).map(|(row, drow)| {
                let (example, s) = (row / seq, row % seq);
                (ids[example * inputs.word_len + s] as usize, drow)
            });
            self.word.add_gradients(isa, words, gradients);
        }
        self.position.add_gradients(isa, rows().map(|(row, drow)| (row % seq, drow)), gradients);
        let types = rows().filter_map(|(row, drow)| {
            let id = usize::try_from(inputs.type_ids[row]).ok()?;
            (id < self.types.rows()).then_some((id, drow))
        });
        self.types.add_gradients(isa, types, gradients);
        Ok(())
    }
}

/// The word row at position `s`: from the table, given, or dense.
fn word_row<R: Real>(
    word: &Table<R>,
    inputs: &Inputs<'_, R>,
    example: usize,
    s: usize,
    seq: usize,
    out: &mut [R],
) {
    let (width, words) = (out.len(), inputs.word_len);
    if s >= words {
        let at = (example * (seq - words) + s - words) * width;
        return out.copy_from_slice(&inputs.dense[at..at + width]);
    }
    match inputs.words {
        // Checked to be in range before the pass.
        Words::Ids(ids) => word.copy_row(ids[example * words + s] as usize, out),
        Words::Embeddings(rows) => {
            let at = (example * words + s) * width;
            out.copy_from_slice(&rows[at..at + width]);
        }
    }
}
