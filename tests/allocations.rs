//! A warm call allocates what it returns and a few lists: all large memory is kept from call to call.

use std::sync::Arc;

use sparse_mixer::config::{ActivationConfig, MixingMechanism, RouterKind, SparseMixerConfig};
use sparse_mixer::error::Result;
use sparse_mixer::kernels::{Dtype, Isa};
use sparse_mixer::layers::CustomActivation;
use sparse_mixer::network::{Inputs, RequestedOutputs, SparseMixer, Words};
use sparse_mixer::params::Spec;
use sparse_mixer::runtime::{ScratchPool, never, run};

const BATCH: usize = 3;

fn config() -> SparseMixerConfig {
    SparseMixerConfig {
        vocab_size: 100,
        hidden_size: 128,
        num_layers: 5,
        moe_layers: vec![1, 2],
        attention_layers: vec![3, 4],
        num_experts: 4,
        num_attention_heads: 4,
        max_sequence_length: 128,
        inner_dim: 512,
        ..SparseMixerConfig::default()
    }
}

/// `tanh`, with copies that the library does not see.
#[derive(Debug)]
struct CopyingTanh;

impl CustomActivation<f32> for CopyingTanh {
    fn forward(&self, x: &mut [f32], _: usize) -> Result<()> {
        let copy = x.to_vec();
        let result: Vec<f32> = copy.iter().map(|x| x.tanh()).collect();
        x.copy_from_slice(&result);
        Ok(())
    }

    fn copies(&self) -> usize {
        2
    }

    fn backward(&self, _: &[f32], _: &mut [f32], _: usize) -> Result<()> {
        Ok(())
    }
}

fn network(config: SparseMixerConfig) -> SparseMixer<f32> {
    let mut number = 0.0f32;
    let mut source = |_, spec: &Spec| {
        let values: Vec<f32> = (0..spec.len())
            .map(|_| {
                number += 1.0;
                0.05 * number.sin()
            })
            .collect();
        Ok(values.into())
    };
    SparseMixer::load(config.validated().unwrap(), Some(Arc::new(CopyingTanh)), &mut source).unwrap()
}

/// Calls `network` on one thread, whose allocations are counted, with `batch` examples.
fn call(network: &SparseMixer<f32>, scratch: &ScratchPool<f32>, batch: usize, requested: RequestedOutputs) {
    let seq = network.config().max_sequence_length;
    let ids: Vec<i64> = (0..batch * seq).map(|i| (i * 7 % 100) as i64).collect();
    let types = vec![0i64; batch * seq];
    let mask = vec![1f32; batch * seq];
    let inputs = Inputs {
        batch,
        seq,
        words: Words::Ids(&ids),
        word_len: seq,
        dense: &[],
        type_ids: &types,
        mask: Some(&mask),
    };
    run(Isa::detect().unwrap(), 1, scratch, &never, |context| {
        network.forward(context, &inputs, None, requested).map(drop)
    })
    .unwrap();
}

/// Bytes and allocations of a warm call that returns one small output.
fn warm_call(config: SparseMixerConfig) -> (u64, u64) {
    let network = network(config);
    let requested = RequestedOutputs { pooled_output: true, ..RequestedOutputs::default() };
    let scratch = ScratchPool::new();
    let call = || call(&network, &scratch, BATCH, requested);
    call();
    call();
    let counted = allocation_counter::measure(call);
    // But for the inputs.
    let inputs = BATCH * network.config().max_sequence_length * (2 * size_of::<i64>() + size_of::<f32>());
    (counted.bytes_total - inputs as u64, counted.count_total - 3)
}

