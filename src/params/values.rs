//! The row-major values of a weight: reading, comparing, writing over them.

use std::sync::atomic::{AtomicBool, Ordering};

use super::weights::Weight;
use crate::error::Result;
use crate::kernels::{Dtype, Real};
use crate::runtime::parallel;
use crate::sys::{alloc_collect, alloc_zeroed_huge};

/// Values that are unpacked at a time: they stay in the L2 cache until somebody has read them.
const PIECE: usize = 1 << 16;

impl<R: Real> Weight<R> {
    /// Row-major values, widened from the storage type; large ones with the threads of [`parallel::with_threads`].
    pub fn to_vec(&self) -> Vec<R> {
        match self {
            Weight::Vector(values) => alloc_collect(values.iter().copied()),
            Weight::Table(table) => {
                let (rows, width) = (table.rows(), table.width());
                let mut values = alloc_zeroed_huge(rows * width);
                let piece = (PIECE / width.max(1)).max(1);
                let tasks = values.chunks_mut((piece * width).max(1)).enumerate();
                parallel::for_each(tasks, |(number, out), _| {
                    for (i, out) in out.chunks_exact_mut(width).enumerate() {
                        table.copy_row(number * piece + i, out);
                    }
                });
                values
            }
            Weight::Matrices(matrices) => {
                let mut values = alloc_zeroed_huge(matrices.iter().map(|m| m.k() * m.n()).sum());
                let mut rest = &mut values[..];
                let mut tasks = Vec::new();
                for matrix in matrices {
                    let (own, others) = rest.split_at_mut(matrix.k() * matrix.n());
                    let rows = (PIECE / matrix.n().max(1)).max(1);
                    let pieces = own.chunks_mut((rows * matrix.n()).max(1)).enumerate();
                    tasks.extend(pieces.map(|(number, out)| (matrix, number * rows, out)));
                    rest = others;
                }
                parallel::for_each(tasks.into_iter(), |(matrix, first, out), _| {
                    matrix.unpack_rows_into(first, out)
                });
                values
            }
        }
    }

    /// Whether these row-major `values`, as many as the weight has, are stored unrounded already, bit by bit. Large weights
    /// are compared with the threads of [`parallel::with_threads`], and no further than to a difference.
    pub fn holds(&self, values: &[R]) -> bool {
        let flat = |stored: &[R]| {
            let pieces = stored.chunks(PIECE).zip(values.chunks(PIECE));
            all_in_parallel(pieces, |(stored, given)| {
                bytemuck::cast_slice::<R, u8>(stored) == bytemuck::cast_slice::<R, u8>(given)
            })
        };
        match self {
            Weight::Vector(stored) => flat(stored),
            Weight::Table(table) => table.full_precision().is_some_and(flat),
            Weight::Matrices(matrices) => {
                let each = matrices.iter().scan(values, |rest, matrix| {
                    let (own, others) = rest.split_at(matrix.k() * matrix.n());
                    *rest = others;
                    Some((matrix, own))
                });
                let pieces = each.flat_map(|(matrix, own)| {
                    let rows = (PIECE / matrix.n().max(1)).max(1);
                    let pieces = own.chunks((rows * matrix.n()).max(1)).enumerate();
                    pieces.map(move |(number, piece)| (matrix, number * rows, piece))
                });
                all_in_parallel(pieces, |(matrix, first, piece)| matrix.rows_are(first, piece))
            }
        }
    }

