//! The values of a part's weights, in the form in which layers use them.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::list::{MatrixKey, TableKey, VectorKey, WeightKey, WeightList};
use super::spec::{Form, Spec};
use super::table::Table;
use crate::error::{Error, Result};
use crate::kernels::{Dtype, PackedMatrix, Real};
use crate::runtime::{Interrupt, inject_fault, parallel};
use crate::sys::{ParallelFor, alloc_collect};

/// Gives the row-major values of each weight, by its number and what is known of it; borrowed where they need not be made,
/// such as those of a mapped file.
pub type Source<'a, R> = &'a mut dyn FnMut(usize, &Spec) -> Result<Cow<'a, [R]>>;

/// The values of one weight.
#[derive(Debug)]
pub enum Weight<R> {
    /// See [`Form::Vector`].
    Vector(Vec<R>),
    /// See [`Form::Table`].
    Table(Table<R>),
    /// See [`Form::Matrices`].
    Matrices(Vec<PackedMatrix<R>>),
}

/// The weights of a part. A clone shares the values; whoever changes some of them gets a copy of those.
#[derive(Clone, Debug)]
pub struct Weights<R> {
    specs: Arc<[Spec]>,
    dtype: Dtype,
    values: Vec<Arc<Weight<R>>>,
    versions: Vec<Version>,
}

/// Stands for the values that a weight has: other values never get the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Version(u64);

impl Version {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Version(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn list(len: usize) -> Vec<Self> {
        alloc_collect((0..len).map(|_| Version::next()))
    }
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Equal weights look the same.
        f.write_str("Version")
    }
}

/// A weight that is about to be changed.
#[derive(Debug)]
pub struct ChosenWeight<'a, R> {
    /// The weight.
    pub weight: &'a mut Weight<R>,
    /// Its version now, and when it has been changed.
    pub versions: [Version; 2],
}

impl<R: Real> Weights<R> {
    /// The weights of `list` with values from `source`, which is asked for one after the other. Large ones are packed
    /// with the threads of [`parallel::with_threads`].
    ///
    /// # Errors
    /// Those of `source`; [`Error::Value`] if it gives too few values or too many.
    pub fn load(list: WeightList, source: Source<'_, R>, dtype: Dtype) -> Result<Self> {
        let specs: Arc<[Spec]> = list.into_specs().into();
        let mut values = Vec::with_capacity(specs.len());
        for (index, spec) in specs.iter().enumerate() {
            values.push(Weight::store(spec, source(index, spec)?, dtype)?);
        }
        Ok(Weights { dtype, values, versions: Version::list(specs.len()), specs })
    }

    /// The weights of `list` that have been made already, in its order.
    pub fn of(list: WeightList, values: Vec<Arc<Weight<R>>>, dtype: Dtype) -> Self {
        let specs: Arc<[Spec]> = list.into_specs().into();
        assert_eq!(specs.len(), values.len(), "as many weights as the list has");
        Weights { dtype, values, versions: Version::list(specs.len()), specs }
    }

    /// The same weights as `list` and `dtype` say, which may differ in how they are stored; those that are stored so
    /// already are shared. Large ones are converted with the threads of [`parallel::with_threads`].
    ///
    /// # Errors
    /// [`Error::Interrupted`]
    pub fn to_dtype(&self, list: WeightList, dtype: Dtype, interrupt: Interrupt<'_>) -> Result<Self> {
        let specs: Arc<[Spec]> = list.into_specs().into();
        let mut values = Vec::with_capacity(specs.len());
        for (spec, value) in specs.iter().zip(&self.values) {
            if interrupt() {
                return Err(Error::Interrupted);
            }
            values.push(value.to_dtype(spec, dtype).map_or_else(|| value.clone(), Arc::new));
        }
        Ok(Weights { dtype, values, versions: Version::list(specs.len()), specs })
    }

