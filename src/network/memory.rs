//! How much memory a call needs, without making it.

use crate::config::{MixingMechanism, SparseMixerConfig};
use crate::error::{Error, Result};
use crate::kernels::{Dtype, lhs_stride, packed_len};

use super::feed_forward::SLICE;
use super::moe::dispatch::Slot;
use super::moe::grouping::Grouping;
use super::moe::mixture::MAX_ROWS;
use super::outputs::RequestedOutputs;
use super::pass::{BLOCK_STEP, MAX_BLOCK, are_few};

/// Bytes of scratch memory, copied inputs and outputs of a forward pass at inference for `batch` examples of `seq`
/// positions, in 32 bits, by `threads` threads. Fixed transform matrices count here, since no weight stands for them.
///
/// It goes through the layers as [`super::SparseMixer::forward`] does and keeps account of the buffers that they take
/// and give back.
///
/// # Errors
/// Those of the call: a batch that the routing groups do not divide.
pub fn forward_bytes(
    config: &SparseMixerConfig,
    batch: usize,
    seq: usize,
    requested: RequestedOutputs,
    threads: usize,
) -> Result<usize> {
    let built_for = config;
    // Fewer positions take what they take in an encoder that was built for so many.
    let config = &SparseMixerConfig { max_sequence_length: seq, ..config.clone() };
    let hidden = config.hidden_size;
    // Beyond any address space, whatever else a call takes, and still far from overflows below.
    let positions = batch.checked_mul(seq).and_then(|rows| rows.checked_mul(per_position(config)));
    if positions.is_none_or(|bytes| bytes > MOST_BYTES) {
        return Err(Error::value("batch", format!("got {batch}: more than any machine has memory for")));
    }
    let rows = batch * seq;
    let mut ledger = Ledger::default();
    let mut outputs = 0;
    let keeps_last = requested.sequence_output || requested.encoder_outputs;
    let range = config.output_range().unwrap_or(seq);
    let last_rows = if keeps_last { range } else { 1 };
    let mut x = Some(ledger.take(FLOAT, rows * hidden));
    for layer in 0..config.num_layers {
        let is_last = layer + 1 == config.num_layers;
        let len = batch * if is_last { last_rows } else { seq } * hidden;
        let keep = if is_last { keeps_last } else { requested.encoder_outputs };
        let out = if keep { None } else { Some(ledger.take(FLOAT, len)) };
        outputs += if keep { len } else { 0 };
        if is_last && requested.sequence_output && requested.encoder_outputs {
            outputs += len; // both have an array of their own
        }
        block(&mut ledger, config, layer, (batch, threads), len)?;
        ledger.give(x);
        x = out;
    }
    outputs += if requested.pooled_output { batch * hidden } else { 0 };
    let ids = 2 * size_of::<i64>() + size_of::<f32>();
    let adder = if config.attention_layers.is_empty() { 0 } else { size_of::<f32>() };
    let arrays = ledger.bytes() + outputs * FLOAT + rows * (ids + adder);
    let counted =
        arrays + ledger.largest_extra + of_threads(config, batch, threads) + transform_bytes(built_for);
    // What allocators, stacks and the interpreter add.
    Ok(counted + counted / 50 + (1 << 20))
}

const FLOAT: usize = size_of::<f32>();
/// 2^57: the address space of 64-bit processors with five levels of pages.
const MOST_BYTES: usize = 1 << 57;

/// At least as many bytes as any one array of a call has per position, over all layers.
fn per_position(config: &SparseMixerConfig) -> usize {
    let widest = [config.hidden_size, config.embedding_width(), config.inner_dim, config.num_experts];
    let slots = if config.moe_layers.is_empty() { 1.0 } else { config.eval_capacity_factor.max(1.0) };
    let width = widest.into_iter().max().unwrap_or(1) as f64 * slots;
    (width * FLOAT as f64 * config.num_layers as f64) as usize
}
/// Allocators return memory to the system at once from some size on; this is the largest such of glibc.
const RETURNED_FROM: usize = 32 << 20;

/// The buffers of a scratch pool that starts empty.
#[derive(Default)]
struct Ledger {
    /// Lengths in bytes, by element size.
    free: Vec<(usize, usize)>,
    taken: usize,
    /// Bytes of buffers that were replaced by larger ones, and that the allocator keeps.
    replaced: usize,
    /// Most bytes outside the pool that a block has at once.
    largest_extra: usize,
}

/// A buffer on loan: element size and length in bytes.
type Loan = (usize, usize);

