//! The encoder: embed, blocks, pool.

mod attention_mask;
mod block;
mod embed;
mod encoder;
#[cfg(test)]
mod faults;
mod feed_forward;
mod forward;
#[cfg(test)]
mod frozen;
mod inputs;
mod memory;
mod mixing;
mod moe;
mod norm;
mod outputs;
mod pass;
mod pooler;
mod position_bias;
mod single_block;
mod tape;
#[cfg(test)]
mod testing;
mod work;

pub use encoder::{SparseMixer, specs};
pub use inputs::{Inputs, OwnedInputs, OwnedWords, Words};
pub use moe::grouping::Grouping;
pub use moe::mixture::LayerMetrics;
pub use outputs::{Outputs, RequestedOutputs, RoutingRecord};
pub use position_bias::distance_buckets;
pub use tape::{Cotangents, Recording, RequestedGradients, Tape, TapeUse};
pub use work::is_small;
