//! Flax's msgpack checkpoints.

mod document;
mod msgpack;
pub(in crate::checkpoint) mod reader;
pub(in crate::checkpoint) mod step_files;
