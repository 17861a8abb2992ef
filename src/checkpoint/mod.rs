//! Weight files: bytes in, named tensors out, and the way back.
//!
//! Every reader turns one format into the same list of entries ([`TensorSource`]): names, element types and shapes as
//! the file has them, read one tensor at a time. [`matching::names`] knows how each framework spells the weights of a Sparse
//! Mixer encoder, [`LoadPlan`] matches a list of target weights with what a file offers and reports the difference.
//! Nothing in here knows the network or Python, and no file content is ever executed.
//!
//! Files come from strangers: every size is checked before it is used (see [`io::limits`]), a damaged file is an error that
//! names the file, and reading one takes at most 64 MiB more memory than the file is long.
//!
//! | format | reader | writer |
//! | --- | --- | --- |
//! | safetensors, our own format, packed weights and models in several files included | [`Safetensors`] | [`write_safetensors`] |
//! | Flax msgpack, sharded or not | [`Flax`] | |
//! | TensorFlow tensor bundle (checkpoint, SavedModel) | [`TensorBundle`] | |
//! | NumPy `.npz` | [`Npz`] | [`write_npz`] |

mod error;
mod formats;
pub mod io;
pub mod matching;
mod open;
mod permute;
mod source;
mod tensor;
mod tensor_to_write;

pub use error::FormatError;
pub use formats::flax::reader::Flax;
pub use formats::npz::reader::Npz;
pub use formats::npz::writer::write_npz;
pub use formats::safetensors::header::FORMAT_VERSION;
pub use formats::safetensors::packed::packed_tensor;
pub use formats::safetensors::reader::Safetensors;
pub use formats::safetensors::writer::write_safetensors;
pub use formats::tensor_bundle::reader::TensorBundle;
pub use io::atomic_file::AtomicFile;
pub use io::file_bytes::FileBytes;
pub use matching::plan::{LoadPlan, Mismatch, PlannedRead, TargetWeight};
pub use matching::transform::Transform;
pub use open::{open, open_bytes};
pub use source::{Listing, TensorSource};
pub use tensor::{Dtype, Entry, Format, Tensor};
pub use tensor_to_write::{ChunkSink, Content, TensorToWrite, send_f32};
