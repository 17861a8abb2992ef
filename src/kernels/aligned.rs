//! A vector whose first element sits on a 64-byte boundary (a cache line, a 512-bit register).

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of the first element, in bytes.
const ALIGNMENT: usize = 64;

/// Allocations from this size on ask the operating system for huge pages: weights are read front to back once per
/// token block, and 4 KiB pages would cost a walk of the page table every 32 rows of a panel.
const HUGE_PAGE: usize = 2 << 20;

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
        layout.unwrap_or_else(|_| panic!("{len} elements exceed the address space"))
    }
}

impl<T> AlignedVec<T> {
    /// `len` elements, the `i`-th being `element(i)`.
    fn from_fn(len: usize, element: impl Fn(usize) -> T) -> Self {
        let layout = Self::layout(len);
        if layout.size() == 0 {
            return AlignedVec { len, ..Self::EMPTY };
        }
        // SAFETY: the layout's size is not zero.
        let bytes = unsafe { alloc(layout) };
        let Some(data) = NonNull::new(bytes.cast::<T>()) else { handle_alloc_error(layout) };
        // Before the first touch, which is what decides the size of a page.
        advise_huge_pages(bytes, layout);
        for i in 0..len {
            // SAFETY: the allocation holds `len` elements.
            unsafe { data.add(i).write(element(i)) };
        }
        AlignedVec { data, len, owns: PhantomData }
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

/// Asks for huge pages behind `bytes`; a refusal only costs speed.
fn advise_huge_pages(bytes: *mut u8, layout: Layout) {
    if cfg!(all(target_os = "linux", not(miri))) && layout.size() >= HUGE_PAGE {
        #[cfg(target_os = "linux")]
        // SAFETY: the range was just allocated, begins on a page boundary (the layout's alignment), and the advice
        // does not change its contents.
        unsafe {
            libc::madvise(bytes.cast(), layout.size(), libc::MADV_HUGEPAGE)
        };
    }
}

impl<T> Drop for AlignedVec<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.len);
        if layout.size() > 0 {
            // SAFETY: allocated in `from_fn` with this very layout.
            unsafe { dealloc(self.data.as_ptr().cast(), layout) };
        }
    }
}

impl<T: Clone> Clone for AlignedVec<T> {
    fn clone(&self) -> Self {
        Self::from_fn(self.len, |i| self[i].clone())
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
        // SAFETY: `data` points to `len` elements, initialised at allocation, or is dangling with `len` 0.
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
            assert!(v.iter().all(|&x| x == 0.0));
        }
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
