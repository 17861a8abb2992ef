//! Circulant and Toeplitz mixing: `y[b] = M(c_s) x[b] M(c_h)^T`, learned vectors along the sequence (`seq_kernel`) and the
//! hidden dimension (`hidden_kernel`); no bias. `M` of size `n` is
//!
//! - circulant: `M[p, q] = c[(p - q) mod n]`, `c` of `n` values: circular convolutions;
//! - Toeplitz: `M[p, q] = c[n - 1 + q - p]`, `c` of `2 n - 1` values, the main diagonal in the middle.
//!
//! Linear mixing with these matrices, which are made from the vectors once; or (`use_fft=True`) fast transforms. The
//! backward pass always multiplies matrices, and adds up their gradients along the diagonals. Source:
//! `layers.CirculantTransform`, `layers.ToeplitzTransform` of the JAX code.

use std::borrow::Cow;
use std::sync::Arc;

use crate::config::{MixingMechanism, SparseMixerConfig};
use crate::error::Result;
use crate::kernels::{PackedMatrix, Real};
use crate::params::{Gradients, Role, Table, VectorKey, WeightKey, WeightList, Weights};
use crate::runtime::{ActivationPanels, Buffer, TaskScratch};

use super::convolution::Convolution;
use super::linear::OwnedMatrices;
use crate::network::pass::{Pass, RowBlock, split_rows};
use crate::sys::{alloc_collect, alloc_zeroed};

/// Both vectors, and what is made of them.
#[derive(Clone, Debug)]
pub struct StructuredMixing<R> {
    structure: Structure,
    hidden: Vector,
    seq: Vector,
    use_fft: bool,
    /// `None` after a change of the vectors, until [`StructuredMixing::refresh`].
    prepared: Option<Arc<Prepared<R>>>,
}

/// The values behind a matrix of size `size`.
#[derive(Clone, Copy, Debug)]
struct Vector {
    size: usize,
    values: VectorKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Structure {
    Circulant,
    Toeplitz,
}

/// The form in which the vectors are used.
#[derive(Clone, Debug)]
enum Prepared<R> {
    Matrices(OwnedMatrices<R>),
    /// Along the hidden dimension, along the sequence.
    Convolutions([Convolution<R>; 2]),
}

/// What mixing made of all tokens.
pub enum StructuredMixingState<'m, R: Real> {
    /// See [`super::linear::MixingMatrices::prepare`].
    Panels(Cow<'m, OwnedMatrices<R>>, ActivationPanels<R>),
    /// The result, `[B, H, S]`.
    Columns(Buffer<R>),
}

impl Structure {
    fn of(mechanism: MixingMechanism) -> Self {
        if mechanism == MixingMechanism::Toeplitz { Structure::Toeplitz } else { Structure::Circulant }
    }

    fn name(self) -> &'static str {
        match self {
            Structure::Circulant => "circulant_transform",
            Structure::Toeplitz => "toeplitz_transform",
        }
    }

    /// Values behind a matrix of size `n`.
    fn len(self, n: usize) -> usize {
        match self {
            Structure::Circulant => n,
            Structure::Toeplitz => 2 * n - 1,
        }
    }

    /// Which value is `M[p, q]`.
    fn index(self, n: usize, p: usize, q: usize) -> usize {
        match self {
            Structure::Circulant => (p + n - q) % n,
            Structure::Toeplitz => n - 1 + q - p,
        }
    }
}

impl<R: Real> StructuredMixing<R> {
    /// Declares both vectors.
    pub fn new(list: &mut WeightList, prefix: &str, config: &SparseMixerConfig) -> Self {
        let structure = Structure::of(config.mixing_mechanism);
        let mut vector = |name: &str, size| {
            let name = format!("{prefix}/{}/{name}", structure.name());
            Vector { size, values: list.vector(name, Role::Kernel, &[structure.len(size)]) }
        };
        let hidden = vector("hidden_kernel", config.hidden_size);
        let seq = vector("seq_kernel", config.max_sequence_length);
        StructuredMixing { structure, hidden, seq, use_fft: config.use_fft, prepared: None }
    }

