//! What dry runs count.

use std::sync::Mutex;

use bytemuck::Zeroable;

use super::panics::lock;
use crate::sys::{AlignedVec, alignment_bytes};

/// What buffers have: plain numbers.
pub trait Element: Copy + Default + Zeroable {}
impl<T: Copy + Default + Zeroable> Element for T {}

/// What a dry run has taken so far.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Account>);

#[derive(Debug, Default)]
struct Account {
    /// Bytes of buffers, which are kept to the end, and of results.
    held: usize,
    /// Most bytes at once, with those of code that is not ours.
    peak: usize,
    /// Most threads that have something to do at once.
    busy: usize,
}

impl Ledger {
    /// Makes `data` a buffer of at least `len` elements as [`AlignedVec::ensure_len`] does, and counts that.
    pub fn ensure_len<T: Element>(&self, data: &mut AlignedVec<T>, len: usize) {
        let (before, after) = (size_of_val(&data[..]), len.saturating_mul(size_of::<T>()));
        if data.len() < len {
            self.add_held(after - before);
            *data = AlignedVec::untouched(len);
        }
    }

    /// Counts bytes that are kept to the end.
    pub fn add_held(&self, bytes: usize) {
        let mut account = lock(&self.0);
        account.held = account.held.saturating_add(bytes.saturating_add(alignment_bytes(bytes)));
        account.peak = account.peak.max(account.held);
    }

    /// Counts the threads of a step.
    pub fn add_busy(&self, threads: usize) {
        let mut account = lock(&self.0);
        account.busy = account.busy.max(threads);
    }

    /// Counts bytes that are not from the scratch memory and are given back at once.
    pub fn add_outside(&self, bytes: usize) {
        let mut account = lock(&self.0);
        account.peak = account.peak.max(account.held.saturating_add(bytes));
    }

    /// Most threads that have something to do at once.
    pub fn busy(&self) -> usize {
        lock(&self.0).busy
    }

    /// Most bytes at once.
    pub fn peak(&self) -> usize {
        lock(&self.0).peak
    }
}
