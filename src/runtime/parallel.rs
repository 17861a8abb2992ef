//! Tasks shared between the calling thread and threads of a pool.
//!
//! Threads of pools do nothing but tasks, which wait for nothing and call nobody else's code. Whatever may wait, take
//! locks or call Python runs on the caller's own thread.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use rayon::ThreadPool;

use super::panics::lock;
use super::pool;
use crate::sys::{ParallelFor, Region, alloc_collect, lend};

thread_local! {
    /// The threads that help this one.
    static POOL: RefCell<Option<Arc<ThreadPool>>> = const { RefCell::new(None) };
}

/// Does `work`, in which [`for_each`] and [`map`] use `threads` threads, the caller's among them; or fewer where the
/// system refuses to start as many.
pub fn with_threads<T>(threads: usize, work: impl FnOnce() -> T) -> T {
    struct Restore(Option<Arc<ThreadPool>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            POOL.set(self.0.take());
        }
    }
    let _restore = Restore(POOL.replace(pool::get(threads)));
    work()
}

/// Threads that [`for_each`] uses here.
pub fn thread_count() -> usize {
    POOL.with_borrow(|pool| pool.as_ref().map_or(0, |pool| pool.current_num_threads())) + 1
}

/// Does `work` once for each of `tasks`; it is also told the number of its thread, less than [`thread_count`]. Tasks
/// begin in order.
pub fn for_each<T: Send>(tasks: impl Iterator<Item = T> + Send, work: impl Fn(T, usize) + Sync) {
    let most = tasks.size_hint().1.unwrap_or(usize::MAX);
    let helpers = (thread_count() - 1).min(most.saturating_sub(1));
    let pool = if helpers > 0 { POOL.with_borrow(Clone::clone) } else { None };
    let region = Region::new(thread_count());
    let Some(pool) = pool else {
        let _share = region.share();
        return tasks.for_each(|task| work(task, 0));
    };
    let tasks = Mutex::new(tasks);
    let work_as = |thread: usize| {
        let _share = region.share();
        loop {
            let Some(task) = lock(&tasks).next() else { return };
            work(task, thread);
        }
    };
    let help = || work_as(rayon::current_thread_index().map_or(0, |index| index + 1));
    // Those who come when all tasks are taken have nothing to do, and nobody waits for them.
    lend(&help, |loan| {
        for _ in 0..helpers {
            let loan = loan.clone();
            pool.spawn(move || loan.call());
        }
        work_as(0);
    });
}

/// The results of `work` for each of `tasks`, in their order.
pub fn map<T: Send, U: Send>(
    tasks: impl ExactSizeIterator<Item = T> + Send,
    work: impl Fn(T) -> U + Sync,
) -> Vec<U> {
    let mut results = alloc_collect((0..tasks.len()).map(|_| None));
    for_each(tasks.zip(&mut results), |(task, result), _| *result = Some(work(task)));
    alloc_collect(results.into_iter().map(|result| result.expect("every task has been done")))
}

/// The threads of [`for_each`], for kernels.
pub fn as_parallel_for() -> ParallelFor<'static> {
    ParallelFor { count: thread_count(), run: &|count, task| for_each(0..count, |number, _| task(number)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::time::{Duration, Instant};

    #[test]
    fn every_task_is_done_once_and_results_are_in_order() {
        for threads in [1, 2, 5] {
            with_threads(threads, || {
                assert_eq!(thread_count(), threads);
                for count in [0, 1, 2, 1000] {
                    assert_eq!(map(0..count, |i| 3 * i), (0..count).map(|i| 3 * i).collect::<Vec<_>>());
                }
            });
            assert_eq!(thread_count(), 1);
        }
    }

    #[test]
    fn the_caller_and_its_helpers_work_at_once_under_numbers_of_their_own() {
        let all_at_once = Barrier::new(3);
        let numbers = Mutex::new(Vec::new());
        with_threads(3, || {
            for_each(0..3, |_, thread| {
                all_at_once.wait();
                numbers.lock().unwrap().push(thread);
            });
        });
        let mut numbers = numbers.into_inner().unwrap();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2]);
    }

    #[test]
    fn times_of_tasks_and_of_waiting_are_those_of_all_threads() {
        use crate::sys::{Place, Work, at, so_far, timed};
        let tasks = || so_far(Place::MixtureOutput, Work::Adopt).0;
        let waiting = || so_far(Place::MixtureOutput, Work::Waiting).0;
        for (threads, count) in [(1, 3), (3, 1), (3, 4)] {
            with_threads(threads, || {
                let before = (tasks(), waiting());
                let _place = at(Place::MixtureOutput);
                let begin = Instant::now();
                let time = timed(Work::Adopt);
                for_each(0..count, |_, _| std::thread::sleep(Duration::from_millis(20)));
                drop(time);
                let all = threads as f64 * begin.elapsed().as_secs_f64();
                let (tasks, waiting) = (tasks() - before.0, waiting() - before.1);
                let what =
                    format!("{threads} threads, {count} tasks: {tasks} s, waiting {waiting} s, all {all} s");
                assert!(tasks >= 0.02 * f64::from(count), "{what}");
                // The machine may be busy: what is between two readings of the clock has no bound.
                assert!((0.7 * all..=all + 1e-6).contains(&(tasks + waiting)), "{what}");
                assert!(threads == 1 || waiting >= 0.02, "{what}");
            });
        }
    }

    #[test]
    fn a_panic_in_a_task_comes_out_and_the_threads_live_on() {
        for threads in [1, 2] {
            with_threads(threads, || {
                let work = || for_each(0..100, |i, _| assert_ne!(i, 50, "fifty"));
                assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err());
                assert_eq!(map(0..10, |i| i).len(), 10);
            });
        }
    }
}
