//! Blocks beside their formulas.

use super::super::attention_mask::AttentionMask;
use super::super::testing::{BATCH, SEQ, config, encoder_of, values, with_context};
use super::*;
use crate::params::Role;

/// What block `layer` makes of `x` if every sublayer gives zeros and every norm multiplies by 2.
fn without_sublayers(config: SparseMixerConfig, layer: usize, x: &[f64], rows: usize) -> Vec<f64> {
    let network =
        encoder_of(config, |_, spec| vec![if spec.role == Role::Scale { 2.0 } else { 0.0 }; spec.len()]);
    with_context(|context| {
        let mask = AttentionMask::by_query(None, None);
        let pass = network.pass(context, (BATCH, SEQ), None, false, &mask);
        let mut out = vec![f64::NAN; BATCH * rows * network.config.hidden_size];
        network.blocks[layer].forward(&pass, &network.activation, x, rows, &mut out)?;
        Ok(out)
    })
}

/// `2 (x - mean) / deviation` of each row.
fn normalised(x: &[f64], hidden: usize) -> Vec<f64> {
    let rows = x.chunks_exact(hidden).flat_map(|row| {
        let mean = row.iter().sum::<f64>() / hidden as f64;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / hidden as f64;
        row.iter().map(move |x| 2.0 * (x - mean) / variance.sqrt())
    });
    rows.collect()
}

fn assert_close(got: &[f64], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (a, b) in got.iter().zip(expected) {
        assert!((a - b).abs() < 1e-9, "{what}: {a}, expected {b}");
    }
}

#[test]
fn residuals_and_norms_stand_where_the_formula_has_them() {
    let hidden = config().hidden_size;
    let x: Vec<f64> = values(1, BATCH * SEQ * hidden);
    let (once, twice) = (normalised(&x, hidden), normalised(&normalised(&x, hidden), hidden));
    let residual = SparseMixerConfig { moe_residual: Some(true), ..config() };
    let norm_first = SparseMixerConfig { norm_first: true, ..config() };
    for layer in [0, 2] {
        assert_close(&without_sublayers(config(), layer, &x, SEQ), &twice, "norm after norm");
    }
    let zeros = vec![0.0; x.len()];
    assert_close(&without_sublayers(config(), 1, &x, SEQ), &zeros, "experts without a residual");
    assert_close(&without_sublayers(residual, 1, &x, SEQ), &twice, "experts with a residual");
    for layer in 0..3 {
        assert_close(&without_sublayers(norm_first.clone(), layer, &x, SEQ), &x, "the residual alone");
    }
    assert_ne!(once, twice, "a norm less would be seen");
}

#[test]
fn few_rows_are_the_first_of_every_example() {
    let hidden = config().hidden_size;
    let x: Vec<f64> = values(1, BATCH * SEQ * hidden);
    for layer in 0..3 {
        let all = without_sublayers(config(), layer, &x, SEQ);
        let first: Vec<f64> =
            all.chunks_exact(SEQ * hidden).flat_map(|example| &example[..2 * hidden]).copied().collect();
        assert_eq!(without_sublayers(config(), layer, &x, 2), first, "block {layer}");
    }
}