#[test]
fn warm_calls_allocate_little() {
    let cases = [
        ("linear", config()),
        ("bfloat16", SparseMixerConfig { dtype: Dtype::Bfloat16, ..config() }),
        ("int8", SparseMixerConfig { dtype: Dtype::Int8, ..config() }),
        ("Fourier by matrices", SparseMixerConfig { mixing_mechanism: MixingMechanism::Fourier, ..config() }),
        (
            "Hartley by fast transforms",
            SparseMixerConfig { mixing_mechanism: MixingMechanism::Hartley, use_fft: true, ..config() },
        ),
        (
            "circulant by fast transforms",
            SparseMixerConfig { mixing_mechanism: MixingMechanism::Circulant, use_fft: true, ..config() },
        ),
    ];
    for (name, config) in cases {
        // One activation of the stream is 200 kB; routing lists take 8 bytes or so a token, expert and layer.
        let (bytes, count) = warm_call(config);
        println!("{name}: {bytes} bytes in {count} allocations");
        assert!(bytes < 100_000 && count < 700, "{name}: {bytes} bytes in {count} allocations");
    }
}

#[test]
fn the_memory_estimate_is_what_a_call_allocates() {
    use MixingMechanism::{Circulant, Fourier, Hartley, Toeplitz};
    let named = |name: &str| ActivationConfig {
        name: name.into(),
        max_value: None,
        negative_slope: None,
        threshold: None,
        alpha: None,
    };
    let config = || SparseMixerConfig { max_sequence_length: 64, hidden_size: 64, inner_dim: 96, ..config() };
    let mixing = |mixing_mechanism, use_fft| SparseMixerConfig { mixing_mechanism, use_fft, ..config() };
    let all = RequestedOutputs {
        pooled_output: true,
        encoder_outputs: true,
        routing: true,
        ..RequestedOutputs::default()
    };
    let pooled = RequestedOutputs { pooled_output: true, ..RequestedOutputs::default() };
    let cases = [
        ("all outputs", config(), all),
        ("pooled", config(), pooled),
        ("pre-norm", SparseMixerConfig { norm_first: true, ..config() }, pooled),
        ("bfloat16", SparseMixerConfig { dtype: Dtype::Bfloat16, ..config() }, all),
        ("int8", SparseMixerConfig { dtype: Dtype::Int8, ..config() }, pooled),
        ("Fourier", mixing(Fourier, false), all),
        ("Hartley, fast", mixing(Hartley, true), pooled),
        ("circulant", mixing(Circulant, false), pooled),
        ("Toeplitz, fast", mixing(Toeplitz, true), all),
        (
            "custom, wide experts",
            SparseMixerConfig {
                inner_activation: named("custom"),
                inner_dim: 16,
                expert_inner_dim: Some(512),
                ..config()
            },
            all,
        ),
        (
            "custom, narrow experts",
            SparseMixerConfig {
                inner_activation: named("custom"),
                inner_dim: 512,
                expert_inner_dim: Some(16),
                ..config()
            },
            pooled,
        ),
        (
            // No wider: a thread's rows would fill huge pages, whose margins the estimate counts and nothing here does.
            "softmax",
            SparseMixerConfig { inner_activation: named("softmax"), inner_dim: 3072, ..config() },
            all,
        ),
        ("tokens choose", SparseMixerConfig { router: RouterKind::TokensChoose, ..config() }, pooled),
        (
            "narrow embeddings",
            SparseMixerConfig { embedding_width: Some(16), attention_layers: vec![], ..config() },
            all,
        ),
    ];
    for (name, config, requested) in cases {
        let network = network(config);
        let seq = network.config().max_sequence_length;
        let beside_calls = network.memory_estimate(0, seq, requested, 1).unwrap();
        for batch in [1, 40] {
            let peak = allocation_counter::measure(|| call(&network, &ScratchPool::new(), batch, requested))
                .bytes_max as usize;
            let estimate = network.memory_estimate(batch, seq, requested, 1).unwrap() - beside_calls;
            // Beside buffers and results there are lists of tasks and of experts, for which the estimate has a constant.
            let lists = 8 << 10;
            // An array that the caller gets is allocated at once, but counted when a block has written to it: while a custom
            // activation has its copies, no memory is behind the array yet.
            let unwritten = if network.config().inner_activation.name == "custom" {
                batch * seq * network.config().hidden_size * size_of::<f32>()
            } else {
                0
            };
            assert!(
                peak <= estimate + lists + unwritten && estimate <= peak + peak / 20,
                "{name}, batch {batch}: {estimate} estimated, {peak} allocated"
            );
        }
    }
}
