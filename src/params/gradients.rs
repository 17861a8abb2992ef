//! The gradients of a part's weights.

use std::ops::Range;

use super::list::{MatrixKey, WeightKey};
use super::spec::{Form, Spec};
use crate::kernels::Real;
use crate::runtime::{Buffer, ScratchPool, parallel};
use crate::sys::{LeasableMemory, Lease, LeasedSlice};

/// Bytes to whose multiples every gradient is aligned: a cache line, a 512-bit register.
const ALIGNMENT: usize = 64;

/// The gradients of all weights of a part, in one piece of memory. They lie in the order in which backward finishes them:
/// the weight that was declared last comes first. So what is finished is always one range from the start, which others
/// may have on [lease](Gradients::lease) while backward goes on.
#[derive(Debug)]
pub struct Gradients<R: Real> {
    memory: LeasableMemory<R, Buffer<R>>,
    /// Where in the memory the gradient of each weight is, by the weight's number.
    ranges: Vec<Range<usize>>,
    reached: Vec<bool>,
    requested: Vec<bool>,
    /// Per weight and matrix of it (other weights have none) whether it stands for zeros, whatever its values are: see
    /// [`Gradients::clear_lazily`].
    stale: Vec<Vec<bool>>,
}

/// The right to gradients that are finished.
pub type GradientLease<R> = Lease<R, Buffer<R>>;

/// Some gradients on lease.
pub type GradientSlice<R> = LeasedSlice<R, Buffer<R>>;

/// One gradient. How its values lie in memory is for this type to know.
#[derive(Clone, Copy, Debug)]
pub struct GradientView<'a, R> {
    values: &'a [R],
}

/// One gradient, to be added to.
#[derive(Debug)]
pub struct GradientViewMut<'a, R> {
    values: &'a mut [R],
}

/// The gradient of one matrix, to be added to or, if it is stale, written.
#[derive(Debug)]
pub struct GradientMatrix<'a, R> {
    /// In the order of the matrix's elements.
    pub values: &'a mut [R],
    /// Whether it stands for zeros, whatever the values are; to be set to false by who has written all of them.
    pub is_stale: &'a mut bool,
}

impl<R: Real> Gradients<R> {
    /// Zeros for the weights `specs`.
    pub fn zeros(specs: &[Spec]) -> Self {
        Self::zeros_in(specs, &ScratchPool::new())
    }

    /// Zeros for the weights `specs` in memory of `pool`, to which it goes back.
    pub fn zeros_in(specs: &[Spec], pool: &ScratchPool<R>) -> Self {
        let mut gradients = Self::lazy_zeros_in(specs, pool);
        gradients.settle();
        gradients
    }

    /// The same as [`Gradients::clear_lazily`] would leave them.
    pub fn lazy_zeros_in(specs: &[Spec], pool: &ScratchPool<R>) -> Self {
        let (ranges, end) = Self::layout(specs);
        let flags = |value| vec![value; specs.len()];
        let stale = specs.iter().map(|spec| match spec.form {
            Form::Matrices { count, .. } => vec![true; count],
            Form::Vector | Form::Table { .. } => Vec::new(),
        });
        let mut gradients = Gradients {
            memory: LeasableMemory::new(pool.gradient_buffer(end)),
            ranges,
            reached: flags(false),
            requested: flags(true),
            stale: stale.collect(),
        };
        let mut first = 0;
        for weight in (0..specs.len()).rev() {
            let range = gradients.range(weight);
            set_to_zero(gradients.memory.slice_mut(first..range.start));
            first = if gradients.stale[weight].is_empty() { range.start } else { range.end };
        }
        set_to_zero(gradients.memory.slice_mut(first..end));
        gradients
    }

    /// Number of values in the memory for the weights `specs`.
    pub fn memory_len(specs: &[Spec]) -> usize {
        Self::layout(specs).1
    }

    /// Where in the memory the gradient of each weight is, and where the memory ends.
    fn layout(specs: &[Spec]) -> (Vec<Range<usize>>, usize) {
        let mut ranges = vec![0..0; specs.len()];
        let mut end = 0;
        for (range, spec) in ranges.iter_mut().zip(specs).rev() {
            *range = end..end + spec.len();
            end = range.end.next_multiple_of(ALIGNMENT / size_of::<R>());
        }
        (ranges, end)
    }

    /// From now on, layers compute the gradients of the weights whose flags are set, and no others. At first, of all.
    pub fn request(&mut self, weights: &[bool]) {
        self.requested.copy_from_slice(weights);
    }

