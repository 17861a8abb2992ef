//! One run through the network: sizes, training or not, and how rows are dealt out to tasks.

use crate::config::SparseMixerConfig;
use crate::error::Result;
use crate::kernels::Real;
use crate::layers::Dropout;
use crate::params::Weights;
use crate::random::{Purpose, RngStream};
use crate::runtime::{Buffer, Context, TaskScratch};
use crate::sys::{alloc_collect, alloc_collect_up_to, alloc_room};

use super::attention_mask::AttentionMask;

/// What every layer of one call has to know.
pub struct Pass<'a, R: Real> {
    /// Threads and memory.
    pub context: &'a Context<'a, R>,
    /// The encoder's configuration.
    pub config: &'a SparseMixerConfig,
    /// The encoder's weights.
    pub weights: &'a Weights<R>,
    /// `B`
    pub batch: usize,
    /// `S`
    pub seq: usize,
    /// The seed of dropout and jitter when training.
    pub training: Option<u64>,
    /// Whether layers keep what backward needs.
    pub keep: bool,
    /// Which keys queries attend to.
    pub attention_mask: &'a AttentionMask<R>,
}

/// A run of rows of one example.
#[derive(Clone, Copy, Debug)]
pub struct RowBlock {
    /// Which example.
    pub example: usize,
    /// First row, counted in the example.
    pub first: usize,
    /// Number of rows.
    pub rows: usize,
}

/// Consecutive blocks, perhaps of several examples, that a task takes together.
#[derive(Clone, Copy, Debug)]
pub struct RowGroup<'b> {
    /// In order.
    pub blocks: &'b [RowBlock],
    /// Number of rows of all of them.
    pub rows: usize,
}

impl<'b> RowGroup<'b> {
    /// The blocks, each with its rows of the group's `values` (`width` values a row).
    pub fn split<'v, T>(
        self,
        values: &'v mut [T],
        width: usize,
    ) -> impl Iterator<Item = (RowBlock, &'v mut [T])> + use<'v, 'b, T> {
        let lengths = self.blocks.iter().map(move |block| block.rows * width);
        self.blocks.iter().copied().zip(split_rows(values, lengths))
    }

    /// The group's rows of an array with `rows_per_example` rows of `width` values per example: where they are if they
    /// follow each other, else copied to `gathered`.
    pub fn of<'v, T: Copy>(
        self,
        values: &'v [T],
        rows_per_example: usize,
        width: usize,
        gathered: &'v mut [T],
    ) -> &'v [T] {
        let start = |block: &RowBlock| block.example * rows_per_example + block.first;
        let (Some(first), Some(last)) = (self.blocks.first(), self.blocks.last()) else { return &[] };
        if start(last) + last.rows - start(first) == self.rows {
            return &values[start(first) * width..][..self.rows * width];
        }
        for (block, out) in self.split(gathered, width) {
            out.copy_from_slice(block.of(values, rows_per_example, width));
        }
        gathered
    }
}

/// Rows that a task takes at the most: enough to pass over the weights rarely, few enough that a block's activations
/// stay in the L2 cache.
pub(super) const MAX_BLOCK: usize = 128;
/// Blocks are multiples of this where possible, to fill the kernels' register tiles.
pub(super) const BLOCK_STEP: usize = 32;

/// Whether `rows` rows are so few that `threads` threads had better share out columns: blocks of rows would leave some
/// threads without work, or let each of them read all weights for a few rows.
pub(super) fn are_few(rows: usize, threads: usize) -> bool {
    threads > 1 && rows <= MAX_BLOCK.min(threads * BLOCK_STEP)
}

impl<'a, R: Real> Pass<'a, R> {
    /// Dropout at `rate` for a purpose in block `layer` (0 for the embeddings' own), if training.
    pub fn dropout(&self, rate: f64, purpose: Purpose, layer: usize) -> Option<Dropout> {
        self.training.and_then(|seed| Dropout::new(rate, RngStream::new(seed, purpose, layer as u64)))
    }

    /// A buffer for what backward needs, if training.
    pub fn training_buffer(&self, len: usize) -> Option<Buffer<R>> {
        self.keep.then(|| self.context.buffer(len))
    }

    /// Whether `rows` rows are so few that threads share out columns: see [`are_few`].
    pub fn are_few(&self, rows: usize) -> bool {
        are_few(rows, self.context.threads())
    }

