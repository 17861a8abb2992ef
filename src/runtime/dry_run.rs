//! Dry runs: a computation asks for all its memory and gets none of it, and nearly nothing is computed.
//!
//! Buffers have their lengths, but their memory is there only where it is written to. Of the tasks of each step the first
//! alone is done, on one thread and without products of matrices: it shows how much scratch memory a thread needs. So
//! whatever the computation takes from its [`Context`] is counted, without a list of it anywhere.

use std::sync::Arc;

use super::context::Context;
use super::interrupt::never;
use super::ledger::Element;
use super::panics::catch;
use super::scratch::{Buffer, ScratchPool};
use crate::error::Result;
use crate::kernels::{Isa, Real};
use crate::sys::alloc_collect;

/// Bytes of a thread's stack and of what a task has beside its scratch memory.
const THREAD: usize = 64 << 10;
/// Bytes of lists, of the interpreter, and of what allocators keep.
const REST: usize = 3 << 19;

/// Bytes that `work` would take at its peak on `threads` threads with an empty [`ScratchPool`], its results included.
///
/// # Errors
/// Those of `work`; [`crate::error::Error::Memory`] if the system does not even give out so many addresses.
pub fn dry_run<R: Real>(threads: usize, work: impl FnOnce(&Context<'_, R>) -> Result<()>) -> Result<usize> {
    let pool = ScratchPool::counting();
    let scratch = pool.check_out(1);
    let context = Context::new(Isa::NONE, threads, &never, &scratch);
    catch(|| work(&context))?;
    let Some(ledger) = pool.ledger() else { return Ok(0) };
    let stacks = if threads > 1 { threads * THREAD } else { 0 };
    let of_threads = ledger.busy() * scratch.task(0).bytes() + stacks;
    Ok(ledger.peak().saturating_add(of_threads).saturating_add(REST))
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

    /// As [`Context::stand_in`], for memory that is there only once it has been written to, by when it is to be counted: see
    /// [`Context::count_written`].
    pub fn stand_in_for_zeros<T: Element>(&self, len: usize) -> Option<Buffer<T>> {
        self.is_dry().then(|| Buffer::untouched(len))
    }

    /// In a dry run, counts `len` elements that [`Context::stand_in_for_zeros`] stands in for.
    pub fn count_written<T>(&self, len: usize) {
        if let Some(ledger) = self.scratch.pool().ledger() {
            ledger.add_held(len.saturating_mul(size_of::<T>()));
        }
    }

    /// A copy of `values` for the caller; empty in a dry run, which counts it.
    pub fn copied<T: Element>(&self, values: &[T]) -> Vec<T> {
        if self.stand_in::<T>(values.len()).is_some() {
            Vec::new()
        } else {
            alloc_collect(values.iter().copied())
        }
    }

    /// Does `work`, which takes `bytes` that are not from here and gives them back; a dry run only counts them.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn outside(&self, bytes: usize, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let Some(ledger) = self.scratch.pool().ledger() else { return work() };
        ledger.add_outside(bytes);
        Ok(())
    }
}
