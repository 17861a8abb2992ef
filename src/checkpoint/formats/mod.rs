//! One folder per file format: bytes in, named tensors out.

pub(super) mod detect;
pub(super) mod flax;
pub(super) mod npz;
pub(super) mod safetensors;
pub(super) mod tensor_bundle;