    /// What there is to know of each weight.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// What matrices and tables are stored as.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Each weight, in the order of the list.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Weight<R>> {
        self.values.iter().map(|weight| &**weight)
    }

    /// Those of `chosen`, one flag per weight, to be changed; nothing in the place of the others. What others share of them,
    /// and what a file holds, is copied first, with the threads of [`parallel::with_threads`].
    pub fn choose_mut(&mut self, chosen: &[bool]) -> Vec<Option<ChosenWeight<'_, R>>> {
        let each = self.values.iter_mut().zip(chosen);
        let shared = each.filter_map(|(value, &chosen)| {
            (chosen && (Arc::strong_count(value) > 1 || value.is_mapped())).then_some(value)
        });
        parallel::for_each(shared, |value, _| Arc::make_mut(value).make_owned());
        let each = self.values.iter_mut().zip(&mut self.versions).zip(chosen);
        alloc_collect(each.map(|((value, version), chosen)| {
            chosen.then(|| {
                let before = std::mem::replace(version, Version::next());
                ChosenWeight { weight: Arc::make_mut(value), versions: [before, *version] }
            })
        }))
    }

    /// A weight by number or key.
    pub fn get(&self, key: impl WeightKey) -> &Weight<R> {
        &self.values[key.index()]
    }

    /// Replaces a weight by one that [`Weight::store`] has made for the same list and type.
    pub fn set(&mut self, key: impl WeightKey, value: Arc<Weight<R>>) {
        self.values[key.index()] = value;
        self.versions[key.index()] = Version::next();
    }

    /// Whether [`Weights::overwrite`] can write over a weight: nobody shares its values, see
    /// [`Weight::can_be_overwritten`].
    pub fn can_be_overwritten(&self, index: usize) -> bool {
        let value = &self.values[index];
        Arc::strong_count(value) == 1 && value.can_be_overwritten()
    }

    /// Writes row-major values over those of weights that can be overwritten, each given by its number.
    ///
    /// # Panics
    /// If there are more values or fewer, or a weight cannot be overwritten.
    pub fn overwrite(&mut self, new: &[(usize, &[R])]) {
        for &(index, values) in new {
            Arc::get_mut(&mut self.values[index]).expect("values that nobody shares").overwrite(values);
            self.versions[index] = Version::next();
        }
    }

    /// A vector.
    pub fn vector(&self, key: VectorKey) -> &[R] {
        match self.get(key) {
            Weight::Vector(values) => values,
            _ => unreachable!("the list made the key of a vector"),
        }
    }

    /// A table.
    pub fn table(&self, key: TableKey) -> &Table<R> {
        match self.get(key) {
            Weight::Table(table) => table,
            _ => unreachable!("the list made the key of a table"),
        }
    }

    /// All right operands of one weight.
    pub fn matrices(&self, key: MatrixKey) -> &[PackedMatrix<R>] {
        match self.get(key) {
            Weight::Matrices(matrices) => matrices,
            _ => unreachable!("the list made the key of matrices"),
        }
    }

    /// Whether a weight is stored as float16 and holds an infinity, such as numbers above 65,504 become.
    pub fn overflows(&self, key: impl WeightKey) -> bool {
        let index = key.index();
        let is_infinite = |values: &[R]| values.iter().any(|value| value.to_f32().is_infinite());
        let overflow = |piece: &[R]| if is_infinite(piece) { Err(Error::Interrupted) } else { Ok(()) };
        self.dtype == Dtype::Float16
            && self.specs[index].is_low_precision()
            && self.values[index].try_for_each_piece(overflow).is_err()
    }

    /// Bytes of all weights that a mapped file holds.
    pub fn mapped_bytes(&self) -> usize {
        self.iter().filter(|weight| weight.is_mapped()).map(Weight::bytes).sum()
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> usize {
        self.iter().map(Weight::bytes).sum()
    }
}

impl<R: Clone> Clone for Weight<R> {
    fn clone(&self) -> Self {
        match self {
            // Unlike that of a vector, the clone of aligned memory is refused as an error.
            Weight::Vector(values) => Weight::Vector(alloc_collect(values.iter().cloned())),
            Weight::Table(table) => Weight::Table(table.clone()),
            Weight::Matrices(matrices) => Weight::Matrices(alloc_collect(matrices.iter().cloned())),
        }
    }
}

impl<R: Real> Weight<R> {
    /// Row-major `values` stored as `spec` and the part's `dtype` say; large ones with the threads of
    /// [`parallel::with_threads`].
    ///
    /// # Errors
    /// [`Error::Value`] if they are too few or too many.
    pub fn store(spec: &Spec, values: Cow<'_, [R]>, dtype: Dtype) -> Result<Arc<Self>> {
        inject_fault();
        Ok(Arc::new(Self::new(spec, values, dtype)?))
    }

    fn new(spec: &Spec, values: Cow<'_, [R]>, dtype: Dtype) -> Result<Self> {
        if values.len() != spec.len() {
            let (got, expected) = (values.len(), spec.len());
            return Err(Error::value(
                spec.name.as_str(),
                format!("got {got} values, expected {expected} for shape {:?}", spec.shape),
            ));
        }
        Ok(match spec.form {
            Form::Vector => Weight::Vector(values.into_owned()),
            Form::Table { rows, width } => {
                Weight::Table(Table::new_with(rows, width, dtype, &values, parallel::as_parallel_for()))
            }
            Form::Matrices { count, k, n, full_precision } => {
                let dtype = if full_precision { Dtype::Float32 } else { dtype };
                if count == 1 {
                    let matrix = PackedMatrix::pack_with(k, n, dtype, &values, parallel::as_parallel_for());
                    return Ok(Weight::Matrices(vec![matrix]));
                }
                let pack = |i: usize| PackedMatrix::pack(k, n, dtype, &values[i * k * n..][..k * n]);
                Weight::Matrices(parallel::map(0..count, pack))
            }
        })
    }

