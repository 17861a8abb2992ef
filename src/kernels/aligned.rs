//! A vector whose first element sits on a 64-byte boundary (a cache line, a 512-bit register).

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use super::Real;

/// Alignment of the first element, in bytes.
const ALIGNMENT: usize = 64;

/// Allocations from this size on ask the operating system for huge pages: weights are read front to back once per
/// token block, and 4 KiB pages would cost a walk of the page table every 32 rows of a panel.
const HUGE_PAGE: usize = 2 << 20;

/// What a panic carries when the system refuses memory: computations end with an error then, not with the process.
#[derive(Debug)]
pub struct OutOfMemory {
    /// How much was asked for.
    pub bytes: usize,
}

impl OutOfMemory {
    /// Panics without the message of a bug, since it is none.
    fn raise(bytes: usize) -> ! {
        std::panic::resume_unwind(Box::new(OutOfMemory { bytes }))
    }
}

/// Work on the part with a number.
pub type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// Threads that a caller lends to the filling of large memory.
#[derive(Clone, Copy)]
pub struct ParallelFor<'a> {
    /// Number of threads.
    pub count: usize,
    /// Calls the function it is given once with each number below the first argument, in any order, at once if it likes.
    pub run: &'a dyn Fn(usize, &Task<'_>),
}

impl ParallelFor<'_> {
    /// The caller's thread alone.
    pub const NONE: ParallelFor<'static> =
        ParallelFor { count: 1, run: &|count, task| (0..count).for_each(task) };
}

/// A vector of plain numbers aligned to 64 bytes.
pub struct AlignedVec<T> {
    data: NonNull<T>,
    len: usize,
    owns: PhantomData<T>,
}

// SAFETY: the vector owns its elements exclusively, like `Vec`.
unsafe impl<T: Send> Send for AlignedVec<T> {}
// SAFETY: shared references only give shared slices.
unsafe impl<T: Sync> Sync for AlignedVec<T> {}

impl<T> AlignedVec<T> {
    const EMPTY: Self = AlignedVec { data: NonNull::dangling(), len: 0, owns: PhantomData };

    /// The memory of `len` elements.
    fn layout(len: usize) -> Layout {
        let aligned = |l: Layout| l.align_to(if l.size() >= HUGE_PAGE { HUGE_PAGE } else { ALIGNMENT });
        let layout = Layout::array::<T>(len).and_then(aligned);
        layout.unwrap_or_else(|_| OutOfMemory::raise(len.saturating_mul(size_of::<T>())))
    }
}

impl<T> AlignedVec<T> {
    /// `len` elements that `fill` writes: memory is touched once, not set to zero first.
    ///
    /// # Safety
    /// `fill` writes every element.
    pub(super) unsafe fn filled(len: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Self {
        let layout = Self::layout(len);
        if layout.size() == 0 {
            return AlignedVec { len, ..Self::EMPTY };
        }
        // SAFETY: the layout's size is not zero.
        let bytes = unsafe { alloc(layout) };
        let Some(data) = NonNull::new(bytes.cast::<T>()) else { OutOfMemory::raise(layout.size()) };
        // Before the first touch, which is what decides the size of a page.
        advise_huge_pages(bytes, layout);
        // In place before `fill`, so that the memory is freed if that panics; plain numbers have nothing to drop.
        let filled = AlignedVec { data, len, owns: PhantomData };
        // SAFETY: the allocation holds `len` elements, is ours alone, and may be uninitialised at this type.
        fill(unsafe { std::slice::from_raw_parts_mut(data.as_ptr().cast(), len) });
        filled
    }

    /// As [`AlignedVec::filled`] in parts of `part_len` elements: `fill` gets number and memory of each.
    ///
    /// # Safety
    /// `fill` writes every element of its part.
    pub(super) unsafe fn filled_in_parts(
        len: usize,
        part_len: usize,
        helpers: ParallelFor<'_>,
        fill: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync,
    ) -> Self
    where
        T: Send,
    {
        let fill_all = |out: &mut [MaybeUninit<T>]| {
            let parts: Vec<_> = out.chunks_mut(part_len).map(|part| Mutex::new(Some(part))).collect();
            let task = |number: usize| {
                let part = parts[number].lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(part) = part {
                    fill(number, part);
                }
            };
            (helpers.run)(parts.len(), &task);
            // Whatever they have left out.
            (0..parts.len()).for_each(task);
        };
        // SAFETY: every part is filled.
        unsafe { Self::filled(len, fill_all) }
    }

    /// `len` elements, the `i`-th being `element(i)`.
    fn from_fn(len: usize, element: impl Fn(usize) -> T) -> Self {
        let fill = |out: &mut [MaybeUninit<T>]| {
            out.iter_mut().enumerate().for_each(|(i, out)| {
                out.write(element(i));
            });
        };
        // SAFETY: every element is written.
        unsafe { Self::filled(len, fill) }
    }
}

impl<T: Copy + Default> AlignedVec<T> {
    /// `len` default values (zeros).
    pub fn zeros(len: usize) -> Self {
        Self::from_fn(len, |_| T::default())
    }