    /// Whether the gradient of one of several weights is to be computed.
    pub fn requests_any(&self, weights: Range<usize>) -> bool {
        self.requested[weights].contains(&true)
    }

    /// Whether the gradient of a weight is to be computed.
    pub fn requests(&self, key: impl WeightKey) -> bool {
        self.requested[key.index()]
    }

    /// The gradient of a weight, for a layer to add to it, if it is to be computed: the weight counts as reached from now
    /// on.
    pub fn if_requested(&mut self, key: impl WeightKey) -> Option<GradientViewMut<'_, R>> {
        self.requests(key).then(|| self.view_mut(key))
    }

    /// Matrix number `index` of the gradient of a weight, if it is to be computed: the weight counts as reached from now on.
    pub fn matrix_if_requested(&mut self, key: MatrixKey, index: usize) -> Option<GradientMatrix<'_, R>> {
        let weight = key.index();
        let (range, stale) = (self.ranges[weight].clone(), &mut self.stale[weight]);
        if !self.requested[weight] {
            return None;
        }
        self.reached[weight] = true;
        let own = matrix_range(&range, stale.len(), index);
        Some(GradientMatrix { values: self.memory.slice_mut(own), is_stale: &mut stale[index] })
    }

    /// The gradient of a weight.
    pub fn view(&self, key: impl WeightKey) -> GradientView<'_, R> {
        debug_assert!(!self.stale[key.index()].contains(&true), "gradients are settled before they are read");
        GradientView { values: self.memory.slice(self.range(key)) }
    }

    /// The same, to be added to: the weight counts as reached from now on.
    pub fn view_mut(&mut self, key: impl WeightKey) -> GradientViewMut<'_, R> {
        self.reached[key.index()] = true;
        self.settle_weight(key.index());
        let range = self.range(key);
        GradientViewMut { values: self.memory.slice_mut(range) }
    }

    /// [`Gradients::if_requested`] of two different weights at once.
    pub fn both_if_requested(&mut self, keys: [impl WeightKey; 2]) -> [Option<GradientViewMut<'_, R>>; 2] {
        let requested = keys.map(|key| self.requests(key));
        keys.iter().for_each(|key| self.reached[key.index()] |= self.requests(*key));
        keys.iter().for_each(|key| self.settle_weight(key.index()));
        let mut requested = requested.into_iter();
        let views = self.memory.two_slices_mut(keys.map(|key| self.ranges[key.index()].clone()));
        views.map(|values| requested.next()?.then_some(GradientViewMut { values }))
    }

    /// Per weight, whether something has been differentiated that depends on it. Other weights have no gradient at all,
    /// rather than one of zeros: an optimiser leaves them alone.
    pub fn reached(&self) -> &[bool] {
        &self.reached
    }

    /// Counts every requested weight as reached.
    pub fn reach_requested(&mut self) {
        self.reached.iter_mut().zip(&self.requested).for_each(|(reached, &requested)| *reached |= requested);
    }

    /// Counts the weights whose flags are set as reached, too: others have added to their gradients.
    pub fn reach(&mut self, weights: &[bool]) {
        self.reached.iter_mut().zip(weights).for_each(|(reached, &flag)| *reached |= flag);
    }

    /// All gradients, each in its [`Gradients::range`], with zeros between them.
    pub fn memory(&self) -> &[R] {
        debug_assert!(
            !self.stale.iter().flatten().any(|&stale| stale),
            "gradients are settled before they are read"
        );
        self.memory.slice(0..self.memory.value_count())
    }

    /// Adds other gradients of the same weights, value by value, and counts what they reach as reached.
    pub fn add(&mut self, other: &Self) {
        const VALUES: usize = 1 << 16;
        let len = self.memory.value_count();
        let pieces = self.memory.slice_mut(0..len).chunks_mut(VALUES).zip(other.memory().chunks(VALUES));
        parallel::for_each(pieces, |(sum, values), _| {
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += *value);
        });
        self.reach(other.reached());
    }

    /// Lends out gradients as [`Gradients::finish_from`] declares them finished; `None` if they are lent already. Nobody
    /// else may use those that are finished until lease and slices are dropped.
    pub fn lease(&mut self) -> Option<GradientLease<R>> {
        self.memory.lease()
    }

    /// Whether they are on lease.
    pub fn is_leased(&self) -> bool {
        self.memory.is_leased()
    }

    /// Declares the gradients of the weights from number `first` on finished.
    pub fn finish_from(&mut self, first: usize) {
        if self.is_leased() {
            (first..self.stale.len()).for_each(|weight| self.settle_weight(weight));
            // Behind the last of them there is only room.
            let end = if first == 0 {
                self.memory.value_count()
            } else {
                self.ranges.get(first).map_or(0, |range| range.end)
            };
            self.memory.finish(end);
        }
    }

    /// The memory itself, to be kept by somebody else. Gradients lie in it as in [`Gradients::memory`].
    pub fn into_memory(mut self) -> Buffer<R> {
        self.settle();
        self.memory.into_owner()
    }

    /// Where in [`Gradients::memory`] the gradient of a weight is. Ranges follow each other from the last weight to the
    /// first, each from a multiple of 64 bytes on.
    pub fn range(&self, key: impl WeightKey) -> Range<usize> {
        self.ranges[key.index()].clone()
    }

    /// One view per weight, in the order of the weights.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = GradientView<'_, R>> + Clone {
        (0..self.ranges.len()).map(|index| self.view(index))
    }

    /// Sets every value to zero, and no weight as reached.
    pub fn clear(&mut self) {
        self.clear_lazily();
        self.settle();
    }

    /// The same, to be followed by a computation that adds to the gradients: what it adds to the matrices of weights takes the
    /// place of their values, so that zeros need not be written and read again. Before anybody else reads the gradients, they
    /// have to be [settled](Gradients::settle).
    pub fn clear_lazily(&mut self) {
        for weight in 0..self.ranges.len() {
            if self.stale[weight].is_empty() && self.reached[weight] {
                set_to_zero(self.memory.slice_mut(self.range(weight)));
            } else if self.reached[weight] {
                self.stale[weight].fill(true);
            }
        }
        self.reached.fill(false);
    }

    /// As [`Gradients::lazy_zeros_in`] made them: zeros, no weight is reached, all are requested.
    pub fn renew_lazily(&mut self) {
        self.clear_lazily();
        self.requested.fill(true);
    }

    /// Makes zeros of the matrices that still stand for them.
    pub fn settle(&mut self) {
        (0..self.stale.len()).for_each(|weight| self.settle_weight(weight));
    }

    fn settle_weight(&mut self, weight: usize) {
        let count = self.stale[weight].len();
        for index in 0..count {
            if std::mem::take(&mut self.stale[weight][index]) {
                set_to_zero(self.memory.slice_mut(matrix_range(&self.ranges[weight], count, index)));
            }
        }
    }
}

