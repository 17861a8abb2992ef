//! Threads, scratch memory and interruption: how a computation runs, apart from what it computes.

mod cpus;
mod exclusive;
#[cfg(any(test, feature = "fault-injection"))]
mod fault;
pub mod fork;
mod pool;
mod run_to_end;
mod scratch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kernels::{Dtype, Isa, PackedMatrix, Real};

pub use cpus::{default_threads, quota_cpus, set_default_threads};
pub use exclusive::{Exclusive, Taken, Whole, take_together, take_whole};
#[cfg(any(test, feature = "fault-injection"))]
pub use fault::Fault;
#[cfg(feature = "fault-injection")]
pub use fault::{ELSEWHERE, ENTRY};
pub use run_to_end::{Progress, internal, run_to_end};
use scratch::CallScratch;
pub use scratch::{ActivationPanels, Buffer, PanelsMut, ScratchPool, TaskScratch};

/// How often a waiting caller looks for an interrupt.
const POLL: Duration = Duration::from_millis(20);

/// Asks whether the computation should stop. Called on the caller's own thread only.
pub type Interrupt<'a> = &'a (dyn Fn() -> bool + Sync);

/// An interrupt that never comes.
pub fn never() -> bool {
    false
}

/// What a computation has at hand: instruction set, threads, scratch memory.
pub struct Context<'a, R> {
    /// Instruction set of every kernel.
    pub isa: Isa,
    threads: usize,
    cancelled: AtomicBool,
    /// The caller's interrupt, when the caller itself does the work and has to ask between tasks.
    inline: Option<(Interrupt<'a>, Instant, AtomicU64)>,
    scratch: &'a CallScratch<'a, R>,
}

/// Runs `work` with `threads` threads, watching `interrupt` from the calling thread.
///
/// `work` must not take what another computation may hold for long (see [`take_together`]): that is for the caller.
///
/// # Errors
/// Those of `work`; [`Error::Interrupted`] when the interrupt came; [`Error::Internal`] if `work` panics.
pub fn run<R: Real, T: Send>(
    isa: Isa,
    threads: usize,
    scratch: &ScratchPool<R>,
    interrupt: Interrupt<'_>,
    work: impl FnOnce(&Context<'_, R>) -> Result<T> + Send,
) -> Result<T> {
    let pool = pool::get(threads);
    let threads = pool.as_ref().map_or(1, |pool| pool.current_num_threads());
    let call_scratch = scratch.check_out(threads);
    let inline = pool.is_none().then(|| (interrupt, Instant::now(), AtomicU64::new(0)));
    let context = Context { isa, threads, cancelled: AtomicBool::new(false), inline, scratch: &call_scratch };
    let work = || {
        let result = catch_unwind(AssertUnwindSafe(|| work(&context)));
        result.unwrap_or_else(|panic| Err(internal(panic.as_ref())))
    };
    let Some(pool) = pool else { return work() };

    let done = (Mutex::new(None), Condvar::new());
    pool.in_place_scope(|scope| {
        let done = &done;
        scope.spawn(move |_| {
            let result = work();
            *lock(&done.0) = Some(result);
            done.1.notify_one();
        });
        let mut result = lock(&done.0);
        while result.is_none() {
            result = match done.1.wait_timeout(result, POLL) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
            if result.is_none() && !context.is_cancelled() {
                // Not under the lock: an interrupt may take its time, the worker must not.
                drop(result);
                if interrupt() {
                    context.cancelled.store(true, Ordering::Relaxed);
                }
                result = lock(&done.0);
            }
        }
    });
    let result = lock(&done.0).take();
    result.unwrap_or_else(|| Err(Error::Internal("a computation ended without a result".into())))
}

/// Where a build for tests can be made to panic, outside the tasks of computations.
pub(crate) fn inject_fault() {
    #[cfg(feature = "fault-injection")]
    ELSEWHERE.inject_fault();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R: Real> Context<'_, R> {
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
        if let Some((interrupt, start, last)) = &self.inline {
            let now = start.elapsed().as_millis() as u64;
            if now >= last.load(Ordering::Relaxed) + POLL.as_millis() as u64 {
                last.store(now, Ordering::Relaxed);
                if interrupt() {
                    self.cancelled.store(true, Ordering::Relaxed);
                }
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
        tasks: impl ExactSizeIterator<Item = T>,
        work: impl Fn(T, &mut TaskScratch<R>) + Sync,
    ) -> Result<()> {
        let run = |task: T| {
            #[cfg(any(test, feature = "fault-injection"))]
            self.scratch.pool().fault.inject_fault();
            if !self.poll() {
                let worker =
                    if self.inline.is_some() { 0 } else { rayon::current_thread_index().unwrap_or(0) };
                work(task, &mut self.scratch.task(worker));
            }
        };
        if self.threads == 1 || tasks.len() == 1 {
            tasks.for_each(run);
        } else {
            let tasks: Vec<T> = tasks.collect();
            tasks.into_par_iter().with_max_len(1).for_each(run);
        }
        if self.is_cancelled() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// A buffer of `len` elements with unspecified contents, returned to the scratch memory when dropped.
    pub fn buffer(&self, len: usize) -> Buffer<R> {
        self.scratch.pool().buffer(len)
    }

    /// Memory for `count` right operands of `k x n` that are computed on the way; see [`ActivationPanels`].
    pub fn panels(&self, dtype: Dtype, count: usize, k: usize, n: usize) -> ActivationPanels<R> {
        ActivationPanels::new(self.scratch.pool(), dtype, count, k, n)
    }

    /// The transpose of `matrix` as a right operand: for `dX = dY W^T`.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn transposed(&self, matrix: &PackedMatrix<R>) -> Result<ActivationPanels<R>> {
        let mut transposed = self.panels(matrix.dtype(), 1, matrix.n(), matrix.k());
        self.each(transposed.chunks_mut(1).into_iter().enumerate(), |(panel, mut out), _| {
            out.transpose(self.isa, &matrix.view(), panel);
        })?;
        Ok(transposed)
    }
}
