//! Every gradient of the whole network in `f64` against central differences, for each kind of layer and option.

use sparse_mixer::config::{
    ActivationConfig, MixingMechanism, RouterKind, SemanticsPreset, SparseMixerConfig,
};
use sparse_mixer::kernels::Isa;
use sparse_mixer::network::{Cotangents, OwnedInputs, OwnedWords, Recording, RequestedOutputs, SparseMixer};
use sparse_mixer::params::{Gradients, Role, Weight};
use sparse_mixer::random::{Purpose, RngStream, open_unit};
use sparse_mixer::runtime::{self, ScratchPool};

const BATCH: usize = 3;
const AUX_LOSS_WEIGHT: f64 = 2.0;

/// Uniform on `[-scale, scale)`.
fn noise(seed: u64, len: usize, scale: f64) -> Vec<f64> {
    let mut out = vec![0.0; len];
    RngStream::new(17, Purpose::EncoderWeight, seed)
        .for_each_word(0, len, |i, word| out[i] = scale * (2.0 * open_unit(word) - 1.0));
    out
}

fn small() -> SparseMixerConfig {
    SparseMixerConfig {
        vocab_size: 23,
        hidden_size: 12,
        num_layers: 3,
        moe_layers: vec![1],
        attention_layers: vec![2],
        num_experts: 3,
        num_attention_heads: 3,
        max_sequence_length: 9,
        type_vocab_size: 3,
        inner_dim: 20,
        output_dropout: 0.0,
        attention_dropout: 0.0,
        router_z_loss_weight: Some(0.3),
        ..SparseMixerConfig::default()
    }
}

fn model(config: &SparseMixerConfig) -> SparseMixer<f64> {
    let config = config.clone().validated().expect("a valid configuration");
    let mut seed = 100;
    SparseMixer::load(config, None, &mut |_, spec| {
        seed += 1;
        let values = noise(seed, spec.len(), 0.4);
        let values = if spec.role == Role::Scale { values.iter().map(|v| 1.0 + v).collect() } else { values };
        Ok(values.into())
    })
    .expect("weights of the right shapes")
}

fn inputs(config: &SparseMixerConfig, seq: usize, given_rows: bool) -> OwnedInputs<f64> {
    let width = config.embedding_width();
    let dense = if given_rows { 2 } else { 0 };
    let ids = |seed, len: usize, size: usize| -> Vec<i64> {
        noise(seed, len, 0.5).iter().map(|v| ((v + 0.5) * size as f64) as i64).collect()
    };
    let word_len = seq - dense;
    OwnedInputs {
        batch: BATCH,
        seq,
        words: if given_rows {
            OwnedWords::Embeddings(noise(3, BATCH * word_len * width, 1.0))
        } else {
            OwnedWords::Ids(ids(1, BATCH * word_len, config.vocab_size))
        },
        word_len,
        dense: noise(4, BATCH * dense * width, 1.0),
        type_ids: ids(2, BATCH * seq, config.type_vocab_size),
        mask: Some((0..BATCH * seq).map(|i| if i % 7 == 6 { 0.0 } else { 1.0 }).collect()),
    }
}

/// The scalar under test and its gradients: of every weight, and of the word rows.
fn loss_and_gradients(
    model: &SparseMixer<f64>,
    inputs: &OwnedInputs<f64>,
    training: Option<u64>,
    recompute: bool,
) -> (f64, Gradients<f64>, Vec<f64>) {
    let config = model.config();
    let (seq, hidden) = (inputs.seq, config.hidden_size);
    let rows = config.output_range().unwrap_or(seq);
    let sequence = noise(50, BATCH * rows * hidden, 1.0);
    let pooled = noise(51, BATCH * hidden, 1.0);
    let first_block = noise(52, BATCH * seq * hidden, 1.0);
    let requested = RequestedOutputs {
        sequence_output: true,
        pooled_output: true,
        encoder_outputs: true,
        ..RequestedOutputs::default()
    };
    let pool = ScratchPool::new();
    let recording = Recording { recompute, requested: None };
    runtime::run(Isa::PORTABLE, 1, &pool, &runtime::never, |context| {
        let (outputs, tape) =
            model.forward_with_tape(context, inputs.clone(), training, requested, recording)?;
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let auxiliary: f64 = outputs
            .metrics
            .iter()
            .map(|m| m.router_z_loss + config.auxiliary_loss_factor * m.load_balancing_loss)
            .sum();
        let mut loss = AUX_LOSS_WEIGHT * auxiliary
            + dot(outputs.sequence_output.as_deref().unwrap_or(&[]), &sequence)
            + dot(outputs.pooled_output.as_deref().unwrap_or(&[]), &pooled);
        let encoder_outputs = if config.num_layers > 1 {
            loss += dot(&outputs.encoder_outputs[0], &first_block);
            vec![Some(&first_block[..])]
        } else {
            vec![]
        };
        let mut grads = Gradients::zeros(model.weights().specs());
        let cotangents = Cotangents {
            sequence_output: Some(&sequence),
            pooled_output: Some(&pooled),
            encoder_outputs: &encoder_outputs,
        };
        let drows = model.backward(context, &tape, &cotangents, AUX_LOSS_WEIGHT, &mut grads)?;
        let drows = drows.expect("rows are requested");
        Ok((loss, grads, drows))
    })
    .expect("a forward and a backward pass")
}