    /// Forgets what was made of the vectors if one of them is among the weights that have `changed`.
    /// [`StructuredMixing::refresh`] afterwards saves later calls work.
    pub fn invalidate(&mut self, changed: &dyn Fn(usize) -> bool) {
        if changed(self.hidden.values.index()) || changed(self.seq.values.index()) {
            self.prepared = None;
        }
    }

    /// Makes what calls need of the vectors, unless it is there.
    pub fn refresh(&mut self, weights: &Weights<R>) {
        if self.prepared.is_none() {
            self.prepared = Some(Arc::new(self.prepare_vectors(weights)));
        }
    }

    /// The matrices made of the vectors, if there are any.
    pub fn own_matrices(&self) -> Option<&OwnedMatrices<R>> {
        match self.prepared.as_deref() {
            Some(Prepared::Matrices(matrices)) => Some(matrices),
            _ => None,
        }
    }

    fn prepare_vectors(&self, weights: &Weights<R>) -> Prepared<R> {
        if !self.use_fft {
            return Prepared::Matrices(self.matrices(weights));
        }
        let convolution =
            |vector: Vector| Convolution::new(self.first_column(vector.size, weights.vector(vector.values)));
        Prepared::Convolutions([convolution(self.hidden), convolution(self.seq)])
    }

    /// `M` as linear mixing has it: transposed on the hidden side.
    fn matrices(&self, weights: &Weights<R>) -> OwnedMatrices<R> {
        let (h, s, dtype) = (self.hidden.size, self.seq.size, weights.dtype());
        let at =
            |vector: Vector, p, q| weights.vector(vector.values)[self.structure.index(vector.size, p, q)];
        let hidden: Vec<R> = alloc_collect((0..h * h).map(|i| at(self.hidden, i % h, i / h)));
        let seq: Vec<R> = alloc_collect((0..s * s).map(|i| at(self.seq, i / s, i % s)));
        OwnedMatrices {
            hidden: vec![PackedMatrix::pack(h, h, dtype, &hidden)],
            seq: Table::new(s, s, dtype, &seq),
        }
    }

    /// First column of the circulant matrix whose corner `M` of size `n` is.
    fn first_column(&self, n: usize, values: &[R]) -> Vec<R> {
        match self.structure {
            Structure::Circulant => alloc_collect(values.iter().copied()),
            Structure::Toeplitz => {
                let length = (2 * n - 1).next_power_of_two();
                let mut column = alloc_zeroed(length);
                for (index, &value) in values.iter().enumerate() {
                    // The value of p - q = n - 1 - index.
                    column[(length + n - 1 - index) % length] = value;
                }
                column
            }
        }
    }