    /// The same weight stored as `spec` and `dtype` say; `None` if it is stored so.
    pub fn to_dtype(&self, spec: &Spec, dtype: Dtype) -> Option<Self> {
        inject_fault();
        let parallel = parallel::as_parallel_for();
        match self {
            Weight::Vector(_) => None,
            Weight::Table(table) => (table.dtype() != Table::<R>::stored_as(dtype))
                .then(|| Weight::Table(table.to_dtype(dtype, parallel))),
            Weight::Matrices(matrices) => {
                let full_precision = matches!(spec.form, Form::Matrices { full_precision: true, .. });
                let dtype = if full_precision { Dtype::Float32 } else { dtype };
                if matrices.iter().all(|matrix| matrix.dtype() == dtype) {
                    return None;
                }
                Some(Weight::Matrices(match &matrices[..] {
                    [matrix] => vec![matrix.to_dtype(dtype, parallel)],
                    _ => parallel::map(matrices.iter(), |matrix| matrix.to_dtype(dtype, ParallelFor::NONE)),
                }))
            }
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Weight::Vector(values) => size_of_val(&values[..]),
            Weight::Table(table) => table.bytes(),
            Weight::Matrices(matrices) => matrices.iter().map(PackedMatrix::bytes).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{list, weights};
    use super::*;
    use crate::runtime::never;

    fn seven(weights: &Weights<f32>, count: usize) -> Result<Arc<Weight<f32>>> {
        Weight::store(&weights.specs()[1], vec![7.0; count].into(), weights.dtype())
    }

    #[test]
    fn numbers_beyond_float16_are_found_where_they_are_rounded() {
        let found = |dtype| {
            let mut source = |_: usize, spec: &Spec| Ok(vec![7e4; spec.len()].into());
            let weights =
                Weights::<f32>::load(list(), &mut source, dtype).expect("values of the right number");
            [0, 1, 2].map(|index| weights.overflows(index))
        };
        assert_eq!(found(Dtype::Float16), [false, true, true], "vectors are not rounded");
        assert_eq!(found(Dtype::Bfloat16), [false; 3]);
        assert!(!weights(Dtype::Float16).overflows(1));
    }

    #[test]
    fn a_change_leaves_clones_alone() {
        let mut weights = weights(Dtype::Float32);
        let before = weights.clone();
        weights.set(1, seven(&weights, 10).expect("ten values"));
        for (index, weight) in weights.choose_mut(&[true, false, false]).into_iter().enumerate() {
            assert_eq!(weight.is_some(), index == 0);
            if let Some(ChosenWeight { weight: Weight::Vector(values), .. }) = weight {
                values[0] = -1.0;
            }
        }
        assert_eq!((weights.get(1).to_vec(), weights.get(0).to_vec()[0]), (vec![7.0; 10], -1.0));
        assert_eq!((before.get(1).to_vec()[0], before.get(0).to_vec()[0]), (12.5, 0.0));
        assert!(Arc::ptr_eq(&weights.values[2], &before.values[2]), "what nobody changed is shared");
        let error = seven(&weights, 9).expect_err("too few");
        assert_eq!(error.to_string(), "table: got 9 values, expected 10 for shape [2, 5]");
    }

    #[test]
    fn other_values_have_another_version() {
        let mut weights = weights(Dtype::Float32);
        let mut clone = weights.clone();
        let versions = |weights: &mut Weights<f32>| -> Vec<[Version; 2]> {
            weights.choose_mut(&[true; 3]).into_iter().flatten().map(|weight| weight.versions).collect()
        };
        let first = versions(&mut weights);
        assert_eq!(versions(&mut clone)[0][0], first[0][0], "a clone has the same values");
        assert!(first.iter().all(|[before, after]| before != after));
        weights.overwrite(&[(0, &weights.get(0).to_vec())]);
        weights.set(1, seven(&weights, 10).expect("ten values"));
        for (index, ([_, after], [now, _])) in first.iter().zip(versions(&mut weights)).enumerate() {
            assert_eq!(*after == now, index == 2, "{index}");
        }
    }

    #[test]
    fn conversion_gives_what_storing_the_values_does_and_shares_the_rest() {
        for from in Dtype::ALL {
            let weights = weights(from);
            for to in Dtype::ALL {
                let converted = weights.to_dtype(list(), to, &never).expect("no interrupt");
                let mut values = |index, _: &Spec| Ok(weights.get(index).to_vec().into());
                let stored = Weights::load(list(), &mut values, to).expect("as many values");
                assert_eq!(format!("{converted:?}"), format!("{stored:?}"), "{from:?} to {to:?}");
                assert!(Arc::ptr_eq(&converted.values[0], &weights.values[0]));
                assert_eq!(Arc::ptr_eq(&converted.values[2], &weights.values[2]), from == to);
            }
        }
        let stopped = weights(Dtype::Float32).to_dtype(list(), Dtype::Int8, &|| true);
        assert!(matches!(stopped, Err(Error::Interrupted)));
    }
}