/// Where matrix number `index` of `count` of a weight is.
fn matrix_range(weight: &Range<usize>, count: usize, index: usize) -> Range<usize> {
    let len = weight.len() / count;
    weight.start + index * len..weight.start + (index + 1) * len
}

/// Zeros, with the threads of [`parallel::with_threads`].
fn set_to_zero<R: Real>(values: &mut [R]) {
    const VALUES: usize = 1 << 18;
    parallel::for_each(values.chunks_mut(VALUES), |chunk, _| chunk.fill(R::ZERO));
}

impl<'a, R: Real> GradientView<'a, R> {
    /// The values in the order of the weight's elements.
    pub fn row_major(self) -> &'a [R] {
        self.values
    }
}

impl<'a, R: Real> GradientViewMut<'a, R> {
    /// The values in the order of the weight's elements.
    pub fn row_major(self) -> &'a mut [R] {
        self.values
    }
}

#[cfg(test)]
mod tests {
    use super::super::list::WeightList;
    use super::super::spec::Role;
    use super::*;

    fn specs() -> Vec<Spec> {
        let mut list = WeightList::new();
        list.table("first", 3, 7);
        list.vector("second", Role::Bias, &[16]);
        list.matrix("third", 5, 5);
        list.into_specs()
    }

    #[test]
    fn what_is_finished_is_a_range_from_the_start() {
        let gradients = Gradients::<f32>::zeros(&specs());
        assert_eq!([0, 1, 2].map(|i| gradients.range(i)), [48..69, 32..48, 0..25]);
        assert_eq!(gradients.memory().len(), 80);
        for view in gradients.iter() {
            assert!(view.row_major().as_ptr().addr().is_multiple_of(ALIGNMENT));
        }
        assert_eq!(Gradients::<f64>::zeros(&specs()).range(1), 32..48);
    }