impl Ledger {
    /// As [`crate::runtime::Buffer`] chooses: the smallest that is large enough, else the largest, replaced.
    fn take(&mut self, element: usize, len: usize) -> Loan {
        let bytes = len * element;
        let fits = |&&(kind, size): &&Loan| kind == element && size >= bytes;
        let own = |&&(kind, _): &&Loan| kind == element;
        let chosen = self.free.iter().filter(fits).min_by_key(|loan| loan.1);
        let chosen = chosen.or_else(|| self.free.iter().filter(own).max_by_key(|loan| loan.1)).copied();
        let mut size = 0;
        if let Some(chosen) = chosen {
            let at = self.free.iter().position(|loan| *loan == chosen).unwrap_or_default();
            size = self.free.swap_remove(at).1;
        }
        if 0 < size && size < bytes.min(RETURNED_FROM) {
            self.replaced += size;
        }
        let size = size.max(bytes);
        self.taken += size;
        (element, size)
    }

    fn give(&mut self, loan: Option<Loan>) {
        if let Some(loan) = loan {
            self.taken -= loan.1;
            self.free.push(loan);
        }
    }

    fn give_all(&mut self, loans: impl IntoIterator<Item = Loan>) {
        loans.into_iter().for_each(|loan| self.give(Some(loan)));
    }

    /// All that the pool has or had: nothing else is returned to the system before the end.
    fn bytes(&self) -> usize {
        self.taken + self.replaced + self.free.iter().map(|loan| loan.1).sum::<usize>()
    }
}

/// What block `layer` takes and gives back; `out` is the length of its output.
fn block(
    ledger: &mut Ledger,
    config: &SparseMixerConfig,
    layer: usize,
    (batch, threads): (usize, usize),
    out: usize,
) -> Result<()> {
    let (seq, hidden) = (config.max_sequence_length, config.hidden_size);
    let (stream, is_custom) = (batch * seq * hidden, config.inner_activation.name == "custom");
    let (mut held, mut mixed) = (Vec::new(), Vec::new());
    if config.norm_first {
        held.push(ledger.take(FLOAT, stream));
    }
    let dtype = config.dtype.of_activations();
    let element = if dtype == Dtype::Bfloat16 { size_of::<u16>() } else { FLOAT };
    if config.is_attention(layer) {
        let (heads, head) = (config.num_attention_heads, hidden / config.num_attention_heads);
        let rows = [ledger.take(FLOAT, stream), ledger.take(FLOAT, stream)];
        mixed.push(ledger.take(element, batch * heads * packed_len(head, seq, dtype)));
        mixed.push(ledger.take(element, batch * heads * packed_len(seq, head, dtype)));
        ledger.give_all(rows);
    } else if is_fft(config) {
        let numbers = if is_structured(config) { hidden } else { 2 * (hidden / 2 + 1) };
        let by_row = ledger.take(FLOAT, batch * seq * numbers);
        mixed.push(ledger.take(FLOAT, batch * seq * numbers));
        ledger.give(Some(by_row));
    } else {
        mixed.push(ledger.take(element, batch * packed_len(mixing_terms(config) * seq, hidden, dtype)));
    }
    if config.is_moe(layer) {
        let grouping = Grouping::new(config, batch, seq, false)?;
        let experts = config.num_experts;
        let all_slots = grouping.groups * experts * grouping.slots();
        // Experts compute the tokens of the output alone.
        let slots = if out < stream { all_slots.min(out / hidden * experts) } else { all_slots };
        held.extend([stream; 2].map(|len| ledger.take(FLOAT, len)));
        ledger.give_all(mixed.drain(..));
        held.extend([batch * seq * experts, batch * seq].map(|len| ledger.take(FLOAT, len)));
        held.push(ledger.take(FLOAT, slots * hidden));
        if is_custom {
            held.push(ledger.take(FLOAT, slots * config.inner_dim));
        }
        if !config.norm_first && config.semantics().moe_residual {
            held.push(ledger.take(FLOAT, out));
        }
        // Who goes where, in three orders.
        let mut extra =
            all_slots * (size_of::<Slot<f32>>() + 2 * size_of::<u32>()) + batch * seq * size_of::<u32>();
        if is_custom {
            extra += 2 * slots * config.inner_dim * FLOAT;
        }
        ledger.largest_extra = ledger.largest_extra.max(extra);
    } else if is_custom {
        held.extend([out; 3].map(|len| ledger.take(FLOAT, len)));
        held.push(ledger.take(FLOAT, out / hidden * config.inner_dim));
        // The callable's argument and its result, or the result and its copy.
        let extra = 2 * out / hidden * config.inner_dim * FLOAT;
        ledger.largest_extra = ledger.largest_extra.max(extra);
    } else if are_few(out / hidden, threads) {
        // One step after the other: input and result of the feed-forward, its inner rows, and parts of these that tasks
        // have computed, whose buffer the slices take over.
        let inner = out / hidden * config.inner_dim;
        ledger.give_all(mixed.drain(..));
        held.extend([out, out, inner, inner, out].map(|len| ledger.take(FLOAT, len)));
        if config.dtype.of_activations() != Dtype::Float32 {
            // Left operands of the two products.
            ledger.largest_extra = ledger.largest_extra.max((out + inner) * size_of::<u16>());
        }
    }
    ledger.give_all(mixed.into_iter().chain(held));
    Ok(())
}

