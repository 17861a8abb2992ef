//! Weight files: bytes in, named tensors out, and the way back.
//!
//! Every reader turns one format into the same list of entries ([`TensorSource`]): names, element types and shapes as
//! the file has them, read one tensor at a time. [`names`] knows how each framework spells the weights of a Sparse
//! Mixer encoder, [`LoadPlan`] matches a list of wanted weights with what a file offers and reports the difference.
//! Nothing in here knows the network or Python, and no file content is ever executed.
//!
//! Files come from strangers: every size is checked before it is used (see [`limits`]), a damaged file is an error that
//! names the file, and reading one takes at most 64 MiB more memory than the file is long.
//!
//! | format | reader | writer |
//! | --- | --- | --- |
//! | safetensors, our own format and models in several files included | [`Safetensors`] | [`write_safetensors`] |
//! | Flax msgpack, sharded or not | [`Flax`] | |
//! | TensorFlow tensor bundle (checkpoint, SavedModel) | [`TensorBundle`] | |
//! | NumPy `.npz` | [`Npz`] | [`write_npz`] |

mod atomic_file;
mod checksum;
mod entries;
mod file_bytes;
mod flax;
mod flax_document;
mod flax_step;
pub mod limits;
mod msgpack;
pub mod names;
mod npy;
mod npz;
mod open;
mod plan;
mod protobuf;
mod safetensors;
mod sharded_safetensors;
mod sorted_table;
mod tensor;
mod tensor_bundle;
mod transform;
mod write;
mod write_npz;
mod write_safetensors;
mod zip;

pub use atomic_file::AtomicFile;
pub use entries::{Entry, FormatError, Listing, TensorSource};
pub use file_bytes::FileBytes;
pub use flax::Flax;
pub use npz::Npz;
pub use open::{Format, open, open_bytes};
pub use plan::{LoadPlan, Mismatch, PlannedRead, Wanted};
pub use safetensors::{FORMAT_VERSION, Safetensors};
pub use tensor::{Dtype, Tensor};
pub use tensor_bundle::TensorBundle;
pub use transform::Transform;
pub use write::{ChunkSink, Content, TensorToWrite, send_f32};
pub use write_npz::write_npz;
pub use write_safetensors::write_safetensors;
