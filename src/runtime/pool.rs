//! Private thread pools: one per size and process, started on first use.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::fork::{Section, generation};
use super::lock;

/// The pools of one process.
struct Pools {
    generation: u64,
    /// The one that was used last at the end.
    by_use: Vec<Started>,
}

/// What became of a request for a number of threads.
struct Started {
    asked: usize,
    /// `None` where the system started no thread at all.
    pool: Option<Arc<ThreadPool>>,
    at: Instant,
}

static POOLS: Mutex<Pools> = Mutex::new(Pools { generation: 0, by_use: Vec::new() });

/// Pools that are kept beside a new one, for callers that take turns with two numbers of threads.
const KEPT: usize = 1;
/// How long a refusal by the system is believed.
const RETRY: Duration = Duration::from_secs(1);

/// Whether the caller is a thread of a pool: a user's function that calls back into the library.
pub(super) fn is_worker() -> bool {
    rayon::current_thread_index().is_some()
}

/// The pool of `threads` threads, or of fewer where the system refuses to start as many. `None` if the caller is to do
/// the work itself: for one thread, if the system starts none, and on a thread of a pool, where waiting for another
/// pool could close a circle.
pub(super) fn get(threads: usize) -> Option<Arc<ThreadPool>> {
    if threads <= 1 || is_worker() {
        return None;
    }
    let _section = Section::enter();
    let mut pools = lock(&POOLS);
    if pools.generation != generation() {
        // Forked: the threads are the parent's. Dropping their pools would wait for them.
        std::mem::forget(std::mem::take(&mut pools.by_use));
        pools.generation = generation();
    }
    let by_use = &mut pools.by_use;
    if let Some(at) = by_use.iter().position(|started| started.asked == threads) {
        let started = by_use.remove(at);
        if started.pool.is_some() || started.at.elapsed() < RETRY {
            let pool = started.pool.clone();
            by_use.push(started);
            return pool;
        }
    }
    // Threads of pools that nobody uses end by themselves, soon after.
    let mut others = by_use.len();
    by_use.retain(|started| {
        others -= 1;
        others < KEPT || started.pool.as_ref().is_some_and(|pool| Arc::strong_count(pool) > 1)
    });
    let halves = std::iter::successors(Some(threads), |size| Some(size / 2)).take_while(|&size| size > 1);
    let pool = halves.into_iter().find_map(start);
    by_use.push(Started { asked: threads, pool: pool.clone(), at: Instant::now() });
    pool
}

fn start(size: usize) -> Option<Arc<ThreadPool>> {
    let builder = ThreadPoolBuilder::new().num_threads(size).thread_name(|i| format!("sparse_mixer-{i}"));
    builder.build().ok().map(Arc::new)
}
