//! Embeddings: `dropout(LN(word + position + type))`, `[B*S, W]`, then a projection to `H` if `W != H`.
//!
//! Norm, dropout, projection, in this order, and no norm after the projection. By another rule there is always a
//! projection, and dropout comes after it. Sources: `SparseMixer.call`, `OnDeviceEmbedding`, `PositionEmbedding`;
//! `layers.EmbeddingLayer` of the JAX code.

use crate::config::SparseMixerConfig;
use crate::error::Result;
use crate::kernels::{Init, PackedMatrix, Real, add_in_place, axpy, matmul, prepare_lhs};
use crate::layers::{LayerNorm, Table, bias_gradient, kernel_gradient};
use crate::params::{Loader, Param, ParamMut, Spec};
use crate::random::Purpose;

use super::inputs::{Inputs, Words};
use super::pass::{Pass, split_rows};

/// Tables, norm, and the projection if there is one.
#[derive(Clone, Debug)]
pub struct Embed<R> {
    /// `[V, W]`
    pub word: Table<R>,
    /// `[S, W]`
    pub position: Table<R>,
    /// `[Y, W]`
    pub types: Table<R>,
    /// Over `W`.
    pub norm: LayerNorm<R>,
    /// `[W, H]` and `[H]`
    pub projection: Option<(PackedMatrix<R>, Vec<R>)>,
    /// Dropout after the projection instead of before.
    drop_projected: bool,
}

fn has_projection(config: &SparseMixerConfig) -> bool {
    config.embedding_width != config.hidden_size || config.semantics().project_embeddings
}

/// The weights.
pub fn specs(config: &SparseMixerConfig) -> Vec<Spec> {
    let (width, hidden) = (config.embedding_width, config.hidden_size);
    let mut specs = vec![
        Spec::kernel("word_embeddings/embeddings", &[config.vocab_size, width]),
        Spec::kernel("position_embedding/embeddings", &[config.max_sequence_length, width]),
        Spec::kernel("type_embeddings/embeddings", &[config.type_vocab_size, width]),
    ];
    specs.extend(Spec::layer_norm("embeddings/layer_norm", width));
    if has_projection(config) {
        specs.push(Spec::kernel("embedding_projection/kernel", &[width, hidden]));
        specs.push(Spec::bias("embedding_projection/bias", &[hidden]));
    }
    specs
}

impl<R: Real> Embed<R> {
    /// Takes the weights in the order of [`specs`].
    pub fn load(loader: &mut Loader<'_, R>, config: &SparseMixerConfig) -> Result<Self> {
        let (width, hidden) = (config.embedding_width, config.hidden_size);
        let word = loader.table(config.vocab_size, width)?;
        let position = loader.table(config.max_sequence_length, width)?;
        let types = loader.table(config.type_vocab_size, width)?;
        let norm = LayerNorm::load(loader, width)?;
        let projection = if has_projection(config) {
            Some((loader.matrix(width, hidden)?, loader.vector(hidden)?))
        } else {
            None
        };
        let drop_projected = config.semantics().project_embeddings;
        Ok(Embed { word, position, types, norm, projection, drop_projected })
    }

