//! Which of a file's tensors is which weight.

pub mod names;
mod numbered;
pub(super) mod plan;
mod sublayers;
pub(super) mod transform;
