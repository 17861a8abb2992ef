//! What a call gives, and which of it was asked for.

use std::fmt::Display;

use crate::error::{Error, Result};
use crate::kernels::Real;
use crate::runtime::Context;

use super::block::BlockCache;
use super::moe::mixture::LayerMetrics;

/// Which outputs to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestedOutputs {
    /// Output of the last block.
    pub sequence_output: bool,
    /// Output of the pooler.
    pub pooled_output: bool,
    /// Outputs of all blocks.
    pub encoder_outputs: bool,
    /// Routing decisions of all mixtures.
    pub routing: bool,
    /// Look for NaN and infinity after the embeddings, every block and the pooler.
    pub check_finite: bool,
}

/// What a forward pass gives. `rows` is `S`, or at most `output_range` for the last block.
#[derive(Debug)]
pub struct Outputs<R> {
    /// `[B, rows, H]`: the last block's output, if it or `encoder_outputs` is requested.
    pub sequence_output: Option<Vec<R>>,
    /// `[B, H]`, if requested.
    pub pooled_output: Option<Vec<R>>,
    /// `[B, S, H]` of every block but the last, if requested.
    pub encoder_outputs: Vec<Vec<R>>,
    /// `S`
    pub seq: usize,
    /// Rows per example in `sequence_output`.
    pub rows: usize,
    /// One per mixture.
    pub metrics: Vec<LayerMetrics<R>>,
    /// One per mixture, if requested.
    pub routing: Vec<RoutingRecord<R>>,
}

/// Routing decisions of one mixture.
#[derive(Clone, Debug)]
pub struct RoutingRecord<R> {
    /// `G`, `T`, `C`
    pub groups: usize,
    /// Tokens per group.
    pub tokens: usize,
    /// Dispatch per expert and group: the expert capacity, but no more than tokens.
    pub slots: usize,
    /// `[G, E, slots]`: token indices within the group, ascending where experts choose, in the order of service where
    /// tokens do; `u32::MAX` in empty slots.
    pub indices: Vec<u32>,
    /// `[G, T, E]`
    pub probabilities: Vec<R>,
}

impl<R: Real> Outputs<R> {
    pub(super) fn new(seq: usize, rows: usize) -> Self {
        Outputs {
            seq,
            sequence_output: None,
            pooled_output: None,
            encoder_outputs: Vec::new(),
            rows,
            metrics: Vec::new(),
            routing: Vec::new(),
        }
    }

    /// Takes metrics and routing from a block's record.
    pub(super) fn add(
        &mut self,
        context: &Context<'_, R>,
        record: &BlockCache<R>,
        requested: RequestedOutputs,
    ) {
        let Some(mixture) = &record.mixture else { return };
        self.metrics.push(mixture.metrics.clone());
        if requested.routing {
            let routing = &mixture.routing;
            self.routing.push(RoutingRecord {
                groups: routing.grouping.groups,
                tokens: routing.grouping.tokens,
                slots: routing.grouping.slots(),
                indices: context.copied(&routing.indices),
                probabilities: context.copied(&routing.probabilities),
            });
        }
    }
}

/// Refuses an output that is not finite, if that is requested; `first` is its layer as a subject with its verb.
pub(super) fn check_finite<R: Real>(
    requested: RequestedOutputs,
    first: impl Display,
    out: &[R],
) -> Result<()> {
    if requested.check_finite && !out.iter().all(|v| v.is_finite()) {
        let message = format!("{first} the first whose output has a NaN or an infinity");
        return Err(Error::value("check_finite", message));
    }
    Ok(())
}