    /// Hands the values of [`Weight::to_vec`] to `visit` in pieces, in order: for large weights cheaper than all at once.
    ///
    /// # Errors
    /// The first one of `visit`.
    pub fn try_for_each_piece(&self, mut visit: impl FnMut(&[R]) -> Result<()>) -> Result<()> {
        match self {
            Weight::Vector(values) => visit(values),
            Weight::Table(table) => match table.full_precision() {
                Some(values) => visit(values),
                None => {
                    let mut values = vec![R::ZERO; table.width()];
                    (0..table.rows()).try_for_each(|row| {
                        table.copy_row(row, &mut values);
                        visit(&values)
                    })
                }
            },
            Weight::Matrices(matrices) => {
                let mut values = Vec::new();
                for matrix in matrices {
                    let rows = (PIECE / matrix.n().max(1)).max(1);
                    for first in (0..matrix.k()).step_by(rows) {
                        values.resize(rows.min(matrix.k() - first) * matrix.n(), R::ZERO);
                        matrix.unpack_rows_into(first, &mut values);
                        visit(&values)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Whether [`Weight::overwrite`] can: the values are stored unrounded, in memory of ours.
    pub fn can_be_overwritten(&self) -> bool {
        !self.is_mapped()
            && match self {
                Weight::Vector(_) => true,
                Weight::Table(table) => table.dtype() == Dtype::Float32,
                Weight::Matrices(matrices) => matrices.iter().all(|m| m.dtype() == Dtype::Float32),
            }
    }

    /// Writes row-major `values` over those that are there: what [`Weight::store`] makes of them in new memory. Large weights
    /// are written with the threads of [`parallel::with_threads`].
    ///
    /// # Panics
    /// If there are more values or fewer, or the weight cannot be overwritten.
    pub fn overwrite(&mut self, values: &[R]) {
        match self {
            Weight::Vector(own) => own.copy_from_slice(values),
            Weight::Table(table) => {
                let own = table.full_precision_mut().expect("an unrounded table");
                assert_eq!(own.len(), values.len(), "values of a table");
                let pieces = own.chunks_mut(PIECE).zip(values.chunks(PIECE));
                parallel::for_each(pieces, |(own, values), _| own.copy_from_slice(values));
            }
            Weight::Matrices(matrices) => {
                assert_eq!(
                    values.len(),
                    matrices.iter().map(|m| m.k() * m.n()).sum::<usize>(),
                    "values of matrices"
                );
                let mut rest = values;
                let tasks = matrices.iter_mut().flat_map(|matrix| {
                    let (own, others) = rest.split_at(matrix.k() * matrix.n());
                    rest = others;
                    matrix.overwrite(own)
                });
                parallel::for_each(tasks, |task, _| task());
            }
        }
    }
}

/// Whether `check` says yes to all `tasks`, of which those after a no are left out.
fn all_in_parallel<T: Send>(tasks: impl Iterator<Item = T> + Send, check: impl Fn(T) -> bool + Sync) -> bool {
    let all = AtomicBool::new(true);
    parallel::for_each(tasks, |task, _| {
        if all.load(Ordering::Relaxed) && !check(task) {
            all.store(false, Ordering::Relaxed);
        }
    });
    all.into_inner()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{list, weights};
    use super::*;
    use crate::runtime::parallel::with_threads;

    #[test]
    fn weights_hold_what_they_were_given_and_nothing_else() {
        let (full, rounded) = (weights(Dtype::Float32), weights(Dtype::Bfloat16));
        for (index, spec) in full.specs().iter().enumerate() {
            let mut values: Vec<f32> = (0..spec.len()).map(|i| (i + 100 * index) as f32 / 8.0).collect();
            assert!(full.get(index).holds(&values), "{}", spec.name);
            assert_eq!(rounded.get(index).holds(&values), !spec.is_low_precision(), "{}", spec.name);
            for i in 0..values.len() {
                values[i] += 1.0;
                assert!(!full.get(index).holds(&values), "{}[{i}]", spec.name);
                values[i] -= 1.0;
            }
        }
    }

    #[test]
    fn values_come_back_row_major_whole_and_in_pieces() {
        for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16] {
            let weights = weights(dtype);
            for (index, (spec, weight)) in weights.specs().iter().zip(weights.iter()).enumerate() {
                let expected: Vec<f32> = (0..spec.len()).map(|i| (i + 100 * index) as f32 / 8.0).collect();
                assert_eq!(weight.to_vec(), expected, "{} as {dtype:?}", spec.name);
                let mut pieces = Vec::new();
                let taken = weight.try_for_each_piece(|piece| {
                    pieces.extend_from_slice(piece);
                    Ok(())
                });
                taken.expect("no error");
                assert_eq!(pieces, expected, "{} in pieces", spec.name);
            }
        }
    }

    #[test]
    fn what_is_written_over_is_what_would_be_stored() {
        for threads in [1, 3] {
            let (mut weights, list) = (weights(Dtype::Float32), list());
            let chosen = vec![true; list.specs().len()];
            for (weight, spec) in weights.choose_mut(&chosen).into_iter().zip(list.specs()) {
                let weight = weight.expect("chosen").weight;
                let values: Vec<f32> = (0..spec.len()).map(|i| 1.0 - i as f32).collect();
                assert!(weight.can_be_overwritten());
                with_threads(threads, || weight.overwrite(&values));
                let stored = Weight::store(spec, values.into(), Dtype::Float32).expect("as many values");
                assert_eq!(format!("{weight:?}"), format!("{stored:?}"), "{}", spec.name);
            }
        }
    }

    #[test]
    fn rounded_weights_cannot_be_overwritten() {
        for dtype in [Dtype::Bfloat16, Dtype::Float16, Dtype::Int8] {
            let weights = weights(dtype);
            for (weight, spec) in weights.iter().zip(weights.specs()) {
                assert_eq!(
                    weight.can_be_overwritten(),
                    !spec.is_low_precision(),
                    "{} as {dtype:?}",
                    spec.name
                );
            }
        }
    }
}
