//! Sparse Mixer encoders (Lee-Thorp & Ainslie 2022, "Sparse Mixers: Combining MoE and Mixing to build a more
//! efficient BERT") on CPUs: the computation of TensorFlow Model Garden's `networks.SparseMixer`, in Rust.
//!
//! Letters used for sizes throughout: `B` batch, `S` sequence length, `H` hidden size, `W` embedding width,
//! `F` inner size, `N` attention heads, `D` head size, `G` routing groups, `T` tokens per group, `E` experts,
//! `C` expert capacity, `V` vocabulary. Activations are `[B*S, H]`, row-major.

// Sizes of weights, files and batches are `usize`, and their bounds (2^40 elements and more) are those of 64 bits.
#[cfg(not(target_pointer_width = "64"))]
compile_error!("sparse_mixer needs a 64-bit target: models and files may be larger than 4 GiB");

pub mod checkpoint;
pub mod config;
pub mod error;
pub mod heads;
pub mod kernels;
pub mod layers;
pub mod network;
pub mod optim;
pub mod params;
#[cfg(feature = "python")]
mod python;
pub mod random;
pub mod runtime;
pub mod sys;

pub use error::{Error, Result};