/// Bytes of a thread's stack and of what a task has beside its numbered buffers.
const THREAD: usize = 192 << 10;

/// Bytes that threads have for themselves.
fn of_threads(config: &SparseMixerConfig, batch: usize, threads: usize) -> usize {
    let seq = config.max_sequence_length;
    // As a pass splits rows into blocks; where there are fewer than threads, some have nothing to do.
    let per_thread = (batch * seq).div_ceil(threads).next_multiple_of(BLOCK_STEP);
    let rows = MAX_BLOCK.min(per_thread).min(batch * seq).max(1);
    let busy = threads.min(batch * seq.div_ceil(rows));
    let others = if threads > 1 { threads * THREAD } else { 0 };
    // The feed-forward of few rows has no scratch of threads.
    let slice = if are_few(batch * seq, threads) && config.moe_layers.is_empty() {
        0
    } else {
        SLICE.min(config.inner_dim)
    };
    busy * task_bytes(config, batch, rows, slice) + others
}

/// Most bytes that one thread has for tasks of `rows` rows: the largest of each numbered buffer over all tasks. The
/// feed-forward takes `slice` inner values at once.
fn task_bytes(config: &SparseMixerConfig, batch: usize, rows: usize, slice: usize) -> usize {
    let (seq, hidden, width) = (config.max_sequence_length, config.hidden_size, config.embedding_width());
    let (attends, mixes) =
        (!config.attention_layers.is_empty(), config.attention_layers.len() < config.num_layers);
    let mut sizes = [rows * width.max(hidden), rows * width.max(hidden), rows * width.max(slice)];
    // Left operands as products want them.
    let mut lhs = [rows * hidden.max(width), rows * slice];
    if mixes && !is_fft(config) {
        sizes[0] = sizes[0].max(mixing_terms(config) * seq * hidden.max(rows));
        lhs[0] = lhs[0].max(seq * hidden);
    }
    if attends {
        let scores = super::mixing::attention::MAX_SCORES.max(seq).min(rows * seq);
        sizes[2] = sizes[2].max(scores);
        lhs[1] = lhs[1].max(scores);
    }
    if !config.moe_layers.is_empty() {
        let rows = MAX_ROWS.min(batch * seq);
        sizes[0] = sizes[0].max(rows * hidden);
        sizes[1] = sizes[1].max(rows * slice);
        lhs = [lhs[0].max(rows * hidden), lhs[1].max(rows * slice)];
    }
    let element = match config.dtype {
        Dtype::Float32 | Dtype::Float16 => 0,
        Dtype::Bfloat16 => size_of::<u16>(),
        Dtype::Int8 => size_of::<u8>(),
    };
    sizes.iter().sum::<usize>() * FLOAT + lhs.iter().sum::<usize>() * element
}

/// Bytes of the matrices that are no weights: of transforms, which all blocks share, and of each block's learned
/// vectors.
fn transform_bytes(config: &SparseMixerConfig) -> usize {
    if config.mixing_mechanism == MixingMechanism::Linear || config.use_fft {
        return 0;
    }
    let (seq, hidden) = (config.max_sequence_length, config.hidden_size);
    let blocks = (0..config.num_layers).filter(|&layer| !config.is_attention(layer)).count();
    let blocks = if is_structured(config) { blocks } else { blocks.min(1) };
    let (dtype, terms) = (config.dtype.of_activations(), mixing_terms(config));
    let element = if dtype == Dtype::Bfloat16 { size_of::<u16>() } else { FLOAT };
    blocks * (terms * packed_len(hidden, hidden, dtype) + seq * lhs_stride(terms * seq, dtype)) * element
}

fn is_fft(config: &SparseMixerConfig) -> bool {
    config.mixing_mechanism != MixingMechanism::Linear && config.use_fft
}

fn is_structured(config: &SparseMixerConfig) -> bool {
    matches!(config.mixing_mechanism, MixingMechanism::Circulant | MixingMechanism::Toeplitz)
}

/// Products along the hidden dimension: real and imaginary parts of a transform, or one of a learned matrix.
fn mixing_terms(config: &SparseMixerConfig) -> usize {
    if matches!(config.mixing_mechanism, MixingMechanism::Fourier | MixingMechanism::Hartley) { 2 } else { 1 }
}
