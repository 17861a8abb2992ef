//! Linear mixing: `y[b] = Ws x[b] Wh` with learned `Ws [S, S]` (`seq_kernel`, indexed `[out, in]`) and `Wh [H, H]`
//! (`hidden_kernel`, indexed `[in, out]`); no bias.
//!
//! Fourier and Hartley mixing by matrix products are the same with fixed matrices and two terms:
//! `y[b] = Ws1 x[b] Wh1 + Ws2 x[b] Wh2`, see `mix_spectral.rs`. Source: `LinearTransformLayer`.

use crate::error::Result;
use crate::kernels::{Init, PANEL, PackedMatrix, Real, matmul, prepare_lhs, transpose};
use crate::layers::kernel_gradient;
use crate::params::{GradientViewMut, Gradients, MatrixKey, Table, TableKey, WeightKey, WeightList, Weights};
use crate::runtime::{ActivationPanels, TaskScratch};
use crate::sys::{Place, Work, at, timed};

use crate::network::pass::{Pass, RowBlock};

/// Learned matrices.
#[derive(Clone, Copy, Debug)]
pub struct LinearMixing {
    hidden: MatrixKey,
    seq: TableKey,
}

/// The matrices of `t` terms.
#[derive(Clone, Copy, Debug)]
pub struct MixingMatrices<'m, R> {
    /// `Wh` of each term, `[H, H]`.
    pub hidden: &'m [PackedMatrix<R>],
    /// `Ws` of all terms side by side, `[S, t S]`.
    pub seq: &'m Table<R>,
}

/// The same for matrices that are no weights.
#[derive(Clone, Debug)]
pub struct OwnedMatrices<R> {
    /// `Wh` of each term, `[H, H]`.
    pub hidden: Vec<PackedMatrix<R>>,
    /// `Ws` of all terms side by side, `[S, t S]`.
    pub seq: Table<R>,
}

impl LinearMixing {
    /// Declares both matrices.
    pub fn new(list: &mut WeightList, prefix: &str, hidden: usize, seq: usize) -> Self {
        LinearMixing {
            hidden: list.matrix(format!("{prefix}/linear_transform/hidden_kernel"), hidden, hidden),
            seq: list.table(format!("{prefix}/linear_transform/seq_kernel"), seq, seq),
        }
    }

    /// The matrices.
    pub fn matrices<R: Real>(self, weights: &Weights<R>) -> MixingMatrices<'_, R> {
        MixingMatrices { hidden: weights.matrices(self.hidden), seq: weights.table(self.seq) }
    }

    /// Backward of the layer as [`MixingMatrices::backward`] does, and adds to the gradients.
    pub fn backward<R: Real>(
        self,
        pass: &Pass<'_, R>,
        x: &[R],
        mixed: Option<&ActivationPanels<R>>,
        dy: &[R],
        dx: &mut [R],
        gradients: &mut Gradients<R>,
    ) -> Result<()> {
        let both = gradients.both_if_requested([self.hidden.index(), self.seq.index()]);
        let into = both.map(|view| view.map(GradientViewMut::row_major));
        self.matrices(pass.weights).backward(pass, x, mixed, dy, dx, into)
    }
}

impl<R: Real> OwnedMatrices<R> {
    /// The matrices.
    pub fn view(&self) -> MixingMatrices<'_, R> {
        MixingMatrices { hidden: &self.hidden, seq: &self.seq }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.hidden.iter().map(PackedMatrix::bytes).sum::<usize>() + self.seq.bytes()
    }
}

