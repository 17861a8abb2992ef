//! What must hold for every rule: bits that do not depend on threads or layout; exact save and restore;
//! errors that change nothing.

use super::*;
use crate::runtime::parallel::with_threads;

/// Larger than a block, so that threads have something to share; the last panel is not full.
fn large_specs(packed: bool) -> Vec<ParameterSpec> {
    let layout = |matrices, k, n| if packed { Layout::Panels { matrices, k, n } } else { Layout::Flat };
    vec![
        spec("kernel", &[700, 75], layout(1, 700, 75)),
        spec("bias", &[75], Layout::Flat),
        spec("experts", &[3, 130, 96], layout(3, 130, 96)),
        spec("table", &[400, 90], Layout::Flat),
    ]
}

fn train<R: Real>(rule: &Rule, specs: Vec<ParameterSpec>, steps: u64) -> Model<R> {
    let mut model = Model::new(rule.clone(), specs);
    for t in 0..steps {
        train_step(&mut model, t);
    }
    model
}

fn train_step<R: Real>(model: &mut Model<R>, t: u64) {
    let gradients: Vec<Vec<R>> =
        model.optimizer.specs().iter().zip(1000 * t..).map(|(spec, i)| values(50 + i, spec.len())).collect();
    let gradients: Vec<_> = gradients.iter().map(|g| Gradient::Dense(g)).collect();
    let how = Step { learning_rate: 0.01, clip_norm: Some(50.0), gradient_scale: 0.5 };
    model.apply(&gradients, how).expect("a step");
}

fn parameters<R: Real>(model: &Model<R>) -> Vec<Vec<R>> {
    (0..model.storage.len()).map(|i| model.parameter(i)).collect()
}

#[test]
fn bits_do_not_depend_on_threads() {
    for rule in all_rules() {
        let run = |threads| with_threads(threads, || parameters(&train::<f32>(&rule, large_specs(true), 3)));
        let alone = run(1);
        for threads in [2, 3, 5] {
            assert!(run(threads) == alone, "{rule:?} on {threads} threads");
        }
    }
}

#[test]
fn packed_and_flat_storage_agree() {
    for rule in all_rules() {
        let (packed, flat) = (
            parameters(&train::<f64>(&rule, large_specs(true), 3)),
            parameters(&train::<f64>(&rule, large_specs(false), 3)),
        );
        for (a, b) in packed.iter().flatten().zip(flat.iter().flatten()) {
            // Sums of squares are formed in another order.
            assert!((a - b).abs() <= 1e-13, "{rule:?}: {a} against {b}");
        }
    }
}

#[test]
fn padding_stays_zero() {
    let model = train::<f32>(&Rule::Adamw(adamw()), large_specs(true), 2);
    let last_panel = &model.storage[0][2 * 700 * 32..];
    assert!(last_panel.chunks(32).all(|row| row[75 - 64..].iter().all(|&x| x == 0.0)));
}

#[test]
fn matrices_may_be_stored_apart() {
    let specs = vec![spec("experts", &[3, 5, 33], Layout::Panels { matrices: 3, k: 5, n: 33 })];
    let gradient = values::<f32>(9, 3 * 5 * 33);
    let mut whole = Model::<f32>::new(Rule::Adamw(adamw()), specs.clone());
    whole.apply(&[Gradient::Dense(&gradient)], step(0.01)).expect("a step");
    let mut apart = Model::<f32>::new(Rule::Adamw(adamw()), specs);
    let values = apart.storage[0].chunks_mut(5 * 64).collect();
    let gradient = Gradient::Dense(&gradient);
    let mut updates = [Update { values, low_precision: Vec::new(), gradient, versions: None }];
    apart.optimizer.apply(&mut updates, step(0.01)).expect("a step");
    assert_eq!(whole.storage, apart.storage);
}

#[test]
fn restored_state_continues_with_the_same_bits() {
    for rule in all_rules() {
        let mut first = train::<f32>(&rule, large_specs(true), 2);
        let mut second = Model::new(rule.clone(), large_specs(true));
        second.storage.clone_from(&first.storage);
        second.optimizer.restore(first.optimizer.step(), &first.optimizer.state()).expect("own state");
        train_step(&mut first, 2);
        train_step(&mut second, 2);
        assert!(first.storage == second.storage, "{rule:?}");
        assert_eq!(first.optimizer.state(), second.optimizer.state());
    }
}

