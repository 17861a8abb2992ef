//! Linear mixing: `y[b] = Ws x[b] Wh` with learned `Ws [S, S]` (`seq_kernel`, indexed `[out, in]`) and `Wh [H, H]`
//! (`hidden_kernel`, indexed `[in, out]`); no bias.
//!
//! Fourier and Hartley mixing by matrix products are the same with fixed matrices and two terms:
//! `y[b] = Ws1 x[b] Wh1 + Ws2 x[b] Wh2`, see `mix_spectral.rs`. Source: `LinearTransformLayer`.

use crate::error::Result;
use crate::kernels::{Init, PANEL, PackedMatrix, Real, matmul, prepare_lhs};
use crate::layers::Table;
use crate::params::{Loader, Param, ParamMut, Spec};
use crate::runtime::{ActivationPanels, PanelsMut, TaskScratch};

use super::pass::{Pass, RowBlock};

/// The matrices of `t` terms.
#[derive(Clone, Debug)]
pub struct MixLinear<R> {
    /// `Wh` of each term, `[H, H]`.
    pub hidden: Vec<PackedMatrix<R>>,
    /// `Ws` of all terms side by side, `[S, t S]`.
    pub seq: Table<R>,
}

/// The weights.
pub fn specs(prefix: &str, hidden: usize, seq: usize) -> [Spec; 2] {
    [
        Spec::kernel(format!("{prefix}/linear_transform/hidden_kernel"), &[hidden, hidden]),
        Spec::kernel(format!("{prefix}/linear_transform/seq_kernel"), &[seq, seq]),
    ]
}

impl<R: Real> MixLinear<R> {
    /// Takes the weights in the order of [`specs`].
    pub fn load(loader: &mut Loader<'_, R>, hidden: usize, seq: usize) -> Result<Self> {
        Ok(MixLinear { hidden: vec![loader.matrix(hidden, hidden)?], seq: loader.table(seq, seq)? })
    }

    /// The weights in the order of [`specs`].
    pub fn params(&self) -> [Param<'_, R>; 2] {
        [Param::Matrices(self.hidden.iter().collect()), Param::Table(&self.seq)]
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> [ParamMut<'_, R>; 2] {
        [ParamMut::Matrices(self.hidden.iter_mut().collect()), ParamMut::Table(&mut self.seq)]
    }

    /// `x[b] Wh` of every example, as right operands: the part that a row block needs all tokens for.
    pub fn prepare<'p>(&self, pass: &'p Pass<'_, R>, x: &[R]) -> Result<ActivationPanels<'p, R>> {
        let isa = pass.context.isa;
        let (seq, hidden, terms) = (pass.seq, self.hidden[0].k(), self.hidden.len());
        let dtype = self.hidden[0].dtype();
        let mut mixed = pass.context.panels(dtype, pass.batch, terms * seq, hidden);
        // Whole examples per task where there are enough, else some panels of one.
        let panels = hidden.div_ceil(PANEL);
        let panels_per_task = panels.div_ceil(pass.context.threads().div_ceil(pass.batch).min(panels));
        let tasks_per_example = panels.div_ceil(panels_per_task);
        let chunks = mixed.chunks_mut(panels_per_task);
        pass.context.each(chunks.into_iter().enumerate(), |(task, mut chunk), scratch| {
            let x = &x[task / tasks_per_example * seq * hidden..][..seq * hidden];
            let first = task % tasks_per_example * panels_per_task * PANEL;
            let last = (first + panels_per_task * PANEL).min(hidden);
            let ([columns], [lhs, _]) = scratch.split([terms * seq * PANEL]);
            let x = prepare_lhs(isa, x, seq, hidden, hidden, dtype, lhs);
            for (p, col) in (first..last).step_by(PANEL).enumerate() {
                let cols = col..(col + PANEL).min(last);
                let mut panel = chunk.panel(p, terms * seq);
                let width = cols.len();
                // A full panel in the activations' type is row-major already: it needs no second pass.
                let direct = width == PANEL && matches!(panel, PanelsMut::Native(_));
                let out = match &mut panel {
                    PanelsMut::Native(out) if direct => &mut **out,
                    _ => &mut *columns,
                };
                for (term, kernel) in self.hidden.iter().enumerate() {
                    let out = &mut out[term * seq * width..];
                    matmul(isa, seq, x, kernel.view(), cols.clone(), out, width, Init::Zero);
                }
                if !direct {
                    panel.pack(isa, columns, width, false, terms * seq, width);
                }
            }
        })?;
        Ok(mixed)
    }

    /// `out = Ws mixed[b]` for the rows of `block`.
    pub fn rows(
        &self,
        pass: &Pass<'_, R>,
        mixed: &ActivationPanels<'_, R>,
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
}