    /// The weights in the order of [`specs`].
    pub fn params(&self) -> Vec<Param<'_, R>> {
        let mut params =
            vec![Param::Table(&self.word), Param::Table(&self.position), Param::Table(&self.types)];
        params.extend(self.norm.params());
        if let Some((kernel, bias)) = &self.projection {
            params.extend([Param::matrix(kernel), Param::vector(bias)]);
        }
        params
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> Vec<ParamMut<'_, R>> {
        let mut params = vec![
            ParamMut::Table(&mut self.word),
            ParamMut::Table(&mut self.position),
            ParamMut::Table(&mut self.types),
        ];
        params.extend(self.norm.params_mut());
        if let Some((kernel, bias)) = &mut self.projection {
            params.extend([ParamMut::matrix(kernel), ParamMut::vector(bias)]);
        }
        params
    }

    /// The stream that the first block reads, `[B*S, H]`, into `out`. `sums`, when given (`[B*S, W]`), receives what the
    /// norm reads.
    pub fn forward(
        &self,
        pass: &Pass<'_, R>,
        inputs: &Inputs<'_, R>,
        out: &mut [R],
        sums: Option<&mut [R]>,
    ) -> Result<()> {
        let (isa, seq) = (pass.context.isa, pass.seq);
        let (width, hidden) = (self.word.width(), pass.config.hidden_size);
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
                    self.word_row(inputs, example, s, seq, sum);
                    self.position.copy_row(s, row);
                    add_in_place(isa, sum, row);
                    if let Ok(id) = usize::try_from(inputs.type_ids[example * seq + s])
                        && id < self.types.rows()
                    {
                        self.types.copy_row(id, row);
                        add_in_place(isa, sum, row);
                    }
                }
                if !sums.is_empty() {
                    sums.copy_from_slice(sum);
                }
                // 2. norm
                let target = if self.projection.is_some() { &mut *normal } else { &mut *out };
                self.norm.forward(isa, sum, target, None);
                // 3. dropout
                let first_row = block.example * seq + block.first;
                if let Some(dropout) = dropout.filter(|_| !self.drop_projected) {
                    dropout.apply(isa, target, first_row * width);
                }
                // 4. projection
                if let Some((kernel, bias)) = &self.projection {
                    let x = prepare_lhs(isa, normal, block.rows, width, width, kernel.dtype(), lhs);
                    matmul(isa, block.rows, x, kernel.view(), 0..hidden, out, hidden, Init::Bias(bias));
                }
                // 3. dropout, by the other rule
                if let Some(dropout) = dropout.filter(|_| self.drop_projected) {
                    dropout.apply(isa, out, first_row * hidden);
                }
            },
        )
    }

    /// The word row at position `s`: from the table, given, or dense.
    fn word_row(&self, inputs: &Inputs<'_, R>, example: usize, s: usize, seq: usize, out: &mut [R]) {
        let (width, words) = (out.len(), inputs.word_len);
        if s >= words {
            let at = (example * (seq - words) + s - words) * width;
            return out.copy_from_slice(&inputs.dense[at..at + width]);
        }
        match inputs.words {
            // Checked to be in range before the pass.
            Words::Ids(ids) => self.word.copy_row(ids[example * words + s] as usize, out),
            Words::Embeddings(rows) => {
                let at = (example * words + s) * width;
                out.copy_from_slice(&rows[at..at + width]);
            }
        }
    }

    /// Undoes the layer: adds to the gradients (in the order of [`specs`]) and writes that of the word rows, given, looked
    /// up or dense, `[B*S, W]`, to `drows`. `sums` is what `forward` kept, `dy` (`[B*S, H]`) the gradient of its result.
    pub fn backward(
        &self,
        pass: &Pass<'_, R>,
        inputs: &Inputs<'_, R>,
        sums: &[R],
        dy: &[R],
        drows: &mut [R],
        grads: &mut [Vec<R>],
    ) -> Result<()> {
        let (context, isa, seq) = (pass.context, pass.context.isa, pass.seq);
        let (width, hidden, all) = (self.word.width(), pass.config.hidden_size, pass.batch * seq);
        let dropout = pass.dropout(pass.config.output_dropout, Purpose::EmbeddingDropout, 0);
        let blocks = Pass::<R>::fixed_blocks(all);
        let mut partials = context.buffer(blocks.len() * 2 * width);
        partials.fill(R::ZERO);
        let partial_rows = partials.chunks_exact_mut(2 * width);
        let projection = self.projection.as_ref();
        let transposed = projection.map(|(kernel, _)| context.transposed(kernel)).transpose()?;
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
        if let Some((kernel, _)) = &self.projection {
            let mut normal = context.buffer(all * width);
            pass.each_block(&blocks, &mut normal, width, |block, out, _| {
                self.norm.forward(isa, block.of(sums, all, width), out, None);
                if let Some(dropout) = &dropout {
                    dropout.apply(isa, out, block.first * width);
                }
            })?;
            kernel_gradient(context, kernel.dtype(), all, &normal, dy, &mut grads[5])?;
            bias_gradient(context, dy, &mut grads[6])?;
        }
        // 4 to 2, row by row
        let tasks =
            blocks.iter().zip(split_rows(drows, blocks.iter().map(|b| b.rows * width))).zip(partial_rows);
        let tasks: Vec<_> = tasks.collect();
        context.each(tasks.into_iter(), |((block, drows), partial), scratch| {
            let n = block.rows * width;
            let ([dnormal, own], [lhs, _]) = scratch.split([n, n + 2 * block.rows]);
            let dy = block.of(dy, all, hidden);
            if let (Some((kernel, _)), Some(transposed)) = (&self.projection, &transposed) {
                let dy = prepare_lhs(isa, dy, block.rows, hidden, hidden, kernel.dtype(), lhs);
                matmul(isa, block.rows, dy, transposed.view(0), 0..width, dnormal, width, Init::Zero);
            } else {
                dnormal.copy_from_slice(dy);
            }
            if let Some(dropout) = &dropout {
                dropout.apply(isa, dnormal, block.first * width);
            }
            self.norm.backward_rows(isa, block.of(sums, all, width), dnormal, drows, partial, own);
        })?;
        self.norm.add_partials(&partials, &mut grads[3..5]);
        // 1. tables, row after row
        for (row, drow) in drows.chunks_exact(width).enumerate() {
            let (example, s) = (row / seq, row % seq);
            let mut add =
                |table: usize, id: usize| axpy(isa, &mut grads[table][id * width..][..width], R::ONE, drow);
            if let Words::Ids(ids) = inputs.words
                && s < inputs.word_len
            {
                add(0, ids[example * inputs.word_len + s] as usize);
            }
            add(1, s);
            if let Ok(id) = usize::try_from(inputs.type_ids[row])
                && id < self.types.rows()
            {
                add(2, id);
            }
        }
        Ok(())
    }
}
