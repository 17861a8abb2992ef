//! Huge pages for large memory.

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
