//! A vector whose first element sits on a 64-byte boundary (a cache line, a 512-bit register).

use std::alloc::{Layout, alloc, dealloc};
use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use bytemuck::{Pod, Zeroable};
use memmap2::{MmapMut, MmapOptions};

use super::huge_pages::{HUGE_PAGE, advise_huge_pages, give_back_pages};
use super::out_of_memory::OutOfMemory;
use super::parallel::ParallelFor;

/// Alignment of the first element, in bytes.
pub(super) const ALIGNMENT: usize = 64;

/// Bytes that an [`AlignedVec`] of `bytes` bytes takes beside them, on average: parts of huge pages before and behind it,
/// which the C library hands out for something else.
pub fn alignment_bytes(bytes: usize) -> usize {
    if bytes < HUGE_PAGE { 0 } else { HUGE_PAGE / 4 }
}

/// A vector of plain numbers aligned to 64 bytes.
pub struct AlignedVec<T> {
    data: NonNull<T>,
    len: usize,
    owns: PhantomData<T>,
    /// Where the memory is, if it is no allocation.
    map: Option<MmapMut>,
}

// SAFETY: the vector owns its elements exclusively, like `Vec`.
unsafe impl<T: Send> Send for AlignedVec<T> {}
// SAFETY: shared references only give shared slices.
unsafe impl<T: Sync> Sync for AlignedVec<T> {}

impl<T> AlignedVec<T> {
    const EMPTY: Self = Self::without_memory(0);

    /// `len` elements without a size, or none.
    const fn without_memory(len: usize) -> Self {
        AlignedVec { data: NonNull::dangling(), len, owns: PhantomData, map: None }
    }

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
    pub(crate) unsafe fn filled(len: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Self {
        let layout = Self::layout(len);
        if layout.size() == 0 {
            return Self::without_memory(len);
        }
        // SAFETY: the layout's size is not zero.
        let bytes = unsafe { alloc(layout) };
        let Some(data) = NonNull::new(bytes.cast::<T>()) else { OutOfMemory::raise(layout.size()) };
        // Before the first touch, which is what decides the size of a page.
        advise_huge_pages(bytes, layout);
        // In place before `fill`, so that the memory is freed if that panics; plain numbers have nothing to drop.
        let filled = AlignedVec { data, len, owns: PhantomData, map: None };
        // SAFETY: the allocation holds `len` elements, is ours alone, and may be uninitialised at this type.
        fill(unsafe { std::slice::from_raw_parts_mut(data.as_ptr().cast(), len) });
        filled
    }

    /// As [`AlignedVec::filled`] in parts of `part_len` elements: `fill` gets number and memory of each.
    ///
    /// # Safety
    /// `fill` writes every element of its part.
    pub(crate) unsafe fn filled_in_parts(
        len: usize,
        part_len: usize,
        parallel: ParallelFor<'_>,
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
            (parallel.run)(parts.len(), &task);
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
            // The old memory goes first, so that the peak is the larger of the two and not their sum; also where the C
            // library would keep it.
            give_back_pages(self.data.as_ptr().cast(), size_of_val(&self[..]));
            *self = Self::EMPTY;
            *self = Self::zeros(len);
        }
    }
}

impl<T: Zeroable> AlignedVec<T> {
    /// `len` zeros in memory of which only what is written to is ever there: as long as need be on systems that give
    /// out more memory than they have.
    pub fn untouched(len: usize) -> Self {
        let bytes = Self::layout(len).size();
        if bytes == 0 {
            return Self::without_memory(len);
        }
        let map = MmapOptions::new().len(bytes).no_reserve_swap().map_anon();
        let mut map = map.unwrap_or_else(|_| OutOfMemory::raise(bytes));
        let data = NonNull::from(&mut map[..]).cast();
        AlignedVec { data, len, owns: PhantomData, map: Some(map) }
    }
}

impl<T> Drop for AlignedVec<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.len);
        if layout.size() > 0 && self.map.is_none() {
            // SAFETY: allocated in `filled` with this very layout.
            unsafe { dealloc(self.data.as_ptr().cast(), layout) };
        }
    }
}

impl<T: Clone> Clone for AlignedVec<T> {
    fn clone(&self) -> Self {
        let fill = |out: &mut [MaybeUninit<T>]| {
            for (out, value) in out.iter_mut().zip(&self[..]) {
                out.write(value.clone());
            }
        };
        // SAFETY: there are as many values as elements.
        unsafe { Self::filled(self.len, fill) }
    }
}

impl<T: Copy + Default + Send> AlignedVec<T> {
    /// `len` zeros in parts of `part_len` elements, each of which `fill` gets with its number as soon as it is zero: parts
    /// of some 100 KiB are still in a cache then.
    pub fn zeros_in_parts(
        len: usize,
        part_len: usize,
        parallel: ParallelFor<'_>,
        fill: impl Fn(usize, &mut [T]) + Sync,
    ) -> Self {
        let fill_zeros = |number: usize, out: &mut [MaybeUninit<T>]| {
            out.fill(MaybeUninit::new(T::default()));
            // SAFETY: every element has just been written.
            fill(number, unsafe { &mut *(std::ptr::from_mut(out) as *mut [T]) });
        };
        // SAFETY: every element of a part is written.
        unsafe { Self::filled_in_parts(len, part_len.max(1), parallel, fill_zeros) }
    }
}

impl<T: Copy + Send + Sync> AlignedVec<T> {
    /// A copy of `values`.
    pub fn copied(values: &[T], parallel: ParallelFor<'_>) -> Self {
        let part_len = values.len().div_ceil(parallel.count).max(1);
        let fill = |number: usize, out: &mut [MaybeUninit<T>]| {
            for (out, &value) in out.iter_mut().zip(&values[number * part_len..]) {
                out.write(value);
            }
        };
        // SAFETY: there are as many values as elements, so each part finds its own.
        unsafe { Self::filled_in_parts(values.len(), part_len, parallel, fill) }
    }
}

impl<T: Pod> AlignedVec<T> {
    /// A copy of the whole numbers that `bytes` hold, wherever in memory those are.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let size = size_of::<T>();
        Self::from_fn(bytes.len() / size, |i| bytemuck::pod_read_unaligned(&bytes[i * size..][..size]))
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
        // SAFETY: `data` points to `len` elements, initialised by `filled` or zeros of `untouched`, or is dangling with
        // `len` 0.
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
    fn parts_are_zeros_before_they_are_filled() {
        let backwards = |count: usize, task: &dyn Fn(usize)| (0..count).rev().step_by(2).for_each(task);
        for run in [ParallelFor::NONE, ParallelFor { count: 3, run: &|count, task| backwards(count, task) }] {
            let v = AlignedVec::<i32>::zeros_in_parts(10, 4, run, |number, part| part[1] = number as i32 + 1);
            assert_eq!(v[..], [0, 1, 0, 0, 0, 2, 0, 0, 0, 3]);
        }
        assert!(AlignedVec::<i32>::zeros_in_parts(0, 0, ParallelFor::NONE, |_, _| ()).is_empty());
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri maps no memory")]
    fn untouched_memory_is_zero_and_as_long_as_need_be() {
        let mut v = AlignedVec::<f64>::untouched(1 << 40);
        v[1 << 39] = 3.0;
        assert_eq!((v.len(), v[0], v[1 << 39], v[(1 << 40) - 1]), (1 << 40, 0.0, 3.0, 0.0));
        assert!(v.as_ptr().addr().is_multiple_of(ALIGNMENT));
        assert!(AlignedVec::<f32>::untouched(0).is_empty());
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
