//! Dry runs: a computation asks for all its memory and gets none of it, and nearly nothing is computed.
//!
//! Buffers have their lengths, but their memory is there only where it is written to. Of the tasks of each step the first
//! alone is done, on one thread and without products of matrices: it shows how much scratch memory a thread needs. So
//! whatever the computation takes from its [`Context`] is counted, without a list of it anywhere.

use std::sync::{Arc, Mutex};

use super::context::Context;
use super::interrupt::never;
use super::panics::{catch, lock};
use super::scratch::{Buffer, Element, ScratchPool};
use crate::error::Result;
use crate::kernels::{Isa, Real};
use crate::sys::AlignedVec;

/// The C library keeps smaller memory that is given back; this is the largest such of glibc.
const RETURNED_FROM: usize = 32 << 20;
/// Bytes of a thread's stack and of what a task has beside its scratch memory.
const THREAD: usize = 192 << 10;

/// What a dry run has taken so far.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Account>);

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
    pub(super) fn ensure_len<T: Element>(&self, data: &mut AlignedVec<T>, len: usize) {
        let (before, after) = (size_of_val(&data[..]), len.saturating_mul(size_of::<T>()));
        if data.len() < len {
            let kept = if before < after.min(RETURNED_FROM) { before } else { 0 };
            lock(&self.0).add(after - before + kept);
            *data = AlignedVec::untouched(len);
        }
    }

    /// Counts the threads of a step.
    pub(super) fn add_busy(&self, threads: usize) {
        let mut account = lock(&self.0);
        account.busy = account.busy.max(threads);
    }
}

impl Account {
    fn add(&mut self, bytes: usize) {
        self.held = self.held.saturating_add(bytes);
        self.peak = self.peak.max(self.held);
    }
}

/// Bytes that `work` would take at its peak on `threads` threads with an empty [`ScratchPool`], its results included.
///
/// # Errors
/// Those of `work`; [`crate::error::Error::Memory`] if the system does not even give out so many addresses.
pub fn dry_run<R: Real>(threads: usize, work: impl FnOnce(&Context<'_, R>) -> Result<()>) -> Result<usize> {
    let pool = ScratchPool::counting();
    let scratch = pool.check_out(1);
    let context = Context::new(Isa::NONE, threads, &never, &scratch);
    catch(|| work(&context))?;
    let Some(Ledger(account)) = pool.ledger() else { return Ok(0) };
    let account = lock(account);
    let stacks = if threads > 1 { threads * THREAD } else { 0 };
    let counted = account.peak.saturating_add(account.busy * scratch.task(0).bytes() + stacks);
    // What allocators, stacks and the interpreter add.
    Ok(counted.saturating_add(counted / 50 + (1 << 20)))
}

impl<R: Real> Context<'_, R> {
    /// Whether this is a dry run, in which buffers hold no values: what reads or writes whole arrays outside of tasks is
    /// to be left out.
    pub fn is_dry(&self) -> bool {
        self.scratch.pool().ledger().is_some()
    }

    /// How many tasks of a step are worth listing: in a dry run, one for each thread.
    pub fn enough_tasks(&self) -> usize {
        if self.is_dry() { self.threads } else { usize::MAX }
    }

    /// In a dry run, what stands for an array of `len` elements that belongs to the caller.
    pub fn stand_in<T: Element>(&self, len: usize) -> Option<Buffer<T>> {
        let ledger = self.scratch.pool().ledger()?;
        Some(Buffer::take(&Arc::default(), Some(ledger), len))
    }

    /// A copy of `values` for the caller; empty in a dry run, which counts it.
    pub fn copied<T: Element>(&self, values: &[T]) -> Vec<T> {
        if self.stand_in::<T>(values.len()).is_some() { Vec::new() } else { values.to_vec() }
    }

    /// Does `work`, which takes `bytes` that are not from here and gives them back; a dry run only counts them.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn outside(&self, bytes: usize, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let Some(Ledger(account)) = self.scratch.pool().ledger() else { return work() };
        let mut account = lock(account);
        account.peak = account.peak.max(account.held.saturating_add(bytes));
        Ok(())
    }
}