/// Adds `step * direction` to weight number `index`.
fn nudge(model: &mut SparseMixer<f64>, index: usize, direction: &[f64], step: f64) {
    let mut values = model.weights().get(index).to_vec();
    values.iter_mut().zip(direction).for_each(|(value, d)| *value += step * d);
    let weights = model.weights_mut(&|changed| changed == index);
    let value = Weight::store(&weights.specs()[index], values.into(), weights.dtype());
    weights.set(index, value.expect("as many values"));
}

/// Compares directional derivatives, two random directions per weight.
fn check(config: SparseMixerConfig, given_rows: bool, training: Option<u64>) {
    let inputs = inputs(&config, config.max_sequence_length, given_rows);
    check_with(&config, &inputs, training);
}

fn check_with(config: &SparseMixerConfig, inputs: &OwnedInputs<f64>, training: Option<u64>) {
    let mut model = model(config);
    let given_rows = matches!(inputs.words, OwnedWords::Embeddings(_));
    let (_, grads, drows) = loss_and_gradients(&model, inputs, training, false);
    let recomputed = loss_and_gradients(&model, inputs, training, true);
    assert_eq!(grads.memory(), recomputed.1.memory(), "recomputation changes bits");
    let scale = grads.memory().iter().fold(0.0f64, |m, g| m.max(g.abs()));
    const STEP: f64 = 1e-5;
    for (index, spec) in model.weights().specs().to_vec().iter().enumerate() {
        for direction in 0..2 {
            let direction = noise(1000 + 2 * index as u64 + direction, spec.len(), 1.0);
            let expected: f64 =
                grads.view(index).row_major().iter().zip(&direction).map(|(g, d)| g * d).sum();
            nudge(&mut model, index, &direction, STEP);
            let above = loss_and_gradients(&model, inputs, training, false).0;
            nudge(&mut model, index, &direction, -2.0 * STEP);
            let below = loss_and_gradients(&model, inputs, training, false).0;
            nudge(&mut model, index, &direction, STEP);
            let measured = (above - below) / (2.0 * STEP);
            let tolerance = 1e-6 * measured.abs().max(1e-2 * scale);
            assert!(
                (measured - expected).abs() <= tolerance,
                "{}: gradient {expected}, central difference {measured}",
                spec.name
            );
        }
    }
    if given_rows {
        let mut nudged = inputs.clone();
        let direction = noise(9, drows.len(), 1.0);
        let mut move_by = |step: f64| {
            let (seq, width) = (config.max_sequence_length, drows.len() / BATCH / config.max_sequence_length);
            let OwnedWords::Embeddings(words) = &mut nudged.words else { unreachable!("rows are given") };
            for (i, d) in direction.iter().enumerate() {
                let (example, s, c) = (i / width / seq, i / width % seq, i % width);
                if s < inputs.word_len {
                    words[(example * inputs.word_len + s) * width + c] += step * d;
                } else {
                    nudged.dense[(example * (seq - inputs.word_len) + s - inputs.word_len) * width + c] +=
                        step * d;
                }
            }
            loss_and_gradients(&model, &nudged, training, false).0
        };
        let above = move_by(STEP);
        let below = move_by(-2.0 * STEP);
        let measured = (above - below) / (2.0 * STEP);
        let expected: f64 = drows.iter().zip(&direction).map(|(g, d)| g * d).sum();
        assert!(
            (measured - expected).abs() <= 1e-6 * measured.abs().max(1.0),
            "rows: {expected}, {measured}"
        );
    }
}

#[test]
fn linear_post_norm() {
    check(small(), false, None);
}

#[test]
fn linear_pre_norm() {
    check(SparseMixerConfig { norm_first: true, ..small() }, false, None);
}

#[test]
fn mixtures_and_attention_everywhere() {
    for norm_first in [false, true] {
        let all = vec![0, 1, 2];
        let config =
            SparseMixerConfig { moe_layers: all.clone(), attention_layers: all, norm_first, ..small() };
        check(SparseMixerConfig { eval_capacity_factor: 1.5, ..config }, false, None);
    }
}

#[test]
fn fourier_and_hartley_both_ways() {
    for mixing_mechanism in [MixingMechanism::Fourier, MixingMechanism::Hartley] {
        for use_fft in [false, true] {
            check(SparseMixerConfig { mixing_mechanism, use_fft, ..small() }, false, None);
        }
    }
}

#[test]
fn factorised_embeddings_and_given_rows() {
    for embedding_width in [7, 19] {
        check(SparseMixerConfig { embedding_width: Some(embedding_width), ..small() }, true, None);
        check(SparseMixerConfig { embedding_width: Some(embedding_width), ..small() }, false, None);
    }
}

