//! Cuts parameters, moments and gradients into blocks of bounded size, and blocks into contiguous runs.
//!
//! A block is what one thread takes; a run is what a rule's inner loop sees: equally long contiguous slices of
//! values, of each moment, and of the gradient.

use rayon::prelude::*;

use super::layout::{Gradient, Layout, ParameterSpec, Update, panels_len};
use crate::kernels::{PANEL, Real};
use crate::runtime::inject_fault;

/// Elements of a block: large enough to make scheduling free, small enough (64 KiB of `f32` per array) that a block
/// read twice comes from cache.
pub(super) const BLOCK: usize = 1 << 14;

/// A contiguous stretch of one parameter's storage with its moments and its gradient.
pub(super) struct Block<'a, R, const SLOTS: usize> {
    /// Index of the parameter.
    pub parameter: usize,
    values: &'a mut [R],
    slots: [&'a mut [R]; SLOTS],
    source: Source<'a, R>,
}

/// Where a block's gradient is. `offset` is the row-major index of the block's first element.
#[derive(Clone, Copy)]
enum Source<'a, R> {
    Dense {
        gradient: &'a [R],
        offset: usize,
    },
    /// Rows of one panel: each takes `PANEL` elements of storage, of which `width` are columns of the matrix, and
    /// its gradient begins `stride` after that of the row before.
    Strided {
        gradient: &'a [R],
        offset: usize,
        stride: usize,
        width: usize,
    },
    Rows {
        rows: &'a [u32],
        values: &'a [R],
        table_width: usize,
        offset: usize,
    },
}

/// Rows of a panel whose gradients are gathered at a time.
const GATHERED_ROWS: usize = 32;

/// Longest run of elements that a sparse gradient does not name.
const ZERO_RUN: usize = 1024;

/// Cuts every parameter that has a gradient into blocks, in the order of storage. `slots[i]` are the moments of
/// parameter `i`, each laid out as its storage.
pub(super) fn cut<'a, R: Real, const SLOTS: usize>(
    specs: &[ParameterSpec],
    updates: &'a mut [Update<'_, R>],
    slots: &'a mut [Vec<Vec<R>>],
) -> Vec<Block<'a, R, SLOTS>> {
    let mut blocks = Vec::new();
    for (parameter, ((spec, update), slots)) in specs.iter().zip(updates).zip(slots).enumerate() {
        let gradient = update.gradient;
        if matches!(gradient, Gradient::None) {
            continue;
        }
        let mut moments = slots.iter_mut();
        let mut rest: [&mut [R]; SLOTS] =
            std::array::from_fn(|_| moments.next().map_or(&mut [][..], |m| &mut m[..]));
        let mut storage_offset = 0;
        for piece in &mut update.values {
            let mut values = &mut piece[..];
            while !values.is_empty() {
                let (len, source) = next_source(spec, gradient, storage_offset, values.len());
                let (head, tail) = values.split_at_mut(len);
                values = tail;
                let heads = rest.each_mut().map(|slot| {
                    let (head, tail) = std::mem::take(slot).split_at_mut(len);
                    *slot = tail;
                    head
                });
                blocks.push(Block { parameter, values: head, slots: heads, source });
                storage_offset += len;
            }
        }
    }
    blocks
}

/// Length in storage and gradient of the block that begins at `storage_offset`, with `remaining` elements left in
/// its slice.
fn next_source<'a, R: Real>(
    spec: &ParameterSpec,
    gradient: Gradient<'a, R>,
    storage_offset: usize,
    remaining: usize,
) -> (usize, Source<'a, R>) {
    let dense = match gradient {
        Gradient::Dense(g) => g,
        Gradient::None => &[],
        Gradient::Rows { rows, values } => {
            let len = BLOCK.min(remaining);
            let table_width = spec.shape.get(1).copied().unwrap_or(1);
            return (len, Source::Rows { rows, values, table_width, offset: storage_offset });
        }
    };
    match spec.layout {
        Layout::Flat => {
            let len = BLOCK.min(remaining);
            (len, Source::Dense { gradient: &dense[storage_offset..][..len], offset: storage_offset })
        }
        Layout::Panels { k, n, .. } => {
            let matrix_len = panels_len(k, n);
            let (matrix, within) = (storage_offset / matrix_len, storage_offset % matrix_len);
            let (panel, row) = (within / (k * PANEL), within / PANEL % k);
            let rows = (BLOCK / PANEL).min(k - row);
            let offset = (matrix * k + row) * n + panel * PANEL;
            let width = PANEL.min(n - panel * PANEL);
            (rows * PANEL, Source::Strided { gradient: dense, offset, stride: n, width })
        }
    }
}

