//! Plain vectors whose memory may be refused: then they panic with [`OutOfMemory`], which computations catch at their end
//! and return as an error.

use std::alloc::Layout;

use bytemuck::Zeroable;
use bytemuck::allocation::try_zeroed_vec;

use super::huge_pages::advise_huge_pages;
use super::out_of_memory::OutOfMemory;

/// `len` zeros in a plain vector; where the system refuses the memory, a panic with [`OutOfMemory`].
pub fn alloc_zeroed<T: Zeroable>(len: usize) -> Vec<T> {
    try_zeroed_vec(len).unwrap_or_else(|()| OutOfMemory::raise(len.saturating_mul(size_of::<T>())))
}

/// A vector with room for `len` values; where the system refuses the memory, a panic with [`OutOfMemory`].
pub fn alloc_room<T>(len: usize) -> Vec<T> {
    let mut empty = Vec::new();
    if empty.try_reserve_exact(len).is_err() {
        OutOfMemory::raise(len.saturating_mul(size_of::<T>()));
    }
    empty
}

/// The values in a vector; where the system refuses the memory, a panic with [`OutOfMemory`].
pub fn alloc_collect<T>(values: impl ExactSizeIterator<Item = T>) -> Vec<T> {
    alloc_collect_up_to(values.len(), values)
}

/// The same for at most `most` values, whose number is known at their end only.
pub fn alloc_collect_up_to<T>(most: usize, values: impl Iterator<Item = T>) -> Vec<T> {
    let mut all = alloc_room(most);
    all.extend(values.take(most));
    all
}

/// Appends the values to `all`; where the system refuses the memory, a panic with [`OutOfMemory`].
pub fn alloc_extend<T>(all: &mut Vec<T>, values: Vec<T>) {
    if all.try_reserve(values.len()).is_err() {
        OutOfMemory::raise(values.len().saturating_mul(size_of::<T>()));
    }
    all.extend(values);
}

/// `len` zeros in a plain vector, in huge pages where it is large: for what is as large as the weights and passed over in
/// every step of training.
pub fn alloc_zeroed_huge<T: Zeroable>(len: usize) -> Vec<T> {
    /// Smallest page of any system, to whose boundaries advice is rounded; where pages are larger it is refused.
    const PAGE: usize = 4096;
    let mut values = alloc_zeroed::<T>(len);
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

#[cfg(test)]
mod tests {
    use super::super::aligned::AlignedVec;
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "Miri ends where memory does")]
    fn refused_memory_is_a_panic_that_says_so() {
        use std::hint::black_box;
        let most = usize::MAX / 64;
        // Opaque: memory that nobody uses need not be asked for.
        let asks: [fn(usize); 2] = [
            |len| drop(black_box(AlignedVec::<f32>::zeros(len))),
            |len| drop(black_box(alloc_zeroed::<f32>(len))),
        ];
        for ask in asks {
            let panic = std::panic::catch_unwind(|| ask(most)).unwrap_err();
            assert_eq!(panic.downcast_ref::<OutOfMemory>().unwrap().bytes, 4 * most);
        }
        assert_eq!(alloc_zeroed::<f64>(3), [0.0; 3]);
        assert!(alloc_zeroed::<f32>(0).is_empty());
    }
}
