//! A warm call allocates what it returns and a few lists: all large memory is kept from call to call.

use sparse_mixer::config::{MixingMechanism, SparseMixerConfig};
use sparse_mixer::kernels::{Dtype, Isa};
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

/// Bytes and allocations of a warm call that returns one small output.
fn warm_call(config: SparseMixerConfig) -> (u64, u64) {
    let config = config.validated().unwrap();
    let seq = config.max_sequence_length;
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
    let network = SparseMixer::<f32>::load(config, None, &mut source).unwrap();
    let ids: Vec<i64> = (0..BATCH * seq).map(|i| (i % 100) as i64).collect();
    let types = vec![0i64; BATCH * seq];
    let mask = vec![1f32; BATCH * seq];
    let inputs = Inputs {
        batch: BATCH,
        seq,
        words: Words::Ids(&ids),
        word_len: seq,
        dense: &[],
        type_ids: &types,
        mask: Some(&mask),
    };
    let requested = RequestedOutputs { pooled_output: true, ..RequestedOutputs::default() };
    let scratch = ScratchPool::new();
    // On one thread, whose allocations are counted.
    let call = || {
        run(Isa::detect().unwrap(), 1, &scratch, &never, |context| {
            network.forward(context, &inputs, None, requested)
        })
        .unwrap()
    };
    call();
    call();
    let counted = allocation_counter::measure(|| drop(call()));
    (counted.bytes_total, counted.count_total)
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
