//! Parts that the network's files share.
//!
//! A layer lists its weights (`specs`), is built from them (`load`), and shows them (`params`), always in Keras order.
//! `forward` computes a block of rows; what `backward` needs is put into an explicit cache. `backward` undoes the steps
//! of `forward` in reverse, adds to gradients and returns the input's.

mod activation;
mod dropout;
mod gradients;
mod layer_norm;
mod table;

pub use activation::{Activation, CustomActivation};
pub use dropout::Dropout;
pub use gradients::{bias_gradient, kernel_gradient};
pub use layer_norm::LayerNorm;
pub use table::Table;
