//! Weights in low precision: their masters take the steps of weights in full precision, and they are the masters, rounded.

use half::{bf16, f16};

use super::*;
use crate::kernels::{Dtype, LowPrecision, PANEL, PackedMatrix};
use crate::params::Table;
use crate::runtime::parallel::with_threads;

/// More than a block each: of an odd number of rows, with columns missing in the last panel; and rows with padding.
const MATRICES: [(usize, usize, usize); 2] = [(1, 1101, 75), (3, 130, 96)];
const TABLE: (usize, usize) = (401, 90);

struct Weights {
    matrices: [Vec<PackedMatrix<f32>>; 2],
    table: Table<f32>,
}

impl Weights {
    fn new(dtype: Dtype) -> Self {
        let mut seed = 0;
        let matrices = MATRICES.map(|(count, k, n)| {
            (0..count)
                .map(|_| {
                    seed += 1;
                    PackedMatrix::pack(k, n, dtype, &values::<f32>(seed, k * n))
                })
                .collect()
        });
        let (rows, width) = TABLE;
        Weights { matrices, table: Table::new(rows, width, dtype, &values::<f32>(9, rows * width)) }
    }

    /// All weights, row-major.
    fn read(&self) -> Vec<Vec<f32>> {
        let matrices = self.matrices.iter().map(|each| each.iter().flat_map(PackedMatrix::unpack).collect());
        matrices.chain([self.table_values()]).collect()
    }

    fn table_values(&self) -> Vec<f32> {
        let (rows, width) = TABLE;
        let mut values = vec![0.0; rows * width];
        values.chunks_mut(width).enumerate().for_each(|(i, row)| self.table.copy_row(i, row));
        values
    }

    fn apply(&mut self, optimizer: &mut Optimizer<f32>, gradients: &[Vec<f32>], how: Step) {
        let low_precision = self.matrices.iter_mut().map(|each| {
            each.iter_mut().flat_map(|matrix| matrix.low_precision_mut().expect("low precision")).collect()
        });
        let mut low_precision: Vec<Vec<_>> = low_precision.collect();
        low_precision.push(self.table.low_precision_mut().into_iter().collect());
        let updates = low_precision.into_iter().zip(gradients).map(|(low_precision, gradient)| Update {
            values: Vec::new(),
            low_precision,
            gradient: Gradient::Dense(gradient),
            versions: None,
        });
        optimizer.apply(&mut updates.collect::<Vec<_>>(), how).expect("a step");
    }
}

fn specs(low_precision: bool) -> Vec<ParameterSpec> {
    let matrices = MATRICES
        .iter()
        .map(|&(matrices, k, n)| spec("kernel", &[matrices, k, n], Layout::Panels { matrices, k, n }));
    let (rows, width) = TABLE;
    let mut specs: Vec<_> = matrices.chain([spec("table", &[rows, width], Layout::Flat)]).collect();
    for (i, spec) in specs.iter_mut().enumerate() {
        spec.low_precision = low_precision;
        spec.name = format!("{}_{i}", spec.name);
    }
    specs
}

fn masters(optimizer: &Optimizer<f32>) -> Vec<Vec<f32>> {
    let state = optimizer.state().into_iter();
    state.filter(|array| array.name.ends_with("/master")).map(|array| array.values).collect()
}

fn bits(values: &[Vec<f32>]) -> Vec<Vec<u32>> {
    values.iter().map(|values| values.iter().map(|x| x.to_bits()).collect()).collect()
}

