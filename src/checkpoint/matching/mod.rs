//! Which of a file's tensors is which weight.

pub mod names;
pub(super) mod plan;
pub(super) mod transform;