impl<R: Real, const SLOTS: usize> Block<'_, R, SLOTS> {
    /// Calls `visit(values, moments, gradient)` for each run of the block.
    #[inline]
    pub fn for_each_run(&mut self, mut visit: impl FnMut(&mut [R], [&mut [R]; SLOTS], &[R])) {
        match self.source {
            Source::Strided { gradient, offset, stride, width: PANEL } => {
                // Rows of the gradient are pages apart. Gathered by a loop that does nothing else, many of them are
                // on their way from memory at once.
                let mut gathered = [R::ZERO; GATHERED_ROWS * PANEL];
                let mut first = offset;
                for (piece, values) in self.values.chunks_mut(gathered.len()).enumerate() {
                    let gathered = &mut gathered[..values.len()];
                    for row in gathered.chunks_exact_mut(PANEL) {
                        row.copy_from_slice(&gradient[first..first + PANEL]);
                        first += stride;
                    }
                    let at = piece * GATHERED_ROWS * PANEL;
                    visit(values, self.slots.each_mut().map(|s| &mut s[at..at + values.len()]), gathered);
                }
            }
            _ => self.for_each_row_major_run(|_, values, slots, gradient| visit(values, slots, gradient)),
        }
    }

    /// Calls `visit(row-major index of the first element, values, moments, gradient)` for each run of the
    /// block that is contiguous in row-major order.
    #[inline]
    pub fn for_each_row_major_run(
        &mut self,
        mut visit: impl FnMut(usize, &mut [R], [&mut [R]; SLOTS], &[R]),
    ) {
        match self.source {
            Source::Dense { gradient, offset } => {
                visit(offset, self.values, self.slots.each_mut().map(|s| &mut **s), gradient);
            }
            Source::Strided { gradient, offset, stride, width } => {
                for (row, values) in self.values.chunks_exact_mut(PANEL).enumerate() {
                    let (at, first) = (row * PANEL, offset + row * stride);
                    let slots = self.slots.each_mut().map(|s| &mut s[at..at + width]);
                    visit(first, &mut values[..width], slots, &gradient[first..first + width]);
                }
            }
            Source::Rows { rows, values: row_values, table_width, offset } => {
                let zeros = [R::ZERO; ZERO_RUN];
                let end = offset + self.values.len();
                let mut next = rows.partition_point(|&row| (row as usize + 1) * table_width <= offset);
                let mut at = offset;
                while at < end {
                    let named = rows.get(next).map_or(usize::MAX, |&row| row as usize * table_width);
                    let (stop, gradient) = if at < named {
                        let stop = named.min(end).min(at + ZERO_RUN);
                        (stop, &zeros[..stop - at])
                    } else {
                        let stop = (named + table_width).min(end);
                        let from = next * table_width + (at - named);
                        next += 1;
                        (stop, &row_values[from..from + (stop - at)])
                    };
                    let range = at - offset..stop - offset;
                    let slots = self.slots.each_mut().map(|s| &mut s[range.clone()]);
                    visit(at, &mut self.values[range.clone()], slots, gradient);
                    at = stop;
                }
            }
        }
    }
}

/// Does `work` for every task, on the pool that the caller is in, else in a plain loop so that no pool is started
/// behind its back. The results are in the order of the tasks.
pub(super) fn map_in_order<T: Send, U: Send>(tasks: Vec<T>, work: impl Fn(T) -> U + Send + Sync) -> Vec<U> {
    let work = |task| {
        inject_fault();
        work(task)
    };
    if rayon::current_thread_index().is_some() {
        tasks.into_par_iter().map(work).collect()
    } else {
        tasks.into_iter().map(work).collect()
    }
}

/// Does `work` for every block; the results in the order of the blocks.
pub(super) fn map_blocks<R: Real, T: Send, const SLOTS: usize>(
    blocks: &mut [Block<'_, R, SLOTS>],
    work: impl Fn(&mut Block<'_, R, SLOTS>) -> T + Send + Sync,
) -> Vec<T> {
    map_in_order(blocks.iter_mut().collect(), work)
}

/// Adds `parts`, one per block, over the blocks of each of `parameters` parameters, in order.
pub(super) fn sum_by_parameter<R: Real, const SLOTS: usize, const N: usize>(
    parameters: usize,
    blocks: &[Block<'_, R, SLOTS>],
    parts: &[[f64; N]],
) -> Vec<[f64; N]> {
    let mut sums = vec![[0.0; N]; parameters];
    for (block, part) in blocks.iter().zip(parts) {
        for (sum, x) in sums[block.parameter].iter_mut().zip(part) {
            *sum += x;
        }
    }
    sums
}
