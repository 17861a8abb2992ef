//! Memory whose finished beginning is lent to others while its owner still writes the rest.

use std::cell::UnsafeCell;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Memory of one owner, who may lease it out. While a [`Lease`] or a [`LeasedSlice`] of it exists, what the owner has
/// declared finished is theirs, and the owner's access to it panics; the rest stays the owner's.
///
/// `O` is what holds the memory, and gives it back when it is dropped.
pub struct LeasableMemory<T, O> {
    shared: Arc<Shared<T, O>>,
}

/// The right to the finished beginning of the memory.
pub struct Lease<T, O> {
    active: Arc<Active<T, O>>,
}

/// Some of the finished memory, of which there is no other slice.
pub struct LeasedSlice<T, O> {
    active: Arc<Active<T, O>>,
    range: Range<usize>,
}

struct Shared<T, O> {
    start: NonNull<T>,
    len: usize,
    /// Whether there are leases or slices.
    is_leased: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    /// Nobody looks into it before it is alone again. In a cell, since what it holds is written meanwhile.
    owner: UnsafeCell<O>,
}

#[derive(Default)]
struct State {
    /// Where the part begins that the owner still writes.
    finished: usize,
    /// What there are slices of.
    slices: Vec<Range<usize>>,
}

/// Ends the lease when the last one who has part in it is gone.
struct Active<T, O>(Arc<Shared<T, O>>);

// SAFETY: the memory behind `start` is reached by one thread at a time: the owner's handle gives what is not finished, by
// its own borrow rules; slices, which do not overlap, give what is. `owner` is only moved and dropped.
unsafe impl<T: Send, O: Send> Send for Shared<T, O> {}
// SAFETY: as above; a shared reference gives nobody access to the memory.
unsafe impl<T: Send + Sync, O: Send> Sync for Shared<T, O> {}

impl<T, O: DerefMut<Target = [T]>> LeasableMemory<T, O> {
    /// Takes over `owner` and the memory that it holds.
    pub fn new(owner: O) -> Self {
        let (is_leased, state, changed) = (AtomicBool::new(false), Mutex::default(), Condvar::new());
        let (start, owner) = (NonNull::dangling(), UnsafeCell::new(owner));
        let mut shared = Arc::new(Shared { start, len: 0, is_leased, state, changed, owner });
        // Where it stays from now on, whether it holds its values inside or elsewhere.
        if let Some(shared) = Arc::get_mut(&mut shared) {
            let memory = NonNull::from(&mut **shared.owner.get_mut());
            (shared.start, shared.len) = (memory.cast(), memory.len());
        }
        LeasableMemory { shared }
    }
}

impl<T, O> LeasableMemory<T, O> {
    /// Number of values.
    pub fn value_count(&self) -> usize {
        self.shared.len
    }

    /// Whether there are leases or slices of leased memory.
    pub fn is_leased(&self) -> bool {
        self.shared.is_leased.load(Ordering::Acquire)
    }

    /// Some of the values.
    ///
    /// # Panics
    /// If there are not so many, or they are on lease.
    pub fn slice(&self, range: Range<usize>) -> &[T] {
        self.check(&range);
        // SAFETY: the range lies in the memory and is not on lease; the owner's borrow rules do the rest.
        unsafe { std::slice::from_raw_parts(self.shared.start.as_ptr().add(range.start), range.len()) }
    }

    /// The same, to be written.
    ///
    /// # Panics
    /// As [`LeasableMemory::slice`].
    pub fn slice_mut(&mut self, range: Range<usize>) -> &mut [T] {
        self.check(&range);
        // SAFETY: as in `slice`.
        unsafe { std::slice::from_raw_parts_mut(self.shared.start.as_ptr().add(range.start), range.len()) }
    }

    /// Two parts at once.
    ///
    /// # Panics
    /// As [`LeasableMemory::slice`], and if they overlap.
    pub fn two_slices_mut(&mut self, [a, b]: [Range<usize>; 2]) -> [&mut [T]; 2] {
        self.check(&a);
        self.check(&b);
        assert!(a.end <= b.start || b.end <= a.start, "{a:?} and {b:?} overlap");
        // SAFETY: as in `slice`, and the two do not overlap.
        [a, b].map(|range| unsafe {
            std::slice::from_raw_parts_mut(self.shared.start.as_ptr().add(range.start), range.len())
        })
    }

