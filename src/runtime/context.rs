//! One computation: its threads, its scratch memory, its interruption.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::Instant;

use super::interrupt::{Interrupt, POLL_INTERVAL};
use super::operands::{ActivationPanels, TransposedActivations};
use super::panics::catch;
use super::parallel::{for_each, thread_count, with_threads};
use super::scratch::{Buffer, CallScratch, ScratchPool, TaskScratch};
use crate::error::{Error, Result};
use crate::kernels::{Dtype, Isa, PackedMatrix, Real};
use crate::sys::{Work, timed};

/// What a computation has at hand: instruction set, threads, scratch memory.
pub struct Context<'a, R> {
    /// Instruction set of every kernel.
    pub isa: Isa,
    pub(super) threads: usize,
    cancelled: AtomicBool,
    interrupt: Interrupt<'a>,
    /// The thread that may ask `interrupt`.
    caller: ThreadId,
    start: Instant,
    /// Milliseconds from `start` to the last time that `interrupt` was asked.
    last_poll: AtomicU64,
    pub(super) scratch: &'a CallScratch<'a, R>,
}

/// Runs `work` on the calling thread; `threads` threads share the tasks that it has.
///
/// # Errors
/// Those of `work`; [`Error::Interrupted`] when the interrupt came; [`Error::Memory`] and [`Error::Internal`] if `work`
/// panics.
pub fn run<R: Real, T>(
    isa: Isa,
    threads: usize,
    scratch: &ScratchPool<R>,
    interrupt: Interrupt<'_>,
    work: impl FnOnce(&Context<'_, R>) -> Result<T>,
) -> Result<T> {
    with_threads(threads, || {
        let threads = thread_count();
        let call_scratch = scratch.check_out(threads);
        let context = Context::new(isa, threads, interrupt, &call_scratch);
        let _time = timed(Work::Other);
        catch(|| work(&context))
    })
}

impl<'a, R: Real> Context<'a, R> {
    pub(super) fn new(
        isa: Isa,
        threads: usize,
        interrupt: Interrupt<'a>,
        scratch: &'a CallScratch<'a, R>,
    ) -> Self {
        Context {
            isa,
            threads,
            cancelled: AtomicBool::new(false),
            interrupt,
            caller: std::thread::current().id(),
            start: Instant::now(),
            last_poll: AtomicU64::new(0),
            scratch,
        }
    }

    /// Threads that share the work.
    pub fn threads(&self) -> usize {
        self.threads
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Whether the computation is to stop. Asks the caller's interrupt if this is the caller's thread and the last time
    /// is long enough ago.
    pub fn poll(&self) -> bool {
        let now = self.start.elapsed().as_millis() as u64;
        if now >= self.last_poll.load(Ordering::Relaxed) + POLL_INTERVAL.as_millis() as u64
            && std::thread::current().id() == self.caller
        {
            self.last_poll.store(now, Ordering::Relaxed);
            if (self.interrupt)() {
                self.cancelled.store(true, Ordering::Relaxed);
            }
        }
        self.is_cancelled()
    }

    /// Fails if the interrupt came; for work that is no sequence of tasks, every few milliseconds.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn check(&self) -> Result<()> {
        if self.poll() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Does `work` once for each of `tasks`, over all threads; each task has the scratch memory of its thread to itself.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; tasks that had begun are finished.
    pub fn each<T: Send>(
        &self,
        mut tasks: impl Iterator<Item = T> + Send,
        work: impl Fn(T, &mut TaskScratch<R>) + Sync,
    ) -> Result<()> {
        if let Some(ledger) = self.scratch.pool().ledger() {
            let Some(first) = tasks.next() else { return Ok(()) };
            work(first, &mut self.scratch.task(0));
            ledger.add_busy(1 + tasks.take(self.threads - 1).count());
            return Ok(());
        }
        for_each(tasks, |task, thread| {
            #[cfg(any(test, feature = "fault-injection"))]
            self.scratch.pool().fault.inject_fault();
            if !self.poll() {
                work(task, &mut self.scratch.task(thread));
            }
        });
        if self.is_cancelled() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// A buffer of `len` elements with unspecified contents, returned to the scratch memory when dropped.
    pub fn buffer(&self, len: usize) -> Buffer<R> {
        self.scratch.pool().buffer(len)
    }

    /// As [`Context::buffer`], for indices.
    pub fn numbers(&self, len: usize) -> Buffer<u32> {
        self.scratch.pool().numbers(len)
    }

    /// Memory for `count` right operands of `k x n` that are computed on the way; see [`ActivationPanels`].
    pub fn panels(&self, dtype: Dtype, count: usize, k: usize, n: usize) -> ActivationPanels<R> {
        ActivationPanels::new(self.scratch.pool(), dtype, count, k, n)
    }

    /// Memory for a left operand of `rows` rows of `k` values that is computed on the way; see [`TransposedActivations`].
    pub fn transposed_activations(&self, dtype: Dtype, rows: usize, k: usize) -> TransposedActivations<R> {
        TransposedActivations::new(self.scratch.pool(), dtype, rows, k)
    }

    /// The transpose of `matrix` as a right operand: for `dX = dY W^T`.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn transposed(&self, matrix: &PackedMatrix<R>) -> Result<ActivationPanels<R>> {
        let _time = timed(Work::WeightTranspose);
        let mut transposed = self.panels(matrix.dtype(), 1, matrix.n(), matrix.k());
        self.each(transposed.chunks_mut(1).enumerate(), |(panel, mut out), _| {
            out.transpose(self.isa, &matrix.view(), panel);
        })?;
        Ok(transposed)
    }
}