impl<R: Real> MixingMatrices<'_, R> {
    /// `x[b] Wh` of every example, as right operands: the part that a row block needs all tokens for.
    pub fn prepare(&self, pass: &Pass<'_, R>, x: &[R]) -> Result<ActivationPanels<R>> {
        let isa = pass.context.isa;
        let (seq, hidden, terms) = (pass.seq, self.hidden[0].k(), self.hidden.len());
        let dtype = self.hidden[0].dtype();
        let mut mixed = pass.context.panels(dtype, pass.batch, terms * seq, hidden);
        // Whole examples per task where there are enough, else some panels of one.
        let panels = hidden.div_ceil(PANEL);
        let panels_per_task = panels.div_ceil(pass.context.threads().div_ceil(pass.batch).min(panels));
        let tasks_per_example = panels.div_ceil(panels_per_task);
        let chunks = mixed.chunks_mut(panels_per_task);
        pass.context.each(chunks.enumerate(), |(task, mut chunk), scratch| {
            let x = &x[task / tasks_per_example * seq * hidden..][..seq * hidden];
            let first = task % tasks_per_example * panels_per_task * PANEL;
            let last = (first + panels_per_task * PANEL).min(hidden);
            let width = last - first;
            let ([columns], [lhs, _]) = scratch.split([terms * seq * width]);
            let x = prepare_lhs(isa, x, seq, hidden, hidden, dtype, lhs);
            for (kernel, out) in self.hidden.iter().zip(columns.chunks_exact_mut(seq * width)) {
                matmul(isa, seq, x, kernel.view(), first..last, out, width, Init::Zero);
            }
            chunk.pack(isa, columns, width, false, terms * seq, width);
        })?;
        Ok(mixed)
    }

    /// `out = Ws mixed[b]` for the rows of `block`.
    pub fn rows(
        &self,
        pass: &Pass<'_, R>,
        mixed: &ActivationPanels<R>,
        block: RowBlock,
        out: &mut [R],
        scratch: &mut TaskScratch<R>,
    ) {
        let hidden = self.hidden[0].k();
        let ([widened], _) = scratch.split([block.rows * self.seq.width()]);
        let lhs = self.seq.lhs(block.first, block.rows, widened);
        let right = mixed.view(block.example);
        matmul(pass.context.isa, block.rows, lhs, right, 0..hidden, out, hidden, Init::Zero);
    }

    /// Backward of the layer: writes `dx`, adds to the gradients of `hidden` and `seq` where given.
    ///
    /// `x` is what `prepare` read, `mixed` what it made (made again if not given), `dy` the gradient of the rows; all
    /// `[B*S, H]`.
    pub fn backward(
        &self,
        pass: &Pass<'_, R>,
        x: &[R],
        mixed: Option<&ActivationPanels<R>>,
        dy: &[R],
        dx: &mut [R],
        [dhidden, dseq]: [Option<&mut [R]>; 2],
    ) -> Result<()> {
        let (context, isa) = (pass.context, pass.context.isa);
        let (seq, hidden, terms) = (pass.seq, self.hidden[0].k(), self.hidden.len());
        let dtype = self.hidden[0].dtype();
        let all = pass.batch * seq;
        let transposed =
            self.hidden.iter().map(|kernel| context.transposed(kernel)).collect::<Result<Vec<_>>>()?;
        let by_example = pass.row_blocks(seq);
        // y[b] = sum of Ws mixed[b], mixed = x Wh: d mixed[b] = Ws^T dy[b], terms side by side
        let mut right = context.panels(dtype, pass.batch, seq, hidden);
        let chunks = right.chunks_mut(hidden.div_ceil(PANEL));
        context.each(chunks.enumerate(), |(example, mut out), _| {
            out.pack(isa, &dy[example * seq * hidden..], hidden, false, seq, hidden);
        })?;
        let mut seq_rows = context.buffer(seq * terms * seq);
        for (i, row) in seq_rows.chunks_exact_mut(terms * seq).enumerate() {
            self.seq.copy_row(i, row);
        }
        let mut seq_turned = context.buffer(terms * seq * seq);
        let transposing = timed(Work::Transpose);
        transpose(isa, &seq_rows, seq, terms * seq, terms * seq, &mut seq_turned, seq);
        drop(transposing);
        let mut dmixed = context.buffer(terms * all * hidden);
        for (term, dmixed) in dmixed.chunks_exact_mut(all * hidden).enumerate() {
            pass.each_block(&by_example, dmixed, hidden, |block, out, scratch| {
                let (_, [lhs, _]) = scratch.split([]);
                let rows = &seq_turned[(term * seq + block.first) * seq..];
                let rows = prepare_lhs(isa, rows, block.rows, seq, seq, dtype.of_activations(), lhs);
                matmul(isa, block.rows, rows, right.view(block.example), 0..hidden, out, hidden, Init::Zero);
            })?;
        }
        // dx = sum of d mixed Wh^T
        pass.each_block(&by_example, dx, hidden, |block, out, scratch| {
            let (_, [lhs, _]) = scratch.split([]);
            for (term, transposed) in transposed.iter().enumerate() {
                let rows = block.of(&dmixed[term * all * hidden..], seq, hidden);
                let rows = prepare_lhs(isa, rows, block.rows, hidden, hidden, dtype, lhs);
                let init = if term == 0 { Init::Zero } else { Init::Accumulate };
                matmul(isa, block.rows, rows, transposed.view(0), 0..hidden, out, hidden, init);
            }
        })?;
        // dWh = x^T d mixed
        if let Some(dhidden) = dhidden {
            kernel_gradient(context, dtype, x, &dmixed[..all * hidden], (dhidden, hidden))?;
        }
        let Some(dseq) = dseq else { return Ok(()) };
        // dWs = sum over examples of dy[b] mixed[b]^T
        let again;
        let mixed = match mixed {
            Some(mixed) => mixed,
            None => {
                again = self.prepare(pass, x)?;
                &again
            }
        };
        let _place = at(Place::KernelGradient);
        let panels = seq.div_ceil(PANEL);
        let mut right = context.panels(dtype, pass.batch, hidden, seq);
        context.each(right.chunks_mut(1).enumerate(), |(task, mut out), _| {
            let _time = timed(Work::Transpose);
            out.transpose(isa, &mixed.view(task / panels), task % panels);
        })?;
        let blocks = Pass::<R>::fixed_blocks(seq);
        pass.each_block(&blocks, dseq, seq, |block, out, scratch| {
            let (_, [lhs, _]) = scratch.split([]);
            for example in 0..pass.batch {
                let rows = &dy[(example * seq + block.first) * hidden..];
                let rows = prepare_lhs(isa, rows, block.rows, hidden, hidden, dtype.of_activations(), lhs);
                matmul(isa, block.rows, rows, right.view(example), 0..seq, out, seq, Init::Accumulate);
            }
        })
    }
}