    /// Splits the first `rows` rows of every example into blocks, in order.
    pub fn row_blocks(&self, rows: usize) -> Vec<RowBlock> {
        // At least one block per thread where there are rows enough; all blocks of about the same size.
        let per_thread = (self.batch * rows).div_ceil(self.context.threads()).next_multiple_of(BLOCK_STEP);
        let count = rows.div_ceil(MAX_BLOCK.min(per_thread));
        let size = rows.div_ceil(count.max(1)).next_multiple_of(BLOCK_STEP);
        let starts = (0..rows).step_by(size.max(1));
        // Whole groups of blocks: see `groups`.
        let enough = self.context.enough_tasks().saturating_mul(MAX_BLOCK.div_ceil(size.max(1)));
        let most = (self.batch * starts.len()).min(enough);
        let blocks = (0..self.batch).flat_map(|example| {
            starts.clone().map(move |first| RowBlock { example, first, rows: size.min(rows - first) })
        });
        alloc_collect_up_to(most, blocks)
    }

    /// Puts consecutive `blocks` together where they are short: examples of a few tokens fill the kernels' register tiles
    /// together, and weights are read once for all of them. At least one group per thread where there are rows enough.
    pub fn groups<'b>(&self, blocks: &'b [RowBlock]) -> Vec<RowGroup<'b>> {
        let total: usize = blocks.iter().map(|block| block.rows).sum();
        let per_thread = total.div_ceil(self.context.threads()).next_multiple_of(BLOCK_STEP);
        let most = MAX_BLOCK.min(per_thread);
        let (mut groups, mut first, mut rows) = (alloc_room(blocks.len()), 0, 0);
        for (number, block) in blocks.iter().enumerate() {
            if number > first && rows + block.rows > most {
                groups.push(RowGroup { blocks: &blocks[first..number], rows });
                (first, rows) = (number, 0);
            }
            rows += block.rows;
        }
        if first < blocks.len() {
            groups.push(RowGroup { blocks: &blocks[first..], rows });
        }
        groups
    }

    /// As [`Pass::each_block_of`], a group of blocks at a time.
    pub fn each_group_of<const COUNT: usize>(
        &self,
        groups: &[RowGroup<'_>],
        outs: [(&mut [R], usize); COUNT],
        work: impl Fn(RowGroup<'_>, [&mut [R]; COUNT], &mut TaskScratch<R>) + Sync,
    ) -> Result<()> {
        let mut pieces = outs.map(|(out, width)| split_rows(out, groups.iter().map(move |g| g.rows * width)));
        let tasks = groups
            .iter()
            .map(|group| (*group, pieces.each_mut().map(|pieces| pieces.next().unwrap_or_default())));
        self.context.each(tasks, |(group, outs), scratch| work(group, outs, scratch))
    }

    /// All rows in blocks of a size that does not depend on the number of threads, for sums over blocks; counted as
    /// rows of one example.
    pub fn fixed_blocks(rows: usize) -> Vec<RowBlock> {
        let block = |first| RowBlock { example: 0, first, rows: MAX_BLOCK.min(rows - first) };
        alloc_collect((0..rows).step_by(MAX_BLOCK).map(block))
    }

    /// Does `work` for each of `blocks` with its rows of `out` (`width` values a row, blocks in order).
    pub fn each_block(
        &self,
        blocks: &[RowBlock],
        out: &mut [R],
        width: usize,
        work: impl Fn(RowBlock, &mut [R], &mut TaskScratch<R>) + Sync,
    ) -> Result<()> {
        self.each_block_of(blocks, [(out, width)], |block, [out], scratch| work(block, out, scratch))
    }

    /// The same with rows of several arrays.
    pub fn each_block_of<const COUNT: usize>(
        &self,
        blocks: &[RowBlock],
        outs: [(&mut [R], usize); COUNT],
        work: impl Fn(RowBlock, [&mut [R]; COUNT], &mut TaskScratch<R>) + Sync,
    ) -> Result<()> {
        let mut pieces = outs.map(|(out, width)| split_rows(out, blocks.iter().map(move |b| b.rows * width)));
        let tasks = blocks
            .iter()
            .map(|block| (*block, pieces.each_mut().map(|pieces| pieces.next().unwrap_or_default())));
        self.context.each(tasks, |(block, outs), scratch| work(block, outs, scratch))
    }
}

/// Splits `values` into consecutive pieces of the given lengths.
pub fn split_rows<T>(
    mut values: &mut [T],
    lengths: impl Iterator<Item = usize>,
) -> impl Iterator<Item = &mut [T]> {
    lengths.map(move |len| {
        let (piece, rest) = std::mem::take(&mut values).split_at_mut(len);
        values = rest;
        piece
    })
}

impl RowBlock {
    /// The block's rows of an array with `rows_per_example` rows of `width` values per example.
    pub fn of<'v, T>(&self, values: &'v [T], rows_per_example: usize, width: usize) -> &'v [T] {
        &values[(self.example * rows_per_example + self.first) * width..][..self.rows * width]
    }
}