    fn check(&self, range: &Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.shared.len, "{range:?} of {}", self.shared.len);
        if self.is_leased() && !range.is_empty() {
            let finished = self.shared.lock().finished;
            assert!(range.start >= finished, "{range:?} is on lease, as all up to {finished}");
        }
    }

    /// Leases out what is finished, at first nothing; `None` if it is leased already.
    pub fn lease(&mut self) -> Option<Lease<T, O>> {
        if self.is_leased() {
            return None;
        }
        *self.shared.lock() = State::default();
        self.shared.is_leased.store(true, Ordering::Release);
        Some(Lease { active: Arc::new(Active(self.shared.clone())) })
    }

    /// Declares all values before `end` finished: whoever waits for them may have them. Without a lease, nothing happens.
    pub fn finish(&mut self, end: usize) {
        if self.is_leased() {
            let mut state = self.shared.lock();
            state.finished = state.finished.max(end.min(self.shared.len));
            drop(state);
            self.shared.changed.notify_all();
        }
    }

    /// What holds the memory.
    ///
    /// # Panics
    /// If it is on lease.
    pub fn into_owner(self) -> O {
        match Arc::try_unwrap(self.shared) {
            Ok(shared) => shared.owner.into_inner(),
            Err(_) => panic!("memory is on lease"),
        }
    }
}

impl<T, O> Shared<T, O> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T, O> Lease<T, O> {
    /// Number of values, finished or not.
    pub fn value_count(&self) -> usize {
        self.active.0.len
    }

    /// Waits until all values before `end` are finished.
    pub fn wait(&self, end: usize) {
        let shared = &self.active.0;
        let mut state = shared.lock();
        while state.finished < end.min(shared.len) {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Some of the values; `None` if not all of them are finished, or there is a slice of one of them.
    pub fn slice(&self, range: Range<usize>) -> Option<LeasedSlice<T, O>> {
        let mut state = self.active.0.lock();
        let overlaps = state.slices.iter().any(|other| other.start < range.end && range.start < other.end);
        if range.start > range.end || range.end > state.finished || overlaps {
            return None;
        }
        state.slices.push(range.clone());
        Some(LeasedSlice { active: self.active.clone(), range })
    }
}

impl<T, O> Deref for LeasedSlice<T, O> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the range is finished, so that the owner leaves it alone, and of no other slice.
        unsafe {
            std::slice::from_raw_parts(self.active.0.start.as_ptr().add(self.range.start), self.range.len())
        }
    }
}

impl<T, O> DerefMut for LeasedSlice<T, O> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.active.0.start.as_ptr().add(self.range.start),
                self.range.len(),
            )
        }
    }
}

impl<T, O> Drop for LeasedSlice<T, O> {
    fn drop(&mut self) {
        let mut state = self.active.0.lock();
        if let Some(place) = state.slices.iter().position(|slice| *slice == self.range) {
            state.slices.swap_remove(place);
        }
    }
}

impl<T, O> Drop for Active<T, O> {
    fn drop(&mut self) {
        self.0.is_leased.store(false, Ordering::Release);
    }
}

impl<T, O> fmt::Debug for LeasableMemory<T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeasableMemory({} values, leased: {})", self.value_count(), self.is_leased())
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn memory(len: usize) -> LeasableMemory<u32, Vec<u32>> {
        LeasableMemory::new((0..len as u32).collect())
    }

    #[test]
    fn the_finished_part_is_the_borrowers_and_the_rest_the_owners() {
        let mut memory = memory(10);
        let lease = memory.lease().expect("nobody has it");
        assert!(memory.lease().is_none() && lease.slice(0..1).is_none());
        std::thread::scope(|scope| {
            let borrower = scope.spawn(|| {
                for (from, to) in [(0, 4), (4, 10)] {
                    lease.wait(to);
                    let mut slice = lease.slice(from..to).expect("finished");
                    assert!(lease.slice(to - 1..to).is_none(), "there is a slice of it");
                    slice.iter_mut().for_each(|value| *value += 100);
                }
            });
            memory.slice_mut(0..4)[3] = 30;
            memory.finish(4);
            memory.slice_mut(4..10)[0] = 40;
            let [a, b] = memory.two_slices_mut([8..10, 5..6]);
            (a[0], b[0]) = (80, 50);
            memory.finish(10);
            borrower.join().unwrap();
        });
        assert!(catch_unwind(AssertUnwindSafe(|| memory.slice(9..10).len())).is_err(), "it is on lease");
        drop(lease);
        assert_eq!(memory.slice(0..10), [100, 101, 102, 130, 140, 150, 106, 107, 180, 109]);
        assert_eq!(memory.into_owner().len(), 10);
    }

    #[test]
    fn slices_keep_the_memory_and_the_lease() {
        let mut memory = memory(3);
        let lease = memory.lease().expect("nobody has it");
        memory.finish(usize::MAX);
        let slice = lease.slice(1..3).expect("finished");
        drop(lease);
        assert!(memory.is_leased() && memory.lease().is_none());
        drop(memory);
        assert_eq!(*slice, [1, 2]);
    }

    #[test]
    fn parts_that_overlap_or_are_outside_are_refused() {
        let mut memory = memory(3);
        assert!(catch_unwind(AssertUnwindSafe(|| memory.slice(2..4).len())).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| memory.two_slices_mut([0..2, 1..3]).len())).is_err());
    }
}