#[test]
fn foreign_states_are_refused() {
    let mut model = train::<f32>(&Rule::Adamw(adamw()), large_specs(true), 1);
    let state = model.optimizer.state();
    let changed = |change: &dyn Fn(&mut Vec<NamedArray<f32>>)| {
        let mut state = state.clone();
        change(&mut state);
        state
    };
    for (bad, expected) in [
        (changed(&|s| s[0].name = "kernel/x".into()), "only some of the moments of kernel"),
        (changed(&|s| s[0].shape = vec![75, 700]), "kernel/m has shape [75, 700], expected [700, 75]"),
        (changed(&|s| s.push(NamedArray { name: "x".into(), shape: vec![], values: vec![] })), "\"x\""),
    ] {
        let error = model.optimizer.restore(7, &bad).expect_err("a foreign state").to_string();
        assert!(error.starts_with("state:") && error.contains(expected), "{error}");
        assert_eq!((model.optimizer.step(), model.optimizer.state()), (1, state.clone()));
    }
}

#[test]
fn frozen_parameters_keep_values_and_moments() {
    let mut model = train::<f32>(&Rule::Adamw(adamw()), large_specs(true), 1);
    let (storage, state) = (model.storage.clone(), model.optimizer.state());
    model.apply(&[Gradient::None; 4], step(0.1)).expect("a step");
    assert_eq!((model.storage, model.optimizer.state()), (storage, state));
}

#[test]
fn errors_change_nothing() {
    let mut model = Model::<f32>::new(Rule::Adamw(adamw()), vec![spec("table", &[4, 2], Layout::Flat)]);
    let before = model.storage.clone();
    let nan = [f32::NAN; 8];
    let two = [0.5; 2];
    let clipped = Step { clip_norm: Some(1.0), ..step(0.1) };
    let cases: [(Gradient<'_, f32>, Step, &str); 4] = [
        (Gradient::Dense(&two), step(0.1), "gradient of table: got 2 elements, expected shape [4, 2]"),
        (Gradient::Dense(&nan), clipped, "gradients: their global norm is NaN"),
        (Gradient::Dense(&nan), step(-1.0), "learning_rate: got -1, expected a finite number, at least 0"),
        (Gradient::Dense(&nan), step(f64::NAN), "learning_rate"),
    ];
    for (gradient, how, expected) in cases {
        let error = model.apply(&[gradient], how).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!((&model.storage, model.optimizer.step()), (&before, 0));
    }
}

#[test]
fn bad_settings_are_named() {
    for (rule, argument) in [
        (Rule::Adamw(AdamW { beta_1: 1.0, ..adamw() }), "beta_1"),
        (Rule::Adamw(AdamW { epsilon: f64::NAN, ..adamw() }), "epsilon"),
        (Rule::Lamb(Lamb { beta_2: -0.1, ..lamb() }), "beta_2"),
        (Rule::Lamb(Lamb { weight_decay: -1.0, ..lamb() }), "weight_decay"),
        (Rule::Sgd(sgd(1.5, false)), "momentum"),
        (Rule::Adafactor(Adafactor { epsilon_1: 0.0, ..adafactor() }), "epsilon_1"),
        (Rule::Adafactor(Adafactor { clip_threshold: 0.0, ..adafactor() }), "clip_threshold"),
    ] {
        let error = Optimizer::<f32>::new(rule, vec![]).expect_err(argument).to_string();
        assert!(error.starts_with(&format!("{argument}: got ")), "{error}");
    }
    let schedule = Schedule::Paper { learning_rate: 0.1, warmup_steps: 5, total_steps: 5 };
    let error = schedule.validate().expect_err("no steps left").to_string();
    assert_eq!(error, "total_steps: got 5, expected more than warmup_steps (5)");
}

#[test]
fn paper_schedule_starts_at_zero_and_restarts() {
    let schedule = Schedule::Paper { learning_rate: 1.0, warmup_steps: 2, total_steps: 6 };
    let rates: Vec<f64> = (0..8).map(|step| schedule.at(f64::from(step))).collect();
    assert_eq!(rates, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 1.0, 0.75]);
}

#[test]
fn clipping_bounds_the_global_norm() {
    let (a, b) = ([3.0f32, 0.0], [4.0f32]);
    let norm = global_norm([Gradient::Dense(&a), Gradient::None, Gradient::Dense(&b)].into_iter());
    assert_eq!(norm, 5.0);
    assert_eq!((clip_factor(norm, 1.0), clip_factor(norm, 5.0), clip_factor(norm, 6.0)), (0.2, 1.0, 1.0));
}
