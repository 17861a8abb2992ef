//! Backward for some weights only: the same bits, and no work for the others.

use super::testing::{BATCH, SEQ, config, encoder, inputs, values, with_context};
use super::*;
use crate::config::{MixingMechanism, RouterKind, SparseMixerConfig};
use crate::kernels::testing::MULTIPLY_ADDS;
use crate::params::Gradients;

/// Every kind of mixing, feed-forward layer, norm order and embedding.
fn configs() -> Vec<SparseMixerConfig> {
    let with = |change: &dyn Fn(&mut SparseMixerConfig)| {
        let mut config = SparseMixerConfig { output_dropout: 0.1, ..config() };
        change(&mut config);
        config
    };
    vec![
        with(&|_| {}),
        with(&|c| (c.norm_first, c.embedding_width) = (true, Some(5))),
        with(&|c| (c.mixing_mechanism, c.moe_residual) = (MixingMechanism::Circulant, Some(true))),
        with(&|c| (c.mixing_mechanism, c.use_fft, c.norm_first) = (MixingMechanism::Toeplitz, true, true)),
        with(&|c| (c.mixing_mechanism, c.project_embeddings) = (MixingMechanism::Fourier, Some(true))),
        with(&|c| (c.mixing_mechanism, c.use_fft) = (MixingMechanism::Hartley, true)),
        with(&|c| (c.router, c.auxiliary_loss_factor) = (RouterKind::TokensChoose, 0.5)),
    ]
}

/// Gradients, and word rows if they are requested; and multiply-adds of the forward and of the backward pass.
fn gradients(
    network: &SparseMixer<f32>,
    requested: Option<RequestedGradients>,
    recompute: bool,
) -> (Gradients<f32>, Option<Vec<f32>>, [usize; 2]) {
    let hidden = network.config().hidden_size;
    let (sequence, pooled) = (values(1, BATCH * SEQ * hidden), values(2, BATCH * hidden));
    let cotangents = Cotangents {
        sequence_output: Some(&sequence[..]),
        pooled_output: Some(&pooled[..]),
        encoder_outputs: &[],
    };
    let outputs = RequestedOutputs { sequence_output: true, ..RequestedOutputs::default() };
    let mut gradients = Gradients::zeros(network.weights().specs());
    let mut products = [0; 2];
    let rows = with_context(|context| {
        MULTIPLY_ADDS.set(0);
        let recording = Recording { recompute, requested };
        let (_, tape) = network.forward_with_tape(context, inputs(), Some(3), outputs, recording)?;
        products[0] = MULTIPLY_ADDS.take();
        let rows = network.backward(context, tape, &cotangents, 1.0, &mut gradients);
        products[1] = MULTIPLY_ADDS.take();
        rows
    });
    (gradients, rows, products)
}

#[test]
#[cfg_attr(miri, ignore = "too much for Miri")]
fn requested_gradients_have_the_bits_of_all_and_others_are_not_reached() {
    for config in configs() {
        let network = encoder::<f32>(config);
        let count = network.weights().specs().len();
        let (all, all_rows, [_, products]) = gradients(&network, None, false);
        assert!(all_rows.is_some() && all.reached().iter().all(|&flag| flag));
        // One weight at a time, then others picked at random.
        for case in 0..count + 24 {
            let number = values::<f64>(case as u64, count);
            let density = [-0.8, 0.0, 0.7][case % 3];
            let weights: Vec<bool> =
                (0..count).map(|i| if case < count { i == case } else { number[i] < density }).collect();
            let requested = RequestedGradients { weights: weights.clone(), rows: case % 4 == 3 };
            let rows_requested = requested.rows;
            let (some, rows, [_, own]) = gradients(&network, Some(requested), case % 2 == 1);
            assert_eq!(some.reached(), weights);
            assert_eq!(rows, all_rows.clone().filter(|_| rows_requested));
            for (index, &requested) in weights.iter().enumerate() {
                let name = &network.weights().specs()[index].name;
                let (got, expected) = (some.view(index).row_major(), all.view(index).row_major());
                if requested {
                    assert_eq!(got, expected, "{name}");
                } else {
                    assert!(got.iter().all(|&value| value == 0.0), "{name}");
                }
            }
            assert!(case % 2 == 1 || own <= products, "{own} multiply-adds, and {products} for all");
        }
    }
}

#[test]
fn frozen_layers_cost_nothing_in_the_backward_pass() {
    let network = encoder::<f32>(config());
    let specs = network.weights().specs();
    let under = |prefix: &str| RequestedGradients {
        weights: specs.iter().map(|spec| spec.name.starts_with(prefix)).collect(),
        rows: false,
    };
    let products = |prefix: &str| gradients(&network, Some(under(prefix)), false).2;
    let [forward, all] = gradients(&network, None, false).2;
    assert!(all > forward, "{forward}, {all}");
    assert_eq!(products("nothing"), [forward, 0], "a frozen encoder");
    let steps: Vec<usize> =
        ["pooler_transform", "transformer/layer_2", "transformer/layer_1", "transformer/layer_0", ""]
            .map(|prefix| products(prefix)[1])
            .into();
    assert!(steps.is_sorted_by(|a, b| a < b), "the lower, the more: {steps:?}");
    assert!(10 * steps[0] < all && 3 * steps[1] < 2 * all, "{steps:?} of {all}");
    // Frozen kernels in the middle cost half: the gradient of what they read has to go on.
    let [_, only_embeddings] = products("word_embeddings");
    assert!(only_embeddings < all * 3 / 4, "{only_embeddings} of {all}");
}
