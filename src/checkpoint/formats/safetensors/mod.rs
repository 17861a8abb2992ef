//! safetensors: our own format, other programs' files, and models split over several files.

pub(in crate::checkpoint) mod header;
pub(in crate::checkpoint) mod packed;
pub(in crate::checkpoint) mod reader;
pub(in crate::checkpoint) mod sharded;
pub(in crate::checkpoint) mod writer;