#[test]
fn dropout_and_jitter_are_made_again() {
    for norm_first in [false, true] {
        let config = SparseMixerConfig {
            output_dropout: 0.3,
            attention_dropout: 0.4,
            jitter_noise: 0.1,
            embedding_width: Some(7),
            norm_first,
            ..small()
        };
        check(config, false, Some(5));
    }
}

#[test]
fn output_range_and_wide_groups() {
    check(SparseMixerConfig { output_range: Some(4), examples_per_group: Some(3.0), ..small() }, false, None);
    check(SparseMixerConfig { moe_layers: vec![2], output_range: Some(1), ..small() }, false, None);
}

#[test]
fn every_activation() {
    let names = [
        "linear",
        "gelu_tanh",
        "gelu",
        "sigmoid",
        "silu",
        "tanh",
        "elu",
        "selu",
        "exponential",
        "softplus",
        "softsign",
        "mish",
        "softmax",
        "log_softmax",
    ];
    for name in names {
        let inner_activation = ActivationConfig {
            name: name.into(),
            alpha: None,
            max_value: None,
            negative_slope: None,
            threshold: None,
        };
        let layers = SparseMixerConfig { num_layers: 2, attention_layers: vec![], ..small() };
        check(SparseMixerConfig { inner_activation, ..layers }, false, None);
    }
}

/// The paper's encoder: all its rules at once.
fn paper() -> SparseMixerConfig {
    SparseMixerConfig {
        semantics: SemanticsPreset::Paper,
        pad_id: Some(4),
        embedding_width: Some(7),
        expert_inner_dim: Some(14),
        max_group_size: Some(10),
        min_expert_capacity: Some(2),
        router_z_loss_weight: Some(0.3),
        ..small()
    }
}

#[test]
fn paper_semantics() {
    check(paper(), false, None);
    check(SparseMixerConfig { embedding_width: Some(12), moe_layers: vec![2], ..paper() }, true, None);
    let mut inputs = inputs(&paper(), 9, false);
    // Padding from the ids; one example is nothing else.
    inputs.mask = None;
    let OwnedWords::Ids(ids) = &mut inputs.words else { unreachable!("ids are given") };
    ids[9..18].fill(4);
    ids[25..].fill(4);
    check_with(&SparseMixerConfig { attention_layers: vec![0, 1, 2], ..paper() }, &inputs, None);
}

#[test]
fn paper_dropout_is_made_again() {
    let dropout = SparseMixerConfig {
        output_dropout: 0.3,
        attention_dropout: 0.4,
        expert_dropout: Some(0.2),
        jitter_noise: 0.1,
        ..paper()
    };
    check(dropout, false, Some(5));
}

#[test]
fn residual_around_mixtures_alone() {
    check(SparseMixerConfig { moe_residual: Some(true), moe_layers: vec![0, 2], ..small() }, false, None);
}

#[test]
fn tokens_choose() {
    for semantics in [SemanticsPreset::Keras, SemanticsPreset::Paper] {
        for (selected, prioritized, group_mixup) in [(1, true, false), (2, false, true), (3, true, true)] {
            let config = SparseMixerConfig {
                semantics,
                router: RouterKind::TokensChoose,
                num_selected_experts: selected,
                batch_prioritized_routing: prioritized,
                group_mixup,
                auxiliary_loss_factor: 0.7,
                moe_layers: vec![0, 1],
                max_group_size: Some(10),
                ..small()
            };
            check(config, false, None);
        }
    }
}

#[test]
fn experts_exchanged_across_groups() {
    check(SparseMixerConfig { group_mixup: true, ..paper() }, false, None);
}

#[test]
fn attention_with_relative_position_biases() {
    let biased = SparseMixerConfig {
        relative_attention_num_buckets: Some(8),
        attention_layers: vec![0, 2],
        attention_dropout: 0.2,
        ..small()
    };
    check(biased.clone(), false, Some(3));
    check(SparseMixerConfig { norm_first: true, ..biased }, true, None);
}

#[test]
fn circulant_and_toeplitz_both_ways() {
    for mixing_mechanism in [MixingMechanism::Circulant, MixingMechanism::Toeplitz] {
        for use_fft in [false, true] {
            check(SparseMixerConfig { mixing_mechanism, use_fft, ..small() }, false, None);
        }
    }
    let mixing_mechanism = MixingMechanism::Toeplitz;
    check(SparseMixerConfig { mixing_mechanism, norm_first: true, ..small() }, false, None);
}

#[test]
fn shorter_sequences() {
    for mixing_mechanism in [MixingMechanism::Fourier, MixingMechanism::Hartley] {
        for use_fft in [false, true] {
            let config = SparseMixerConfig { mixing_mechanism, use_fft, ..paper() };
            check_with(&config, &inputs(&config, 7, false), None);
        }
    }
}
