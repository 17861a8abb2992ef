//! What is put on top of the encoder: heads with their gradients, and losses.
//!
//! Heads always compute in the activations' type; their weights are small beside the encoder's.

mod cross_entropy;
mod head;
mod masked_lm;
mod projection;
mod word_blocks;

pub use cross_entropy::{LossSums, cross_entropy};
pub use head::{Head, HeadConfig, HeadKind};
pub use masked_lm::{MaskedLm, MaskedLmConfig, MaskedLmGradients, Predictions};
pub use projection::{Projection, ProjectionConfig};

#[cfg(test)]
mod tests;
