//! Splits parameters, moments and gradients into blocks of bounded size, and blocks into contiguous runs.
//!
//! A block is what one thread takes; a run is what a rule's inner loop sees: equally long contiguous slices of
//! values, of each moment, and of the gradient.

use super::layout::{Gradient, Layout, ParameterSpec, Update, panels_len};
use crate::kernels::{GradientRows, Isa, LowPrecision, PANEL, Real, update_weights};
use crate::runtime::{inject_fault, parallel};
use crate::sys::{alloc_collect, alloc_zeroed};

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
    /// What `values` are the master of, if the parameter is stored in low precision.
    low_precision: Option<LowPrecision<'a>>,
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
}

/// Rows of a panel whose gradients are gathered at a time.
const GATHERED_ROWS: usize = 32;

/// Splits every parameter that has a gradient into blocks, in the order of storage. `slots[i]` are the moments of
/// parameter `i`, each laid out as its storage, and then, if it is stored in low precision, its master, which is split
/// in its place.
pub(super) fn split_blocks<'a, R: Real, const SLOTS: usize>(
    specs: &'a [ParameterSpec],
    updates: &'a mut [Update<'_, R>],
    slots: &'a mut [Vec<Vec<R>>],
) -> impl Iterator<Item = Block<'a, R, SLOTS>> + Send {
    let each = specs.iter().zip(updates).zip(slots).enumerate();
    each.flat_map(|(parameter, ((spec, update), slots))| cut_one(parameter, spec, update, slots))
}

/// As [`split_blocks`], of one parameter.
pub(super) fn cut_one<'a, R: Real, const SLOTS: usize>(
    parameter: usize,
    spec: &'a ParameterSpec,
    update: &'a mut Update<'_, R>,
    slots: &'a mut [Vec<R>],
) -> impl Iterator<Item = Block<'a, R, SLOTS>> + Send {
    let gradient = update.gradient;
    let (slots, master) =
        slots.split_at_mut(slots.len() - usize::from(spec.low_precision && !slots.is_empty()));
    let mut slots = slots.iter_mut().map(|slot| &mut slot[..]);
    let mut rest: [&mut [R]; SLOTS] = std::array::from_fn(|_| slots.next().unwrap_or_default());
    let pieces = update.values.iter_mut().map(|piece| &mut piece[..]);
    let mut pieces = pieces.chain(master.iter_mut().map(|master| &mut master[..]));
    let mut stored = update.low_precision.iter_mut().map(LowPrecision::reborrow);
    let mut low_precision: Option<LowPrecision<'_>> = None;
    let (mut values, mut storage_offset) = (&mut [][..], 0);
    std::iter::from_fn(move || {
        if matches!(gradient, Gradient::None) {
            return None;
        }
        while values.is_empty() {
            values = pieces.next()?;
        }
        let (len, source) = next_source(spec, gradient, storage_offset, values.len());
        storage_offset += len;
        let take = |from: &mut &'a mut [R]| {
            let (head, tail) = std::mem::take(from).split_at_mut(len);
            *from = tail;
            head
        };
        let low_precision = if spec.low_precision {
            let piece = low_precision.take().filter(|rest| !rest.is_empty()).or_else(|| stored.next());
            piece.map(|piece| {
                let (own, rest) = piece.split_at(len);
                low_precision = Some(rest);
                own
            })
        } else {
            None
        };
        let (values, slots) = (take(&mut values), rest.each_mut().map(take));
        Some(Block { parameter, values, slots, source, low_precision })
    })
}

