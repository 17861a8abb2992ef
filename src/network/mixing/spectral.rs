//! Fourier and Hartley mixing: with `F` the two-dimensional forward discrete Fourier transform of an example over
//! (sequence, hidden), unscaled, `y = Re F` or `y = Re F - Im F`. No weights.
//!
//! By matrix products (`use_fft=False`), with `Cn[p, q] = cos(2 pi p q / n)` and `Sn` likewise:
//! - Fourier: `y = Cs x Ch - Ss x Sh`
//! - Hartley: `y = (Cs + Ss) x Ch + (Cs - Ss) x Sh`
//!
//! which is linear mixing with two terms. By fast transforms (`use_fft=True`): rows first, then columns; a real row's
//! spectrum is half redundant, `F[n, k] = conj F[-n, -k]`.
//!
//! Both are symmetric linear maps, so backward is the forward computation on the gradient. Source: `FourierTransformLayer`, `HartleyTransformLayer`.

use std::f64::consts::TAU;
use std::sync::Arc;

use crate::config::MixingMechanism;
use crate::error::Result;
use crate::kernels::{ComplexFft, Dtype, PackedMatrix, Real, RealFft};
use crate::params::Table;
use crate::runtime::Buffer;

use super::linear::{MixingMatrices, OwnedMatrices};
use crate::network::pass::{Pass, RowBlock, split_rows};

/// Mixing by products with transform matrices.
#[derive(Clone, Debug)]
pub struct DftMixing<R> {
    mechanism: MixingMechanism,
    /// For sequences of full length; all blocks share them. `None` until [`DftMixing::refresh`].
    matrices: Option<Arc<OwnedMatrices<R>>>,
}

impl<R: Real> DftMixing<R> {
    /// Without its matrices.
    pub fn new(mechanism: MixingMechanism) -> Self {
        DftMixing { mechanism, matrices: None }
    }

    /// Makes the matrices unless they are there, or `shared` holds those of another block.
    pub fn refresh(
        &mut self,
        seq: usize,
        hidden: usize,
        dtype: Dtype,
        shared: &mut Option<Arc<OwnedMatrices<R>>>,
    ) {
        let make = || Arc::new(dft_matrices(self.mechanism, seq, hidden, dtype));
        let matrices = self.matrices.take().unwrap_or_else(|| shared.take().unwrap_or_else(make));
        *shared = Some(matrices.clone());
        self.matrices = Some(matrices);
    }

    /// The matrices of the full length.
    pub fn own_matrices(&self) -> Option<&OwnedMatrices<R>> {
        self.matrices.as_deref()
    }

    /// The matrices, if they are those of the call's length.
    pub fn matrices(&self, pass: &Pass<'_, R>) -> Option<MixingMatrices<'_, R>> {
        self.matrices.as_ref().map(|matrices| matrices.view()).filter(|m| m.seq.rows() == pass.seq)
    }

    /// What to use for calls of other lengths: the matrices belong to a length, fast transforms are planned for any once.
    pub fn for_other_length(&self, pass: &Pass<'_, R>) -> FftMixing<R> {
        FftMixing::new(self.mechanism, pass.seq, pass.config.hidden_size)
    }
}

/// The two mixing matrices of each dimension, as linear mixing.
fn dft_matrices<R: Real>(
    mechanism: MixingMechanism,
    seq: usize,
    hidden: usize,
    dtype: Dtype,
) -> OwnedMatrices<R> {
    let dtype = dtype.of_activations();
    let wave = |n: usize| {
        move |p: usize, q: usize| {
            // Reduced in whole numbers: the angle of a large product would lose its digits.
            let (sin, cos) = (TAU * ((p * q) % n) as f64 / n as f64).sin_cos();
            (cos, sin)
        }
    };
    let (along_seq, along_hidden) = (wave(seq), wave(hidden));
    let cells = |pick: &dyn Fn((f64, f64)) -> f64| -> Vec<R> {
        (0..hidden * hidden).map(|i| R::from_f64(pick(along_hidden(i / hidden, i % hidden)))).collect()
    };
    let kernels = [cells(&|(cos, _)| cos), cells(&|(_, sin)| sin)];
    let hidden_kernels = kernels.map(|values| PackedMatrix::pack(hidden, hidden, dtype, &values)).into();
    let mut rows = Vec::with_capacity(2 * seq * seq);
    for p in 0..seq {
        for term in 0..2 {
            rows.extend((0..seq).map(|q| {
                let (cos, sin) = along_seq(p, q);
                R::from_f64(match (mechanism, term) {
                    (MixingMechanism::Hartley, 0) => cos + sin,
                    (MixingMechanism::Hartley, _) => cos - sin,
                    (_, 0) => cos,
                    (_, _) => -sin,
                })
            }));
        }
    }
    OwnedMatrices { hidden: hidden_kernels, seq: Table::new(seq, 2 * seq, dtype, &rows) }
}

/// Mixing by fast transforms.
#[derive(Clone, Debug)]
pub struct FftMixing<R> {
    along_hidden: Arc<dyn RealFft<R>>,
    /// For sequences of full length.
    along_seq: Arc<dyn ComplexFft<R>>,
    hartley: bool,
    seq: usize,
    hidden: usize,
}

/// Both transforms of all examples.
pub struct Spectrum<R: Real> {
    /// `[B, H/2 + 1, S]` complex
    columns: Buffer<R>,
    hartley: bool,
    seq: usize,
    hidden: usize,
}

impl<R: Real> FftMixing<R> {
    /// Plans the transforms.
    pub fn new(mechanism: MixingMechanism, seq: usize, hidden: usize) -> Self {
        let hartley = mechanism == MixingMechanism::Hartley;
        let (along_hidden, along_seq) = (R::real_fft(hidden), R::complex_fft(seq));
        FftMixing { along_hidden, along_seq, hartley, seq, hidden }
    }