    /// Makes room for at least `len` elements, keeping the allocation when it is large enough; the contents are
    /// unspecified (old values or zeros).
    pub fn ensure_len(&mut self, len: usize) {
        if self.len < len {
            // The old memory goes first, so that the peak is the larger of the two and not their sum.
            *self = Self::EMPTY;
            *self = Self::zeros(len);
        }
    }
}

/// `len` zeros in a plain vector; where the system refuses the memory, a panic with [`OutOfMemory`].
pub fn zeroed<R: Real>(len: usize) -> Vec<R> {
    let Ok(layout) = Layout::array::<R>(len) else { OutOfMemory::raise(len.saturating_mul(size_of::<R>())) };
    if layout.size() == 0 {
        return Vec::new();
    }
    // SAFETY: the layout's size is not zero.
    let Some(data) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { OutOfMemory::raise(layout.size()) };
    // SAFETY: allocated as a vector of `len` elements allocates, and zero in all bits is the number zero.
    unsafe { Vec::from_raw_parts(data.as_ptr().cast::<R>(), len, len) }
}

/// The values in a vector; where the system refuses the memory, a panic with [`OutOfMemory`].
pub fn collected<T>(values: impl ExactSizeIterator<Item = T>) -> Vec<T> {
    let mut all = Vec::new();
    if all.try_reserve_exact(values.len()).is_err() {
        OutOfMemory::raise(values.len().saturating_mul(size_of::<T>()));
    }
    all.extend(values);
    all
}

/// `len` zeros in a plain vector, in huge pages where it is large: for what is as large as the weights and passed over in
/// every step of training.
pub fn zeros<R: Real>(len: usize) -> Vec<R> {
    /// Smallest page of any system, to whose boundaries advice is rounded; where pages are larger it is refused.
    const PAGE: usize = 4096;
    let mut values = zeroed::<R>(len);
    let size = size_of_val(&values[..]);
    let bytes = values.as_mut_ptr().cast::<u8>();
    let skipped = bytes.align_offset(PAGE);
    if let Some(size) = size.checked_sub(skipped)
        && let Ok(layout) = Layout::from_size_align(size / PAGE * PAGE, PAGE)
    {
        advise_huge_pages(bytes.wrapping_add(skipped), layout);
    }
    values
}

/// Asks for huge pages behind `bytes`; a refusal only costs speed.
fn advise_huge_pages(bytes: *mut u8, layout: Layout) {
    if cfg!(all(target_os = "linux", not(miri))) && layout.size() >= HUGE_PAGE {
        #[cfg(target_os = "linux")]
        // SAFETY: the caller owns the range, and the advice does not change its contents.
        unsafe {
            libc::madvise(bytes.cast(), layout.size(), libc::MADV_HUGEPAGE)
        };
    }
}

impl<T> Drop for AlignedVec<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.len);
        if layout.size() > 0 {
            // SAFETY: allocated in `filled` with this very layout.
            unsafe { dealloc(self.data.as_ptr().cast(), layout) };
        }
    }
}

impl<T: Clone> Clone for AlignedVec<T> {
    fn clone(&self) -> Self {
        Self::from_fn(self.len, |i| self[i].clone())
    }
}

impl<T: Copy + Send + Sync> AlignedVec<T> {
    /// A copy of `values`.
    pub fn copied(values: &[T], helpers: ParallelFor<'_>) -> Self {
        let part_len = values.len().div_ceil(helpers.count).max(1);
        let fill = |number: usize, out: &mut [MaybeUninit<T>]| {
            for (out, &value) in out.iter_mut().zip(&values[number * part_len..]) {
                out.write(value);
            }
        };
        // SAFETY: there are as many values as elements, so each part finds its own.
        unsafe { Self::filled_in_parts(values.len(), part_len, helpers, fill) }
    }
}

impl<T> Default for AlignedVec<T> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl<T: fmt::Debug> fmt::Debug for AlignedVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self[..], f)
    }
}

impl<T> Deref for AlignedVec<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `data` points to `len` elements, initialised by `filled`, or is dangling with `len` 0.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the memory is ours alone.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_zero() {
        for len in [0, 1, 7, 64, 1000, HUGE_PAGE / 4 + 3] {
            let v = AlignedVec::<f32>::zeros(len);
            assert_eq!(v.len(), len);
            assert!(len == 0 || v.as_ptr().addr().is_multiple_of(ALIGNMENT));
            let step = if cfg!(miri) { 4099 } else { 1 };
            assert!(v.iter().step_by(step).all(|&x| x == 0.0));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri ends where memory does")]
    fn refused_memory_is_a_panic_that_says_so() {
        use std::hint::black_box;
        let most = usize::MAX / 64;
        // Opaque: memory that nobody uses need not be asked for.
        let asks: [fn(usize); 2] =
            [|len| drop(black_box(AlignedVec::<f32>::zeros(len))), |len| drop(black_box(zeroed::<f32>(len)))];
        for ask in asks {
            let panic = std::panic::catch_unwind(|| ask(most)).unwrap_err();
            assert_eq!(panic.downcast_ref::<OutOfMemory>().unwrap().bytes, 4 * most);
        }
        assert_eq!(zeroed::<f64>(3), [0.0; 3]);
        assert!(zeroed::<f32>(0).is_empty());
    }

    #[test]
    fn growing_keeps_large_enough_memory() {
        let mut v = AlignedVec::<i8>::default();
        v.ensure_len(100);
        let at = v.as_ptr();
        v.ensure_len(50);
        assert_eq!((v.as_ptr(), v.len()), (at, 100));
        v.ensure_len(101);
        assert_eq!(v.len(), 101);
    }

    #[test]
    fn a_clone_is_independent() {
        let mut v = AlignedVec::<f64>::zeros(5);
        v[3] = 2.0;
        let copy = v.clone();
        v[3] = 7.0;
        assert_eq!(&copy[..], [0.0, 0.0, 0.0, 2.0, 0.0]);
    }
}