    /// The part that needs all tokens of `x` (`[B*S, H]`).
    pub fn prepare(&self, pass: &Pass<'_, R>, x: &[R]) -> Result<StructuredMixingState<'_, R>> {
        let prepared = match &self.prepared {
            Some(prepared) => Cow::Borrowed(&**prepared),
            None => Cow::Owned(self.prepare_vectors(pass.weights)),
        };
        let (along_hidden, along_seq) = match prepared {
            Cow::Borrowed(Prepared::Matrices(mix)) => {
                return Ok(StructuredMixingState::Panels(Cow::Borrowed(mix), mix.view().prepare(pass, x)?));
            }
            Cow::Owned(Prepared::Matrices(mix)) => {
                let panels = mix.view().prepare(pass, x)?;
                return Ok(StructuredMixingState::Panels(Cow::Owned(mix), panels));
            }
            Cow::Borrowed(Prepared::Convolutions([hidden, seq])) => (hidden.clone(), seq.clone()),
            Cow::Owned(Prepared::Convolutions([hidden, seq])) => (hidden, seq),
        };
        // 1. along the hidden dimension: [B, S, H]
        let (seq, hidden) = (pass.seq, self.hidden.size);
        let mut rows = pass.context.buffer(x.len());
        pass.each_block(&pass.row_blocks(seq), &mut rows, hidden, |block, out, scratch| {
            let ([own], _) = scratch.split([along_hidden.scratch_len()]);
            out.copy_from_slice(block.of(x, seq, hidden));
            out.chunks_exact_mut(hidden).for_each(|row| along_hidden.apply(row, own));
        })?;
        // 2. along the sequence: [B, H, S], some columns at a time so that each row's cache lines are read once
        const COLUMNS: usize = 16;
        let mut columns = pass.context.buffer(x.len());
        let lengths =
            (0..pass.batch).flat_map(|_| (0..hidden).step_by(COLUMNS).map(|k| COLUMNS.min(hidden - k)));
        let tasks = split_rows(&mut columns, lengths.map(|n| n * seq)).enumerate();
        let per_example = hidden.div_ceil(COLUMNS);
        pass.context.each(tasks, |(task, out), scratch| {
            let ([own], _) = scratch.split([along_seq.scratch_len()]);
            let (example, first) = (task / per_example, task % per_example * COLUMNS);
            let rows = &rows[example * seq * hidden..][..seq * hidden];
            for (s, row) in rows.chunks_exact(hidden).enumerate() {
                for (column, &value) in out.chunks_exact_mut(seq).zip(&row[first..]) {
                    column[s] = value;
                }
            }
            out.chunks_exact_mut(seq).for_each(|column| along_seq.apply(column, own));
        })?;
        Ok(StructuredMixingState::Columns(columns))
    }

    /// Backward of the layer: writes `dx`, adds to the gradients of both vectors.
    ///
    /// `x` is what `prepare` read, `dy` the gradient of the rows; all `[B*S, H]`.
    pub fn backward(
        &self,
        pass: &Pass<'_, R>,
        x: &[R],
        dy: &[R],
        dx: &mut [R],
        gradients: &mut Gradients<R>,
    ) -> Result<()> {
        let matrices = match self.prepared.as_deref() {
            Some(Prepared::Matrices(matrices)) => Cow::Borrowed(matrices),
            _ => Cow::Owned(self.matrices(pass.weights)),
        };
        let (h, s) = (self.hidden.size, self.seq.size);
        let [mut hidden_matrix, mut seq_matrix] = [self.hidden, self.seq].map(|vector| {
            gradients.requests(vector.values).then(|| {
                let mut matrix = pass.context.buffer(vector.size * vector.size);
                matrix.fill(R::ZERO);
                matrix
            })
        });
        let into = [&mut hidden_matrix, &mut seq_matrix].map(Option::as_deref_mut);
        matrices.view().backward(pass, x, None, dy, dx, into)?;
        if let (Some(matrix), Some(gradient)) = (hidden_matrix, gradients.if_requested(self.hidden.values)) {
            let gradient = gradient.row_major();
            for (i, &d) in matrix.iter().enumerate() {
                gradient[self.structure.index(h, i % h, i / h)] += d;
            }
        }
        if let (Some(matrix), Some(gradient)) = (seq_matrix, gradients.if_requested(self.seq.values)) {
            let gradient = gradient.row_major();
            for (i, &d) in matrix.iter().enumerate() {
                gradient[self.structure.index(s, i / s, i % s)] += d;
            }
        }
        Ok(())
    }
}

impl<R: Real> StructuredMixingState<'_, R> {
    /// `out` = mixed rows of `block`.
    pub fn rows(&self, pass: &Pass<'_, R>, block: RowBlock, out: &mut [R], scratch: &mut TaskScratch<R>) {
        match self {
            StructuredMixingState::Panels(mix, panels) => mix.view().rows(pass, panels, block, out, scratch),
            StructuredMixingState::Columns(columns) => {
                let (seq, hidden) = (pass.seq, pass.config.hidden_size);
                let columns = &columns[block.example * seq * hidden..][..seq * hidden];
                for (s, row) in (block.first..).zip(out.chunks_exact_mut(hidden)) {
                    row.iter_mut().zip(columns[s..].iter().step_by(seq)).for_each(|(o, &c)| *o = c);
                }
            }
        }
    }
}