/// Blocks of one parameter.
pub(super) fn block_count<R: Real>(spec: &ParameterSpec, update: &Update<'_, R>) -> usize {
    let master = if spec.low_precision { Some(spec.layout.storage_len(&spec.shape)) } else { None };
    let (mut count, mut offset) = (0, 0);
    for mut remaining in update.values.iter().map(|piece| piece.len()).chain(master) {
        while remaining > 0 {
            let (len, _) = next_source(spec, update.gradient, offset, remaining);
            (count, offset, remaining) = (count + 1, offset + len, remaining - len);
        }
    }
    count
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
    /// The last pass: replaces every value and its moments by `rule(value, moments, gradient)`, and stores the values in
    /// low precision if they are a master. See [`update_weights`].
    #[inline]
    pub fn update(&mut self, isa: Isa, rule: impl Fn(R, [R; SLOTS], R) -> (R, [R; SLOTS]) + Copy) {
        let gradient = match self.source {
            Source::Dense { gradient, .. } => GradientRows { values: gradient, stride: PANEL, width: PANEL },
            Source::Strided { gradient, offset, stride, width } => {
                GradientRows { values: gradient.get(offset..).unwrap_or_default(), stride, width }
            }
        };
        self.update_from(isa, Some(gradient), rule);
    }

    /// As [`Block::update`], for rules that need no gradient there: `rule` gets zeros for it.
    #[inline]
    pub fn update_without_gradient(
        &mut self,
        isa: Isa,
        rule: impl Fn(R, [R; SLOTS], R) -> (R, [R; SLOTS]) + Copy,
    ) {
        self.update_from(isa, None, rule);
    }

    #[inline]
    fn update_from(
        &mut self,
        isa: Isa,
        gradient: Option<GradientRows<'_, R>>,
        rule: impl Fn(R, [R; SLOTS], R) -> (R, [R; SLOTS]) + Copy,
    ) {
        let slots = self.slots.each_mut().map(|slot| &mut **slot);
        update_weights(isa, self.values, slots, gradient, self.low_precision.as_mut(), rule);
    }

    /// Stores the values in low precision if they are a master: the end of a last pass that is not [`Block::update`].
    pub fn store(&mut self, isa: Isa) {
        if let Some(low_precision) = &mut self.low_precision {
            low_precision.store(isa, self.values);
        }
    }

    /// Takes over weights in low precision that somebody else has changed into a master.
    pub fn sync_master(&mut self, isa: Isa) {
        if let Some(low_precision) = &self.low_precision {
            low_precision.sync_master(isa, self.values);
        }
    }

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
        }
    }
}

/// Does `work` for every task, with the threads of [`parallel::with_threads`]. The results are in the order of the tasks.
pub(super) fn map_in_order<T: Send, U: Send>(tasks: Vec<T>, work: impl Fn(T) -> U + Send + Sync) -> Vec<U> {
    parallel::map(tasks.into_iter(), |task| {
        inject_fault();
        work(task)
    })
}

/// Does `work` for every block.
pub(super) fn for_each_block<'a, R: Real, const SLOTS: usize>(
    blocks: impl Iterator<Item = Block<'a, R, SLOTS>> + Send,
    work: impl Fn(&mut Block<'a, R, SLOTS>) + Sync,
) {
    parallel::for_each(blocks, |mut block, _| {
        inject_fault();
        work(&mut block);
    });
}

/// Sums of every parameter over its blocks, added in order whatever thread makes which.
#[derive(Debug, Default)]
pub(super) struct BlockSums {
    /// Per block the parameter and its sums.
    parts: Vec<(usize, [f64; 2])>,
    /// Per parameter.
    sums: Vec<[f64; 2]>,
}

impl BlockSums {
    /// Room for `blocks` blocks of `parameters` parameters.
    pub fn new(blocks: usize, parameters: usize) -> Self {
        BlockSums { parts: alloc_collect((0..blocks).map(|_| (0, [0.0; 2]))), sums: alloc_zeroed(parameters) }
    }

    /// Adds up what `work` makes of every block; allocates nothing.
    pub fn of<'a, R: Real, const SLOTS: usize>(
        &mut self,
        blocks: impl Iterator<Item = Block<'a, R, SLOTS>> + Send,
        work: impl Fn(&mut Block<'a, R, SLOTS>) -> [f64; 2] + Sync,
    ) -> &[[f64; 2]] {
        self.parts.fill((0, [0.0; 2]));
        parallel::for_each(blocks.zip(&mut self.parts), |(mut block, part), _| {
            inject_fault();
            *part = (block.parameter, work(&mut block));
        });
        self.sums.fill([0.0; 2]);
        for (parameter, part) in &self.parts {
            for (sum, x) in self.sums[*parameter].iter_mut().zip(part) {
                *sum += x;
            }
        }
        &self.sums
    }
}
