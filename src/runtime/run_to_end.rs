//! Changes that are made wholly or not at all, and that the caller need not wait for.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::{Interrupt, POLL, lock, pool};
use crate::error::{Error, Result};
use crate::sys::OutOfMemory;

/// Where a change is: still to be stopped, begun, or stopped.
#[derive(Debug, Default)]
pub struct Progress(AtomicU8);

const PREPARING: u8 = 0;
const BEGUN: u8 = 1;
const STOPPED: u8 = 2;

impl Progress {
    /// To be asked right before anything is changed: whether it still is to be.
    pub fn begin(&self) -> bool {
        self.0.compare_exchange(PREPARING, BEGUN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Stops what has not begun.
    fn stop(&self) {
        // What has begun goes on.
        let _ = self.0.compare_exchange(PREPARING, STOPPED, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Whether the change is being made or has been.
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Acquire) == BEGUN
    }
}

type Outcome<T> = Arc<(Mutex<Option<Result<T>>>, Condvar)>;
type Job = Box<dyn FnOnce() + Send>;

/// Does `work` with `threads` threads. When the interrupt comes, the caller returns at once: `work` has not begun to
/// change anything then and does not, or else goes on without the caller to its end; `progress` tells which. `work`
/// owns what it changes, so that others can wait for that.
///
/// # Errors
/// Those of `work`; [`Error::Interrupted`]; [`Error::Internal`] if `work` panics.
pub fn run_to_end<T: Send + 'static>(
    threads: usize,
    interrupt: Interrupt<'_>,
    progress: &Arc<Progress>,
    work: impl FnOnce(&Progress) -> Result<T> + Send + 'static,
) -> Result<T> {
    let outcome: Outcome<T> = Arc::default();
    let job: Job = {
        let (outcome, progress) = (outcome.clone(), progress.clone());
        Box::new(move || {
            let result = catch_unwind(AssertUnwindSafe(|| work(&progress)));
            *lock(&outcome.0) = Some(result.unwrap_or_else(|panic| Err(internal(panic.as_ref()))));
            outcome.1.notify_one();
        })
    };
    match pool::get(threads) {
        Some(pool) => pool.spawn(job),
        None if pool::is_worker() => job(),
        None => spawn_or_do(job),
    }
    let mut result = lock(&outcome.0);
    loop {
        if let Some(result) = result.take() {
            return result;
        }
        let waited = outcome.1.wait_timeout(result, POLL);
        result = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
        if result.is_none() {
            drop(result);
            if interrupt() {
                progress.stop();
                return Err(Error::Interrupted);
            }
            result = lock(&outcome.0);
        }
    }
}

/// Does `job` in a thread of its own, so that the caller can wait for signals; here, if there is none to be had.
fn spawn_or_do(job: Job) {
    let shared = Arc::new(Mutex::new(Some(job)));
    let theirs = shared.clone();
    let take_and_do = move |job: &Mutex<Option<Job>>| {
        if let Some(job) = lock(job).take() {
            job();
        }
    };
    let spawned = std::thread::Builder::new().name("sparse_mixer".into()).spawn(move || take_and_do(&theirs));
    if spawned.is_err() {
        take_and_do(&shared);
    }
}

/// The error for a panic.
pub fn internal(panic: &(dyn Any + Send)) -> Error {
    if let Some(refused) = panic.downcast_ref::<OutOfMemory>() {
        return Error::Memory { what: "a computation".into(), bytes: refused.bytes };
    }
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    Error::Internal(text.unwrap_or_else(|| "a panic without a message".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::never;
    use std::sync::atomic::AtomicBool;
    use std::time::{Duration, Instant};

    #[test]
    fn results_and_panics_come_back() {
        for threads in [1, 2] {
            let progress = Arc::default();
            assert!(run_to_end(threads, &never, &progress, |p| Ok(p.begin())).unwrap());
            let panics = |_: &Progress| -> Result<()> { panic!("in the change") };
            let error = run_to_end(threads, &never, &progress, panics).unwrap_err();
            assert!(error.to_string().contains("in the change"), "{error}");
        }
    }

    #[test]
    fn what_has_begun_ends_without_the_caller() {
        for threads in [1, 2] {
            let (progress, ended) = (Arc::<Progress>::default(), Arc::new(AtomicBool::new(false)));
            let end = ended.clone();
            let start = Instant::now();
            let result = run_to_end(threads, &|| true, &progress, move |progress| {
                assert!(progress.begin());
                std::thread::sleep(Duration::from_millis(300));
                end.store(true, Ordering::SeqCst);
                Ok(())
            });
            assert!(matches!(result, Err(Error::Interrupted)));
            assert!(start.elapsed() < Duration::from_millis(200) && progress.has_begun());
            while !ended.load(Ordering::SeqCst) {
                assert!(start.elapsed() < Duration::from_secs(10));
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn what_has_not_begun_is_not_done() {
        let progress = Arc::<Progress>::default();
        let began = Arc::new(Mutex::new(None));
        let theirs = began.clone();
        let result = run_to_end(1, &|| true, &progress, move |progress| {
            std::thread::sleep(Duration::from_millis(100));
            *lock(&theirs) = Some(progress.begin());
            Ok(())
        });
        assert!(matches!(result, Err(Error::Interrupted)) && !progress.has_begun());
        while lock(&began).is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(*lock(&began), Some(false));
    }
}
