//! Updates and schedules against Keras, the Model Garden and the paper's code (`tests/golden/optimizers.json`).

use serde_json::Value;

use super::*;

const RATE: f64 = 1.0 / 64.0;
/// Rows of the table that have a gradient, per step; the others have zeros.
const TABLE_ROWS: [&[u32]; 5] = [&[1, 4], &[0], &[2, 4, 6], &[], &[3, 5, 6]];

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../tests/golden/optimizers.json")).expect("valid JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// The parameters of `make_optimizers.py`, matrices packed where the network packs them.
fn specs() -> Vec<ParameterSpec> {
    vec![
        spec("dense/kernel", &[3, 33], Layout::Panels { matrices: 1, k: 3, n: 33 }),
        spec("dense/bias", &[5], Layout::Flat),
        spec("layer_norm/gamma", &[4], Layout::Flat),
        spec("experts/kernel", &[2, 2, 34], Layout::Panels { matrices: 2, k: 2, n: 34 }),
        spec("table/embeddings", &[7, 3], Layout::Flat),
    ]
}

fn assert_close(got: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{what}[{i}]: {a} against {b}");
    }
}

fn check_case<R: Real>(case: &str, rule: Rule, clip_norm: Option<f64>, tolerance: f64) {
    let mut model = Model::<R>::new(rule, specs());
    for (t, rows) in TABLE_ROWS.iter().enumerate() {
        let mut all: Vec<Vec<R>> = model
            .optimizer
            .specs()
            .iter()
            .enumerate()
            .map(|(i, spec)| values(100 + 10 * t as u64 + i as u64, spec.len()))
            .collect();
        for (row, gradient) in (0..).zip(all[4].chunks_exact_mut(3)) {
            if !rows.contains(&row) {
                gradient.fill(R::ZERO);
            }
        }
        let gradients: Vec<_> = all.iter().map(|g| Gradient::Dense(g)).collect();
        model.apply(&gradients, Step { clip_norm, ..step(RATE) }).expect("a step");
    }
    for (i, spec) in model.optimizer.specs().iter().enumerate() {
        let got: Vec<f64> = model.parameter(i).iter().map(|x| x.to_f64()).collect();
        let expected = numbers(&golden()["cases"][case][&spec.name]);
        assert_close(&got, &expected, tolerance, &format!("{case}: {}", spec.name));
    }
}

/// Double precision tells formulas apart, single precision is what runs.
fn check_both(case: &str, rule: Rule, clip_norm: Option<f64>, tolerance: f64) {
    check_case::<f64>(case, rule.clone(), clip_norm, tolerance);
    check_case::<f32>(case, rule, clip_norm, 4e-6);
}

#[test]
fn adamw_is_that_of_keras() {
    check_both("adamw", Rule::Adamw(adamw()), None, 1e-11);
    check_both("adamw_clip", Rule::Adamw(adamw()), Some(2.0), 1e-11);
}

#[test]
fn adamw_is_that_of_the_original_bert() {
    // The Model Garden's class computes in single precision.
    check_both("adam_weight_decay", Rule::Adamw(adamw()), Some(1.0), 2e-6);
}

#[test]
fn lamb_is_that_of_the_model_garden() {
    check_both("lamb", Rule::Lamb(lamb()), None, 1e-11);
}

#[test]
fn sgd_is_that_of_keras() {
    check_both("sgd", Rule::Sgd(sgd(0.0, false)), None, 1e-11);
    check_both("momentum", Rule::Sgd(sgd(0.75, false)), None, 1e-11);
    check_both("nesterov", Rule::Sgd(sgd(0.75, true)), None, 1e-11);
}

#[test]
fn adafactor_is_that_of_keras() {
    check_both("adafactor", Rule::Adafactor(adafactor()), None, 1e-11);
}

#[test]
fn schedules_are_those_of_keras() {
    for case in golden()["schedules"].as_array().expect("a list") {
        let schedule: Schedule = serde_json::from_value(case["config"].clone()).expect("a schedule");
        schedule.validate().expect("valid");
        let rates: Vec<f64> = (0..30).map(|step| schedule.at(f64::from(step))).collect();
        assert_close(&rates, &numbers(&case["rates"]), 1e-7, &format!("{schedule:?}"));
    }
}

#[test]
fn paper_rule_and_schedule() {
    let paper = &golden()["paper"];
    let config = |key: &str| paper["config"][key].as_f64().expect("a number");
    let rule = AdamW {
        beta_1: config("b1"),
        beta_2: config("b2"),
        epsilon: config("eps"),
        epsilon_rule: EpsilonRule::Corrected,
        weight_decay: config("weight_decay"),
    };
    let schedule = Schedule::Paper {
        learning_rate: config("learning_rate"),
        warmup_steps: config("num_warmup_steps") as u64,
        total_steps: config("num_train_steps") as u64,
    };
    let names = ["a/kernel", "a/bias", "b/scale"];
    let specs = names
        .map(|name| {
            let shape: Vec<usize> = numbers(&paper["shapes"][name]).iter().map(|&x| x as usize).collect();
            let layout = match shape[..] {
                [k, n] => Layout::Panels { matrices: 1, k, n },
                _ => Layout::Flat,
            };
            ParameterSpec { name: name.into(), shape, layout, decay: true, adapt: true, low_precision: false }
        })
        .to_vec();
    let mut model = Model::<f32>::new(Rule::Adamw(rule), specs.clone());
    let single = |value: &Value| -> Vec<f32> { numbers(value).iter().map(|&x| x as f32).collect() };
    for (storage, spec) in model.storage.iter_mut().zip(&specs) {
        *storage = spec.layout.pack(&spec.shape, &single(&paper["parameters"][0][&spec.name]));
    }
    for (t, rate) in numbers(&paper["learning_rates"]).into_iter().enumerate() {
        assert_close(&[schedule.at(t as f64)], &[rate], 1e-8, "learning rate");
        let gradients = names.map(|name| single(&paper["gradients"][t][name]));
        model.apply(&gradients.each_ref().map(|g| Gradient::Dense(g)), step(rate)).expect("a step");
        for (i, name) in names.iter().enumerate() {
            let got: Vec<f64> = model.parameter(i).iter().map(|&x| x.into()).collect();
            assert_close(&got, &numbers(&paper["parameters"][t + 1][name]), 1e-6, name);
        }
    }
}
