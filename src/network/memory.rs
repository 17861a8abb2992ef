//! How much memory a call needs, without making it.

use crate::error::{Error, Result};
use crate::kernels::Real;
use crate::runtime::dry_run;

use super::encoder::SparseMixer;
use super::inputs::{Inputs, Words};
use super::mixing::OwnedMatrices;
use super::outputs::RequestedOutputs;

/// 2^46: half of the addresses that a process has where pages have four levels.
const MOST_BYTES: usize = 1 << 46;

impl<R: Real> SparseMixer<R> {
    /// Bytes of weights, copied inputs, scratch memory and outputs of a forward pass at inference for `batch` examples of
    /// `seq` positions, which is a length that calls may have, by `threads` threads: what a dry run of that pass takes.
    ///
    /// # Errors
    /// Those of the call, such as a batch that the routing groups do not divide; [`Error::Value`] for a batch beyond any
    /// machine.
    pub fn memory_estimate(
        &self,
        batch: usize,
        seq: usize,
        requested: RequestedOutputs,
        threads: usize,
    ) -> Result<usize> {
        let bytes = batch.checked_mul(seq).and_then(|rows| rows.checked_mul(self.most_bytes_per_row()));
        if bytes.is_none_or(|bytes| bytes > MOST_BYTES) {
            return Err(Error::value("batch", format!("got {batch}: more than any machine has memory for")));
        }
        let call = dry_run::<R>(threads, |context| {
            let (Some(ids), Some(type_ids), Some(mask)) =
                (context.stand_in(batch * seq), context.stand_in(batch * seq), context.stand_in(batch * seq))
            else {
                return Err(Error::Internal("a dry run without arrays".into()));
            };
            let inputs = Inputs {
                batch,
                seq,
                words: Words::Ids(&ids),
                word_len: seq,
                dense: &[],
                type_ids: &type_ids,
                mask: Some(&mask),
            };
            let outputs = self.forward_checked(context, &inputs, None, requested)?;
            // The last block's output has two names, and Python gets an array for each.
            let both = requested.sequence_output && requested.encoder_outputs;
            let copy = both.then(|| context.stand_in::<R>(batch * outputs.rows * self.config.hidden_size));
            drop((outputs, copy));
            Ok(())
        })?;
        let mut matrices: Vec<_> = self.blocks.iter().filter_map(|block| block.mix.own_matrices()).collect();
        // Blocks that share theirs do so with the one before.
        matrices.dedup_by(|a, b| std::ptr::eq(*a, *b));
        let matrices = matrices.into_iter().map(OwnedMatrices::bytes).sum::<usize>();
        Ok(call.saturating_add(self.weights.bytes() + matrices))
    }

    /// At least as many bytes as any one array of a call has per position.
    fn most_bytes_per_row(&self) -> usize {
        let config = &self.config;
        let inner = config.inner_dim.max(config.expert_inner_dim());
        let widest = [2 * config.hidden_size, config.embedding_width(), inner, config.num_experts];
        let slots = if config.moe_layers.is_empty() { 1.0 } else { config.eval_capacity_factor.max(1.0) };
        let width = widest.into_iter().max().unwrap_or(1) as f64 * slots;
        (width * size_of::<R>() as f64) as usize
    }
}
