//! What unit tests of the network share: a small encoder with one layer of each kind, and inputs for it.

use crate::config::SparseMixerConfig;
use crate::error::Result;
use crate::kernels::{Isa, Real};
use crate::params::{Role, Spec};
use crate::runtime::{Context, ScratchPool, never, run};

use super::encoder::SparseMixer;
use super::inputs::{OwnedInputs, OwnedWords};

pub const BATCH: usize = 2;
pub const SEQ: usize = 6;

/// Numbers in `[-1, 1)` that depend on `seed`.
pub fn values<R: Real>(seed: u64, len: usize) -> Vec<R> {
    (0..len as u64)
        .map(|i| {
            R::from_f64(((i + 1 + 1000 * seed).wrapping_mul(2_654_435_761) % 65536) as f64 / 32768.0 - 1.0)
        })
        .collect()
}

/// Three blocks: linear mixing with a dense layer, linear mixing with experts, attention with a dense layer.
pub fn config() -> SparseMixerConfig {
    SparseMixerConfig {
        vocab_size: 11,
        hidden_size: 8,
        num_layers: 3,
        moe_layers: vec![1],
        attention_layers: vec![2],
        num_experts: 2,
        num_attention_heads: 2,
        max_sequence_length: SEQ,
        type_vocab_size: 2,
        inner_dim: 12,
        output_dropout: 0.0,
        attention_dropout: 0.0,
        ..SparseMixerConfig::default()
    }
}

/// An encoder whose weights `make` gives.
pub fn encoder_of<R: Real>(
    config: SparseMixerConfig,
    make: impl Fn(usize, &Spec) -> Vec<R>,
) -> SparseMixer<R> {
    let config = config.validated().expect("a valid configuration");
    SparseMixer::load(config, None, &mut |index, spec| Ok(make(index, spec).into())).expect("fitting weights")
}

/// An encoder with numbers of both signs in kernels and biases.
pub fn encoder<R: Real>(config: SparseMixerConfig) -> SparseMixer<R> {
    encoder_of(config, |index, spec| {
        let centre = if spec.role == Role::Scale { R::ONE } else { R::ZERO };
        values(index as u64, spec.len()).iter().map(|&x: &R| centre + R::from_f64(0.5) * x).collect()
    })
}

/// Word ids, types and a mask with one position of padding.
pub fn inputs<R: Real>() -> OwnedInputs<R> {
    OwnedInputs {
        batch: BATCH,
        seq: SEQ,
        words: OwnedWords::Ids((0..(BATCH * SEQ) as i64).map(|i| i * i % 11).collect()),
        word_len: SEQ,
        dense: Vec::new(),
        type_ids: (0..(BATCH * SEQ) as i64).map(|i| i % 2).collect(),
        mask: Some((0..BATCH * SEQ).map(|i| if i == SEQ - 1 { R::ZERO } else { R::ONE }).collect()),
    }
}

/// Does `work` on the calling thread.
pub fn with_context<R: Real, T: Send>(work: impl FnOnce(&Context<'_, R>) -> Result<T> + Send) -> T {
    run(Isa::PORTABLE, 1, &ScratchPool::new(), &never, work).expect("no error")
}
