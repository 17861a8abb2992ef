//! Optimisers: parameters are updated in place, in whatever layout the network stores them.
//!
//! An [`Optimizer`] knows the parameters by their [`ParameterSpec`]s and owns their moments. A step takes one
//! [`Update`] per parameter, in the same order: the storage to change and the gradient. Gradients are row-major in
//! the parameter's shape; storage may be packed ([`Layout`]).
//!
//! | file | rule |
//! |---|---|
//! | `adamw` | Adam with decoupled weight decay, as Keras and as optax place epsilon |
//! | `lamb` | Adam with a trust ratio per tensor |
//! | `sgd` | gradient descent, momentum, Nesterov |
//! | `adafactor` | factored second moments |
//! | `checks` | settings in range |
//! | `clip` | norms and the global clipping factor |
//! | `schedule` | learning rates as functions of the step |
//! | `blocks` | how storage and gradient are split into pieces that threads take, and their weights in low precision |
//!
//! Work is shared by the threads of [`crate::runtime::parallel::with_threads`]. Pieces have a fixed size and
//! sums over pieces are added in a fixed order, so the bits do not depend on the number of threads.

mod adafactor;
mod adamw;
mod blocks;
mod checks;
mod clip;
mod lamb;
mod layout;
mod optimizer;
mod schedule;
mod sgd;

pub use adafactor::Adafactor;
pub use adamw::{AdamW, EpsilonRule};
pub use clip::{clip_factor, global_norm};
pub use lamb::Lamb;
pub use layout::{Gradient, Layout, ParameterSpec, Update};
pub use optimizer::{Moment, NamedArray, Optimizer, Rule, Step};
pub use schedule::Schedule;
pub use sgd::Sgd;

#[cfg(test)]
mod tests;
