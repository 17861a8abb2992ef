//! Panics on request, in builds for tests only: bugs cannot be had otherwise when a test needs one.

#[cfg(any(test, feature = "fault-injection"))]
use std::sync::atomic::{AtomicI64, Ordering};

/// Where a build for tests can be made to panic, outside the tasks of computations.
pub(crate) fn inject_fault() {
    #[cfg(feature = "fault-injection")]
    ELSEWHERE.inject_fault();
}

#[cfg(any(test, feature = "fault-injection"))]
/// Which task is to panic.
#[derive(Debug)]
pub struct Fault {
    /// Tasks until then; negative for never.
    left: AtomicI64,
}

/// What goes wrong in work that is no task of a computation: parts of updates, weights read and written.
#[cfg(feature = "fault-injection")]
pub static ELSEWHERE: Fault = Fault { left: AtomicI64::new(-1) };

/// What goes wrong around the core: reading arguments, making results.
#[cfg(feature = "fault-injection")]
pub static ENTRY: Fault = Fault { left: AtomicI64::new(-1) };

#[cfg(any(test, feature = "fault-injection"))]
impl Default for Fault {
    fn default() -> Self {
        Fault { left: AtomicI64::new(-1) }
    }
}

#[cfg(any(test, feature = "fault-injection"))]
impl Fault {
    /// Makes the task number `task` of those to come panic, counted from 0; `None` for none.
    pub fn arm(&self, task: Option<u64>) {
        let left = task.map_or(-1, |task| i64::try_from(task).unwrap_or(i64::MAX));
        self.left.store(left, Ordering::SeqCst);
    }

    /// Whether no task has panicked since it was armed.
    pub fn is_armed(&self) -> bool {
        self.left.load(Ordering::SeqCst) >= 0
    }

    /// Counts a task.
    pub fn inject_fault(&self) {
        let before =
            self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left >= 0).then(|| left - 1));
        assert!(before != Ok(0), "injected");
    }
}
