//! How much memory a call needs, without making it.

use crate::config::SparseMixerConfig;

/// Bytes of scratch memory and outputs of a forward pass with all outputs, in 32 bits, for `batch` examples.
///
/// Counts the arrays that grow with the batch: the stream into and out of a block, what the block prepares of it, and
/// every block's output. What a thread needs for a block of rows is small beside them.
pub fn forward_bytes(config: &SparseMixerConfig, batch: usize) -> usize {
    let rows = batch * config.max_sequence_length;
    let stream = rows * config.hidden_size;
    let outputs = config.num_layers * stream + batch * config.hidden_size;
    let embedded = rows * config.embedding_width;
    let attention = if config.attention_layers.is_empty() { 0 } else { 2 * stream };
    let mixing = if config.attention_layers.len() < config.num_layers { stream } else { 0 };
    let experts = if config.moe_layers.is_empty() {
        0
    } else {
        let slots =
            (config.train_capacity_factor.max(config.eval_capacity_factor) * rows as f64).ceil() as usize;
        // Tokens after mixing, their experts' outputs, router rows.
        stream + slots * config.hidden_size + rows * (2 * config.num_experts + 1)
    };
    let floats = 2 * stream + outputs + embedded + attention.max(mixing) + experts;
    floats * size_of::<f32>()
}
