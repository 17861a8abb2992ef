//! Heads against plain formulas, central differences in double precision, and themselves on other thread counts.

use super::cross_entropy::{LossSums, cross_entropy};
use super::masked_lm::{MaskedLm, MaskedLmConfig, MaskedLmGradients, Predictions};
use super::projection::{Projection, ProjectionConfig};
use crate::config::ActivationConfig;
use crate::error::{Error, Result};
use crate::kernels::{Dtype, Isa, Real};
use crate::params::{Gradients, Spec, Table, WeightList, Weights};
use crate::runtime::{Context, ScratchPool, never, run};

/// Numbers in `[-1, 1)`.
fn values<R: Real>(seed: u64, len: usize) -> Vec<R> {
    (0..len as u64)
        .map(|i| {
            R::from_f64(((i + 1 + 1000 * seed).wrapping_mul(2_654_435_761) % 65536) as f64 / 32768.0 - 1.0)
        })
        .collect()
}

fn with_context<R: Real, T: Send>(
    threads: usize,
    work: impl FnOnce(&Context<'_, R>) -> Result<T> + Send,
) -> T {
    let isa = Isa::detect().expect("a known instruction set");
    run(isa, threads, &ScratchPool::new(), &never, work).expect("no error")
}

/// The layers that `declare` makes, and weights for them.
fn load<R: Real, T>(declare: impl FnOnce(&mut WeightList) -> T) -> (T, Weights<R>) {
    let mut list = WeightList::new();
    let layers = declare(&mut list);
    let mut source = |index, spec: &Spec| {
        Ok(values(index as u64 + 1, spec.len())
            .iter()
            .map(|&x: &R| x * R::from_f64(0.5))
            .collect::<Vec<_>>()
            .into())
    };
    (layers, Weights::load(list, &mut source, Dtype::Float32).expect("fitting weights"))
}

fn projection_config(inner_width: usize) -> ProjectionConfig {
    ProjectionConfig {
        input_width: 35,
        inner_width,
        inner_activation: ActivationConfig::named("gelu"),
        num_classes: 5,
        input_dropout: 0.25,
        dropout: 0.5,
        inner_name: "pooler_dense".into(),
        output_name: "logits".into(),
    }
}

fn masked_lm_config() -> MaskedLmConfig {
    MaskedLmConfig {
        hidden_size: 6,
        embedding_width: 37,
        vocab_size: 300,
        activation: serde_json::from_str(r#"{"name": "gelu_tanh"}"#).expect("an activation"),
        layer_norm_epsilon: 1e-5,
        name: "cls/predictions".into(),
    }
}

/// Adds `by` to element `at` of weight number `index`.
fn nudge(weights: &mut Weights<f64>, index: usize, at: usize, by: f64) {
    let mut values = weights.get(index).to_vec();
    values[at] += by;
    let value = crate::params::Weight::store(&weights.specs()[index], values.into(), weights.dtype());
    weights.set(index, value.expect("as many values"));
}

/// Central difference of `loss` along one element that `nudge` moves.
fn slope<M>(model: &mut M, nudge: impl Fn(&mut M, f64), loss: impl Fn(&M) -> f64) -> f64 {
    const STEP: f64 = 1e-5;
    nudge(model, STEP);
    let above = loss(model);
    nudge(model, -2.0 * STEP);
    let below = loss(model);
    nudge(model, STEP);
    (above - below) / (2.0 * STEP)
}

fn assert_slope(expected: f64, got: f64, what: &str) {
    assert!((expected - got).abs() <= 1e-7 * (1.0 + expected.abs()), "{what}: {got}, expected {expected}");
}

#[test]
fn cross_entropy_is_the_formula() {
    let (classes, labels, weights) = (4, [2, 0, -7, 3], [1.0, 0.5, 0.0, 2.0]);
    let logits: Vec<f64> = values(1, 16).iter().map(|x: &f64| 3.0 * x).collect();
    let mut gradient = logits.clone();
    let isa = Isa::detect().expect("a known instruction set");
    let sums = cross_entropy(isa, &mut gradient, classes, &labels, &weights, 0.25).expect("valid");
    let (mut loss, mut correct) = (0.0, 0.0);
    for r in [0, 1, 3] {
        let row = &logits[4 * r..][..4];
        let total: f64 = row.iter().map(|z| z.exp()).sum();
        let label = labels[r] as usize;
        loss -= weights[r] * (row[label].exp() / total).ln();
        correct += if row.iter().all(|&z| z <= row[label]) { weights[r] } else { 0.0 };
        for j in 0..4 {
            let target = if j == label { 1.0 } else { 0.0 };
            let expected = 0.25 * weights[r] * (row[j].exp() / total - target);
            assert_slope(expected, gradient[4 * r + j], "gradient");
        }
    }
    assert_slope(loss, sums.loss, "loss");
    assert_eq!((sums.weight, sums.correct), (3.5, correct));
    assert!(gradient[8..12].iter().all(|&d| d == 0.0), "rows of weight 0 have no gradient");
}

#[test]
fn cross_entropy_survives_large_logits() {
    let mut logits = [1e4f32, -1e4, 0.0, 0.0];
    let isa = Isa::detect().expect("a known instruction set");
    let sums = cross_entropy(isa, &mut logits, 2, &[1, 0], &[1.0, 1.0], 1.0).expect("valid");
    assert!((sums.loss - (2e4 + 2f64.ln())).abs() < 1e-2, "{sums:?}");
    assert_eq!((sums.correct, logits), (1.0, [1.0, -1.0, -0.5, 0.5]));
}

#[test]
fn bad_labels_are_named() {
    let isa = Isa::detect().expect("a known instruction set");
    let message = |labels: &[i64], weights: &[f32]| {
        cross_entropy(isa, &mut [0.0; 6], 3, labels, weights, 1.0).expect_err("bad labels").to_string()
    };
    assert_eq!(message(&[0, 3], &[1.0, 1.0]), "labels: got 3 in row 1, expected 0 <= label < 3");
    assert_eq!(message(&[-1, 0], &[1.0, 1.0]), "labels: got -1 in row 0, expected 0 <= label < 3");
    assert_eq!(message(&[0], &[1.0, 1.0]), "labels: got 1 values, expected 2");
    let weights = "label_weights: got NaN in row 1, expected finite values, at least 0";
    assert_eq!(message(&[0, 0], &[1.0, f32::NAN]), weights);
}

#[test]
fn projection_gradients_are_slopes() {
    for inner in [0, 34] {
        let config = projection_config(inner);
        let (head, mut weights) = load::<f64, _>(|list| Projection::new(list, &config).expect("a head"));
        let mut features = values::<f64>(50, 3 * 35);
        let d_logits = values::<f64>(51, 3 * 5);
        let specs = weights.specs().to_vec();
        let mut gradients = Gradients::zeros(&specs);
        let dx = with_context(2, |context| {
            head.backward(context, &weights, &features, &d_logits, Some(7), &mut gradients)
        });
        let loss = |weights: &Weights<f64>, features: &[f64]| -> f64 {
            let logits = with_context(1, |context| head.forward(context, weights, features, Some(7)));
            logits.iter().zip(&d_logits).map(|(z, d)| z * d).sum()
        };
        for (i, spec) in specs.iter().enumerate() {
            for at in (0..spec.len()).step_by(13) {
                let expected = slope(
                    &mut weights,
                    |weights, by| nudge(weights, i, at, by),
                    |weights| loss(weights, &features),
                );
                assert_slope(expected, gradients.view(i).row_major()[at], &spec.name);
            }
        }
        for at in (0..features.len()).step_by(7) {
            let expected = slope(&mut features, |x, by| x[at] += by, |x| loss(&weights, x));
            assert_slope(expected, dx[at], "features");
        }
    }
}

#[test]
fn dropout_is_only_for_training() {
    let config = projection_config(0);
    let (head, weights) = load::<f32, _>(|list| Projection::new(list, &config).expect("a head"));
    let features = values::<f32>(50, 35);
    let logits = |training| with_context(1, |context| head.forward(context, &weights, &features, training));
    assert_eq!(logits(None), logits(None));
    assert_eq!(logits(Some(1)), logits(Some(1)));
    assert_ne!(logits(Some(1)), logits(Some(2)));
    assert_ne!(logits(None), logits(Some(1)));
}

/// Five predictions, one of which does not count and two of which share a row.
const ROWS: [usize; 5] = [0, 2, 2, 3, 1];
const LABELS: [i64; 5] = [5, 299, 255, 0, -1];

struct MaskedLmCase<R> {
    head: MaskedLm<R>,
    weights: Weights<R>,
    table: Table<R>,
    sequence: Vec<R>,
}

impl<R: Real> MaskedLmCase<R> {
    fn new() -> Self {
        let config = masked_lm_config();
        let (head, weights) = load(|list| MaskedLm::new(list, &config).expect("a known activation"));
        MaskedLmCase {
            head,
            weights,
            table: Table::new(300, 37, Dtype::Float32, &values(70, 300 * 37)),
            sequence: values(71, 4 * 6),
        }
    }

    fn loss(&self, threads: usize, gradients: Option<MaskedLmGradients<'_, R>>) -> LossSums {
        let weights = [1.0, 0.5, 2.0, 1.0, 0.0].map(R::from_f64);
        let predictions = Predictions { rows: &ROWS, labels: &LABELS, weights: &weights };
        with_context(threads, |context| {
            self.head.loss(context, &self.weights, &self.table, &self.sequence, predictions, gradients)
        })
    }

    /// Gradients of half the loss: weights, then table, then sequence.
    fn gradients(&self, threads: usize) -> Vec<Vec<R>> {
        let mut weights = Gradients::zeros(self.weights.specs());
        let (mut table, mut sequence) = (vec![R::ZERO; 300 * 37], vec![R::ZERO; 4 * 6]);
        let into = MaskedLmGradients {
            weights: &mut weights,
            table: Some(&mut table),
            sequence: &mut sequence,
            scale: 0.5,
        };
        self.loss(threads, Some(into));
        weights.iter().map(|view| view.row_major().to_vec()).chain([table, sequence]).collect()
    }
}

#[test]
fn masked_lm_loss_is_that_of_its_logits() {
    let case = MaskedLmCase::<f64>::new();
    let sums = case.loss(2, None);
    let mut logits = with_context(2, |context| {
        case.head.logits(context, &case.weights, &case.table, &case.sequence, &ROWS)
    });
    let isa = Isa::detect().expect("a known instruction set");
    let expected =
        cross_entropy(isa, &mut logits, 300, &LABELS, &[1.0, 0.5, 2.0, 1.0, 0.0], 1.0).expect("valid");
    assert_slope(expected.loss, sums.loss, "loss");
    assert_eq!((expected.weight, expected.correct), (sums.weight, sums.correct));
}

#[test]
fn masked_lm_gradients_are_slopes() {
    let mut case = MaskedLmCase::<f64>::new();
    let gradients = case.gradients(2);
    let loss = |case: &MaskedLmCase<f64>| 0.5 * case.loss(1, None).loss;
    let specs = case.weights.specs().to_vec();
    for (i, spec) in specs.iter().enumerate() {
        for at in (0..spec.len()).step_by(17) {
            let expected = slope(&mut case, |case, by| nudge(&mut case.weights, i, at, by), loss);
            assert_slope(expected, gradients[i][at], &spec.name);
        }
    }
    for at in (0..300 * 37).step_by(611) {
        let expected = slope(
            &mut case,
            |case, by| case.table.full_precision_mut().expect("full precision")[at] += by,
            loss,
        );
        assert_slope(expected, gradients[specs.len()][at], "table");
    }
    for (at, &gradient) in gradients[specs.len() + 1].iter().enumerate().take(24) {
        let expected = slope(&mut case, |case, by| case.sequence[at] += by, loss);
        assert_slope(expected, gradient, "sequence");
    }
}

#[test]
fn masked_lm_bits_do_not_depend_on_threads() {
    let case = MaskedLmCase::<f32>::new();
    let (loss, gradients) = (case.loss(1, None), case.gradients(1));
    for threads in [2, 3, 5] {
        assert!(
            case.loss(threads, None) == loss && case.gradients(threads) == gradients,
            "{threads} threads"
        );
    }
}

#[test]
fn a_foreign_table_is_refused() {
    let case = MaskedLmCase::<f32>::new();
    let table = Table::new(300, 36, Dtype::Float32, &vec![0.0; 300 * 36]);
    with_context(1, |context| {
        let error: Error = case
            .head
            .logits(context, &case.weights, &table, &case.sequence, &ROWS)
            .expect_err("a wrong width");
        assert_eq!(error.to_string(), "embedding_table: got [300, 36], expected [300, 37]");
        Ok(())
    });
}
