//! Parts that the network's files and the heads share.
//!
//! A layer declares its weights when it is made (see [`crate::params`]) and finds them by key in the [`Weights`] of a pass.
//! `forward` computes a block of rows. `backward` goes through the steps of `forward` in reverse, adds to the
//! [`Gradients`] and gives the gradient of the input.
//!
//! [`Weights`]: crate::params::Weights
//! [`Gradients`]: crate::params::Gradients

mod activation;
mod dense;
mod dropout;
mod embedding_table;
mod layer_norm;
mod pooling;

pub use activation::{Activation, CustomActivation};
pub use dense::{Dense, FEW_ROWS_TASKS, Inputs, Product, join_columns, kernel_gradient, row_panels};
pub use dropout::Dropout;
pub use embedding_table::EmbeddingTable;
pub use layer_norm::{EPSILON, LayerNorm};
pub use pooling::{Pooling, normalize};
