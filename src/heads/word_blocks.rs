//! The word table's part in the backward pass of the masked language model: from gradients of logits, in blocks of
//! words, to those of the table and of the hidden states.

use crate::error::Result;
use crate::kernels::{
    Dtype, Elementwise, Init, LhsBuffer, PANEL, Panels, Real, elementwise, matmul, pack_full_precision,
    prepare_lhs, transpose,
};
use crate::params::Table;
use crate::runtime::Context;
use crate::sys::alloc_zeroed;

/// Words of a block; a multiple of the panel width.
pub(super) const BLOCK: usize = 8 * PANEL;

/// What turns logits into their gradients, one entry per row.
#[derive(Clone, Copy)]
pub(super) struct Targets<'a, R> {
    /// The right words.
    pub labels: &'a [usize],
    /// Logarithms of the sums of exponentials.
    pub normalisers: &'a [R],
    /// Weight times scale.
    pub factors: &'a [R],
}

/// Turns the logits in `blocks` into gradients, and adds to those of the table (`dz^T h`) and of the bias where given.
pub(super) fn add_table_gradients<R: Real>(
    context: &Context<'_, R>,
    h: &[R],
    blocks: &mut [R],
    targets: Targets<'_, R>,
    d_table: Option<&mut [R]>,
    d_bias: Option<&mut [R]>,
) -> Result<()> {
    let isa = context.isa;
    let Targets { labels, normalisers, factors } = targets;
    let rows = labels.len();
    let width = h.len() / rows;
    let mut right = context.panels(Dtype::Float32, 1, rows, width);
    context.each(right.chunks_mut(1).enumerate(), |(panel, mut chunk), _| {
        let first = panel * PANEL;
        chunk.pack(isa, &h[first..], width, false, rows, PANEL.min(width - first));
    })?;
    let mut table_pieces = d_table.map(|values| values.chunks_mut(BLOCK * width));
    let mut bias_pieces = d_bias.map(|values| values.chunks_mut(BLOCK));
    let tasks = blocks.chunks_mut(BLOCK * rows).map(|block| {
        let table = table_pieces.as_mut().and_then(Iterator::next);
        (block, table, bias_pieces.as_mut().and_then(Iterator::next))
    });
    context.each(tasks.enumerate(), |(block, (z, d_table, d_bias)), scratch| {
        let words = z.len() / rows;
        // dz = factor (exp(z - normaliser) - [word = label])
        for (row, normaliser) in z.chunks_exact_mut(words).zip(normalisers) {
            row.iter_mut().for_each(|z| *z -= *normaliser);
        }
        elementwise(isa, Elementwise::Exponential, z);
        for ((row, &factor), &label) in z.chunks_exact_mut(words).zip(factors).zip(labels) {
            row.iter_mut().for_each(|z| *z *= factor);
            if label / BLOCK == block {
                row[label % BLOCK] -= factor;
            }
        }
        if let Some(d_bias) = d_bias {
            for row in z.chunks_exact(words) {
                d_bias.iter_mut().zip(row).for_each(|(sum, &d)| *sum += d);
            }
        }
        let Some(d_table) = d_table else { return };
        let ([transposed], [lhs, _]) = scratch.split([words * rows]);
        transpose(isa, z, rows, words, words, transposed, rows);
        let lhs = prepare_lhs(isa, transposed, words, rows, rows, Dtype::Float32, lhs);
        matmul(isa, words, lhs, right.view(0), 0..width, d_table, width, Init::Accumulate);
    })
}

/// `dh = dz table`, `[P, W]`, from the blocks of `dz`. A task makes some columns and passes over all words for them,
/// so that the sums run over words in order.
pub(super) fn hidden_gradients<R: Real>(
    context: &Context<'_, R>,
    table: &Table<R>,
    blocks: &[R],
    rows: usize,
) -> Result<Vec<R>> {
    let isa = context.isa;
    let (vocab, width) = (table.rows(), table.width());
    let panels = width.div_ceil(PANEL);
    let cols = panels.div_ceil(4 * context.threads()).clamp(1, 4) * PANEL;
    let mut by_columns = context.buffer(rows * width);
    let tasks = by_columns.chunks_mut(rows * cols).enumerate();
    context.each(tasks, |(task, out), scratch| {
        let (first_col, len) = (task * cols, out.len() / rows);
        let ([right, widened], [lhs, _]) = scratch.split([BLOCK * cols, BLOCK * width]);
        for (block, dz) in blocks.chunks(BLOCK * rows).enumerate() {
            let first = block * BLOCK;
            let words = BLOCK.min(vocab - first);
            let values = table_rows(table, first, words, widened);
            pack_full_precision(isa, &values[first_col..], width, false, words, 0..len, right);
            let lhs: &mut LhsBuffer = &mut *lhs;
            let lhs = prepare_lhs(isa, dz, rows, words, words, Dtype::Float32, lhs);
            let init = if block == 0 { Init::Zero } else { Init::Accumulate };
            matmul(isa, rows, lhs, Panels::from_full_precision(right, words, len), 0..len, out, len, init);
        }
    })?;
    let mut dh = alloc_zeroed(rows * width);
    for (task, values) in by_columns.chunks(rows * cols).enumerate() {
        let len = values.len() / rows;
        for (row, values) in values.chunks_exact(len).enumerate() {
            dh[row * width + task * cols..][..len].copy_from_slice(values);
        }
    }
    Ok(dh)
}

/// Rows `first .. first + count` of the table in the activations' type; `widened` is memory for them.
pub(super) fn table_rows<'a, R: Real>(
    table: &'a Table<R>,
    first: usize,
    count: usize,
    widened: &'a mut [R],
) -> &'a [R] {
    let width = table.width();
    match table.full_precision() {
        Some(values) => &values[first * width..][..count * width],
        None => {
            for (i, out) in widened.chunks_exact_mut(width).take(count).enumerate() {
                table.copy_row(first + i, out);
            }
            &widened[..count * width]
        }
    }
}