fn check_rule(rule: &Rule, dtype: Dtype, threads: usize) {
    let mut weights = Weights::new(dtype);
    let mut optimizer = Optimizer::new(rule.clone(), specs(true)).expect("valid settings");
    let mut plain = Model::<f32>::new(rule.clone(), specs(false));
    for ((storage, spec), values) in plain.storage.iter_mut().zip(specs(false)).zip(weights.read()) {
        *storage = spec.layout.pack(&spec.shape, &values);
    }
    let round = |x: f32| match dtype {
        Dtype::Bfloat16 => bf16::from_f32(x).to_f32(),
        _ => f16::from_f32(x).to_f32(),
    };
    for t in 0..3 {
        let gradients: Vec<Vec<f32>> =
            specs(true).iter().zip(100 * t..).map(|(spec, i)| values(50 + i, spec.len())).collect();
        let how = Step { learning_rate: 0.01, clip_norm: Some(50.0), gradient_scale: 0.5 };
        weights.apply(&mut optimizer, &gradients, how);
        let dense: Vec<_> = gradients.iter().map(|g| Gradient::Dense(g)).collect();
        plain.apply(&dense, how).expect("a step");
        let what = format!("{rule:?} in {dtype:?} on {threads} threads, step {t}");
        let masters = masters(&optimizer);
        let expected: Vec<_> = (0..plain.storage.len()).map(|i| plain.parameter(i)).collect();
        assert!(bits(&masters) == bits(&expected), "{what}: masters");
        let rounded: Vec<Vec<f32>> =
            masters.iter().map(|values| values.iter().map(|&x| round(x)).collect()).collect();
        assert!(bits(&weights.read()) == bits(&rounded), "{what}: weights");
    }
}

#[test]
fn masters_take_the_steps_of_full_precision_and_weights_are_masters_rounded() {
    for rule in all_rules() {
        for (dtype, threads) in [(Dtype::Bfloat16, 1), (Dtype::Bfloat16, 3), (Dtype::Float16, 2)] {
            with_threads(threads, || check_rule(&rule, dtype, threads));
        }
    }
}

#[test]
fn padding_of_weights_stays_zero_and_what_changed_elsewhere_is_taken_over() {
    let how = Step { learning_rate: 0.0, clip_norm: None, gradient_scale: 1.0 };
    for dtype in [Dtype::Bfloat16, Dtype::Float16] {
        let mut weights = Weights::new(dtype);
        let mut optimizer = Optimizer::new(Rule::Sgd(sgd(0.75, true)), specs(true)).expect("valid settings");
        // Even what is not finite does not get into missing columns and rows.
        let gradients: Vec<Vec<f32>> = specs(true).iter().map(|spec| vec![f32::NAN; spec.len()]).collect();
        weights.apply(&mut optimizer, &gradients, how);
        assert!(weights.read().iter().flatten().all(|x| x.is_nan()));
        let (_, k, n) = MATRICES[0];
        let Some(mut panels) = weights.matrices[0][0].low_precision_mut() else { panic!("low precision") };
        let last: Vec<f32> = match panels.pop() {
            Some(LowPrecision::Bfloat16Panel { values, .. }) => values.iter().map(|x| x.to_f32()).collect(),
            Some(LowPrecision::Float16(values)) => values.iter().map(|x| x.to_f32()).collect(),
            other => panic!("{other:?}"),
        };
        assert_eq!(last.iter().filter(|x| !x.is_nan()).count(), last.len() - k * (n % PANEL), "{dtype:?}");
        assert!(last.iter().all(|x| x.is_nan() || x.to_bits() == 0), "{dtype:?}");
        // New weights replace the masters, which are not numbers.
        let mut weights = Weights::new(dtype);
        let zeros: Vec<Vec<f32>> = gradients.iter().map(|values| vec![0.0; values.len()]).collect();
        let mut optimizer_of_zeros = Optimizer::new(Rule::Sgd(sgd(0.0, false)), specs(true)).unwrap();
        optimizer_of_zeros.restore(1, &optimizer_state(&optimizer)).expect("masters alone");
        weights.apply(&mut optimizer_of_zeros, &zeros, how);
        assert_eq!(masters(&optimizer_of_zeros), weights.read(), "{dtype:?}");
        assert_eq!(weights.read(), Weights::new(dtype).read(), "{dtype:?}");
    }
}

/// The masters of `optimizer`, as the state of one without moments.
fn optimizer_state(optimizer: &Optimizer<f32>) -> Vec<NamedArray<f32>> {
    optimizer.state().into_iter().filter(|array| array.name.ends_with("/master")).collect()
}
