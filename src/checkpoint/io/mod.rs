//! Files: read whole or mapped, written in one step, within limits.

pub(super) mod atomic_file;
pub(super) mod checksum;
pub(super) mod file_bytes;
pub mod limits;
