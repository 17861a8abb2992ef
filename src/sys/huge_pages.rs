//! Advice to the operating system about the pages behind large memory.

use std::alloc::Layout;

/// Allocations from this size on ask the operating system for huge pages: weights are read front to back once per
/// token block, and 4 KiB pages would cost a walk of the page table every 32 rows of a panel.
pub(super) const HUGE_PAGE: usize = 2 << 20;

/// Asks for huge pages behind `bytes`; a refusal only costs speed.
pub(super) fn advise_huge_pages(bytes: *mut u8, layout: Layout) {
    #[cfg(all(target_os = "linux", not(miri)))]
    if layout.size() >= HUGE_PAGE {
        // SAFETY: the caller owns the range, and the advice does not change its contents.
        unsafe { libc::madvise(bytes.cast(), layout.size(), libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = (bytes, layout);
}

/// Gives the pages that lie wholly in the range back to the operating system; the range stays the caller's, with unspecified
/// contents. For memory that is about to be freed, which the C library may keep.
pub(super) fn give_back_pages(bytes: *mut u8, size: usize) {
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        // SAFETY: asks for a number.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(0);
        if !page.is_power_of_two() {
            return;
        }
        let skipped = bytes.align_offset(page);
        let whole = size.saturating_sub(skipped) / page * page;
        if whole > 0 {
            // SAFETY: the pages lie within the caller's range, who needs its contents no more.
            unsafe { libc::madvise(bytes.wrapping_add(skipped).cast(), whole, libc::MADV_DONTNEED) };
        }
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = (bytes, size);
}