    /// Both transforms of all of `x` (`[B*S, H]`).
    pub fn prepare(&self, pass: &Pass<'_, R>, x: &[R]) -> Result<Spectrum<R>> {
        let (seq, hidden, half) = (pass.seq, self.hidden, self.hidden / 2 + 1);
        let along_hidden = &self.along_hidden;
        let along_seq = if seq == self.seq { self.along_seq.clone() } else { R::complex_fft(seq) };
        // 1. rows: [B, S, H/2 + 1]
        let mut rows = pass.context.buffer(pass.batch * seq * 2 * half);
        let blocks = pass.row_blocks(seq);
        pass.each_block(&blocks, &mut rows, 2 * half, |block, out, scratch| {
            let ([row, own], _) = scratch.split([hidden, along_hidden.scratch_len()]);
            let x = block.of(x, seq, hidden);
            for (x, spectrum) in x.chunks_exact(hidden).zip(out.chunks_exact_mut(2 * half)) {
                row.copy_from_slice(x);
                along_hidden.forward(row, spectrum, own);
            }
        })?;
        // 2. columns: [B, H/2 + 1, S], some at a time so that each row's cache lines are read once
        const COLUMNS: usize = 16;
        let mut columns = pass.context.buffer(pass.batch * half * 2 * seq);
        let lengths = (0..pass.batch).flat_map(|_| (0..half).step_by(COLUMNS).map(|k| COLUMNS.min(half - k)));
        let tasks = split_rows(&mut columns, lengths.map(|n| n * 2 * seq)).enumerate();
        let per_example = half.div_ceil(COLUMNS);
        pass.context.each(tasks, |(task, out), scratch| {
            let ([own], _) = scratch.split([along_seq.scratch_len()]);
            let (example, first) = (task / per_example, task % per_example * COLUMNS);
            let rows = &rows[example * seq * 2 * half..][..seq * 2 * half];
            for (s, row) in rows.chunks_exact(2 * half).enumerate() {
                for (column, pair) in out.chunks_exact_mut(2 * seq).zip(row[2 * first..].chunks_exact(2)) {
                    column[2 * s..2 * s + 2].copy_from_slice(pair);
                }
            }
            out.chunks_exact_mut(2 * seq).for_each(|column| along_seq.forward(column, own));
        })?;
        Ok(Spectrum { columns, hartley: self.hartley, seq, hidden })
    }

    /// Backward of the layer: writes `dx` from the gradient `dy` of the rows. Symmetric: the same map, on the gradient.
    pub fn backward(&self, pass: &Pass<'_, R>, dy: &[R], dx: &mut [R]) -> Result<()> {
        let spectrum = self.prepare(pass, dy)?;
        pass.each_block(&pass.row_blocks(pass.seq), dx, self.hidden, |block, out, _| {
            spectrum.rows(block, out);
        })
    }
}

impl<R: Real> Spectrum<R> {
    /// `out` = mixed rows of `block`.
    pub fn rows(&self, block: RowBlock, out: &mut [R]) {
        let (seq, hidden, half) = (self.seq, self.hidden, self.hidden / 2 + 1);
        let columns = &self.columns[block.example * half * 2 * seq..][..half * 2 * seq];
        for (r, out) in out.chunks_exact_mut(hidden).enumerate() {
            let n = block.first + r;
            let mirrored = (seq - n) % seq;
            for (k, out) in out.iter_mut().enumerate() {
                // F[n, k], or the conjugate of F[-n, -k].
                let (column, row, sign) =
                    if k < half { (k, n, R::ONE) } else { (hidden - k, mirrored, -R::ONE) };
                let at = (column * seq + row) * 2;
                *out = if self.hartley { columns[at] - sign * columns[at + 1] } else { columns[at] };
            }
        }
    }
}
