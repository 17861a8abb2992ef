//! NumPy's `.npz`: a ZIP archive of `.npy` arrays.

mod npy;
pub(in crate::checkpoint) mod reader;
pub(in crate::checkpoint) mod writer;
pub(in crate::checkpoint) mod zip;
