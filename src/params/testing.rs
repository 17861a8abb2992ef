//! Weights for unit tests.

use super::{Role, Spec, WeightList, Weights};
use crate::kernels::Dtype;

/// A vector, a table, two matrices.
pub fn list() -> WeightList {
    let mut list = WeightList::new();
    list.vector("bias", Role::Bias, &[3]);
    list.table("table", 2, 5);
    list.matrices("kernels", &[2, 3, 4], 2, 3, 4);
    list
}

/// The weights of [`list`], all different numbers.
pub fn weights(dtype: Dtype) -> Weights<f32> {
    let mut source = |index, spec: &Spec| {
        Ok((0..spec.len()).map(|i| (i + 100 * index) as f32 / 8.0).collect::<Vec<_>>().into())
    };
    Weights::load(list(), &mut source, dtype).expect("values of the right number")
}