    #[test]
    fn views_that_are_added_to_are_reached_and_others_stay() {
        let mut gradients = Gradients::<f64>::zeros(&specs());
        gradients.view_mut(2).row_major().fill(2.0);
        let [Some(a), Some(b)] = gradients.both_if_requested([1, 0]) else { panic!("all are requested") };
        (a.row_major()[0], b.row_major()[0]) = (3.0, 4.0);
        assert_eq!([0, 1, 2].map(|i| gradients.view(i).row_major().iter().sum::<f64>()), [4.0, 3.0, 50.0]);
        assert_eq!(gradients.reached(), [true; 3]);
        gradients.clear();
        assert!(gradients.memory().iter().all(|&value| value == 0.0) && !gradients.reached()[2]);
        gradients.view_mut(1).row_major()[3] = 1.0;
        assert_eq!(gradients.reached(), [false, true, false]);
    }

    #[test]
    fn stale_matrices_stand_for_zeros_until_somebody_writes_them() {
        let mut list = WeightList::new();
        let experts = list.matrices("experts", &[2, 5, 3], 2, 5, 3);
        list.vector("bias", Role::Bias, &[3]);
        let mut gradients = Gradients::<f32>::zeros(&list.into_specs());
        for weight in [0, 1] {
            gradients.view_mut(weight).row_major().fill(f32::NAN);
        }
        gradients.clear_lazily();
        assert_eq!(gradients.reached(), [false; 2]);
        let GradientMatrix { values, is_stale } =
            gradients.matrix_if_requested(experts, 1).expect("requested");
        assert!(*is_stale && values.len() == 15);
        values.fill(2.0);
        *is_stale = false;
        assert!(!*gradients.matrix_if_requested(experts, 1).expect("requested").is_stale);
        gradients.settle();
        let expected: Vec<f32> = [[0.0; 15], [2.0; 15]].concat();
        assert_eq!(gradients.view(0).row_major(), expected);
        assert_eq!((gradients.view(1).row_major(), gradients.reached()), (&[0.0; 3][..], &[true, false][..]));
        gradients.clear_lazily();
        assert!(gradients.view_mut(0).row_major().iter().all(|&value| value == 0.0), "to be added to");
        let (end, lease) = (gradients.memory().len(), gradients.lease().expect("nobody has them"));
        gradients.clear_lazily();
        gradients.finish_from(0);
        assert!(lease.slice(0..end).expect("finished").iter().all(|&value| value == 0.0));
    }

    #[test]
    fn what_is_finished_can_be_lent_while_the_rest_is_added_to() {
        let mut gradients = Gradients::<f32>::zeros(&specs());
        let lease = gradients.lease().expect("nobody has them");
        gradients.view_mut(2).row_major()[0] = 2.0;
        gradients.finish_from(2);
        assert!(lease.slice(0..26).is_none());
        lease.slice(0..25).expect("they are finished")[0] += 1.0;
        gradients.view_mut(1).row_major()[0] = 4.0;
        gradients.finish_from(0);
        lease.wait(69);
        assert_eq!(lease.slice(24..33).expect("finished")[8], 4.0);
        assert!(gradients.lease().is_none());
        drop(lease);
        assert_eq!((gradients.view(2).row_major()[0], gradients.is_leased()), (3.0, false));
        let mut others = Gradients::<f32>::zeros(&specs());
        others.view_mut(0).row_major()[1] = 1.0;
        others.add(&gradients);
        assert_eq!(
            [0, 1, 2].map(|i| others.view(i).row_major()[..2].to_vec()),
            [[0.0, 1.0], [4.0, 0.0], [3.0, 0.0]]
        );
        assert_eq!(others.reached(), [true; 3]);
    }

    #[test]
    fn gradients_that_are_not_requested_are_not_reached() {
        let mut gradients = Gradients::<f64>::zeros(&specs());
        gradients.request(&[false, true, false]);
        assert!(gradients.if_requested(0).is_none());
        assert!(matches!(gradients.both_if_requested([2, 1]), [None, Some(_)]));
        assert_eq!(gradients.reached(), [false, true, false]);
        assert!(gradients.requests_any(0..2) && !gradients.requests_any(2..3) && !gradients.requests(0));
        gradients.view_mut(1).row_major().fill(3.0);
        gradients.renew_lazily();
        gradients.settle();
        assert!(gradients.requests(0) && gradients.requests(2) && gradients.reached() == [false; 3]);
        assert!(gradients.memory().iter().all(|&value| value == 0.0));
        assert_eq!(gradients.memory().len(), Gradients::<f64>::memory_len(&specs()));
    }
}
