//! A bug anywhere in a pass is one error, and what is used again afterwards is as it was.

use super::*;
use crate::config::SparseMixerConfig;
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::params::{Gradients, initial_values};
use crate::runtime::{ScratchPool, never, run};

/// One of every kind of layer, small.
fn encoder(mechanism: &str, use_fft: bool, norm_first: bool) -> SparseMixer<f32> {
    let text = format!(
        r#"{{"vocab_size": 20, "hidden_size": 8, "num_layers": 4, "moe_layers": [1], "attention_layers": [2],
        "num_experts": 2, "train_capacity_factor": 1.0, "eval_capacity_factor": 1.0, "examples_per_group": 1.0,
        "max_group_size": null, "mixing_mechanism": "{mechanism}", "use_fft": {use_fft}, "num_attention_heads": 2,
        "max_sequence_length": 6, "type_vocab_size": 2, "inner_dim": 16, "inner_activation": {{"name": "gelu"}},
        "output_dropout": 0.1, "attention_dropout": 0.1, "initializer": {{"name": "normal", "mean": 0.0, "stddev": 0.1}},
        "output_range": null, "embedding_width": 4, "norm_first": {norm_first}, "router_z_loss_weight": 0.1,
        "jitter_noise": 0.1, "semantics": "keras", "dtype": "float32", "seed": 3}}"#
    );
    let config = SparseMixerConfig::from_json(&text).unwrap();
    SparseMixer::load(config.clone(), None, &mut |_, spec| {
        initial_values(&config, spec, &never).map(Into::into)
    })
    .unwrap()
}

fn inputs() -> OwnedInputs<f32> {
    OwnedInputs {
        batch: 2,
        seq: 6,
        words: OwnedWords::Ids((0..12).collect()),
        word_len: 6,
        dense: Vec::new(),
        type_ids: vec![1; 12],
        mask: Some(vec![1.0; 12]),
    }
}

/// Forward, then forward and backward for training: all results one after the other.
fn all_passes(network: &SparseMixer<f32>, scratch: &ScratchPool<f32>, threads: usize) -> Result<Vec<f32>> {
    run(Isa::PORTABLE, threads, scratch, &never, |context| {
        let requested =
            RequestedOutputs { sequence_output: true, pooled_output: true, ..RequestedOutputs::default() };
        let outputs = network.forward(context, &inputs().view(), None, requested)?;
        let mut results = outputs.sequence_output.unwrap_or_default();
        results.extend(outputs.pooled_output.unwrap_or_default());
        let (_, tape) =
            network.forward_with_tape(context, inputs(), Some(5), requested, Recording::default())?;
        let pooled = vec![1.0; 16];
        let cotangents = Cotangents { pooled_output: Some(&pooled), ..Cotangents::default() };
        let mut gradients = Gradients::zeros(network.weights().specs());
        let rows = network.backward(context, &tape, &cotangents, 1.0, &mut gradients)?;
        results.extend(rows.unwrap_or_default());
        results.extend(gradients.memory());
        Ok(results)
    })
}

#[test]
#[cfg_attr(miri, ignore = "too much for Miri")]
fn a_panic_in_any_task_is_an_error_and_leaves_no_trace() {
    let kinds = [("linear", false, false), ("fourier", true, true), ("hartley", false, true)];
    for (mechanism, use_fft, norm_first) in kinds {
        let network = encoder(mechanism, use_fft, norm_first);
        let scratch = ScratchPool::new();
        let expected = all_passes(&network, &scratch, 1).unwrap();
        for threads in [1, 2] {
            let mut tasks = 0;
            loop {
                scratch.fault.arm(Some(tasks));
                let result = all_passes(&network, &scratch, threads);
                if scratch.fault.is_armed() {
                    assert_eq!(result.unwrap(), expected, "nothing is left to go wrong");
                    break;
                }
                match result {
                    Err(Error::Internal(message)) => assert_eq!(message, "injected"),
                    other => panic!("task {tasks}: {other:?}"),
                }
                scratch.fault.arm(None);
                assert_eq!(all_passes(&network, &scratch, threads).unwrap(), expected, "after task {tasks}");
                tasks += 1;
            }
            assert!(tasks > 50, "{tasks}");
        }
    }
}
