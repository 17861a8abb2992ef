//! TensorFlow's tensor bundle: checkpoints and SavedModels.

mod object_graph;
mod protobuf;
pub(in crate::checkpoint) mod reader;
pub(in crate::checkpoint) mod sorted_table;
