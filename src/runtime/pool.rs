//! Private thread pools: one per size and process, started on first use.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::fork::{Section, generation};
use super::panics::lock;

/// The pools of one process, the one that was used last at the end.
type Pools = Arc<Mutex<Vec<Started>>>;

/// What became of a request for a number of threads.
struct Started {
    threads: usize,
    /// `None` where the system started no thread at all.
    pool: Option<Arc<ThreadPool>>,
    at: Instant,
}

/// The pools of this process and its generation.
static POOLS: Mutex<Option<(u64, Pools)>> = Mutex::new(None);

/// Pools that are kept beside a new one, for callers that take turns with two numbers of threads.
const KEPT: usize = 1;
/// How long a refusal by the system is believed.
const RETRY: Duration = Duration::from_secs(1);

/// The threads that help a caller who wants `threads` with its own, or fewer where the system refuses to start as many.
/// `None` if the caller is to do the work alone.
pub(super) fn get(threads: usize) -> Option<Arc<ThreadPool>> {
    if threads <= 1 {
        return None;
    }
    let pools = of_this_process();
    // Starting threads takes long: not in a section. A child forked meanwhile has pools of its own.
    let mut by_use = lock(&pools);
    if let Some(at) = by_use.iter().position(|started| started.threads == threads) {
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
    let halves = std::iter::successors(Some(threads - 1), |size| Some(size / 2)).take_while(|&size| size > 0);
    let pool = halves.into_iter().find_map(start);
    by_use.push(Started { threads, pool: pool.clone(), at: Instant::now() });
    pool
}

fn of_this_process() -> Pools {
    let _section = Section::enter();
    let mut pools = lock(&POOLS);
    match &*pools {
        Some((process, pools)) if *process == generation() => pools.clone(),
        _ => {
            let own = Pools::default();
            // The threads of others are the parent's. Dropping their pools would wait for them.
            std::mem::forget(pools.replace((generation(), own.clone())));
            own
        }
    }
}

fn start(size: usize) -> Option<Arc<ThreadPool>> {
    Section::assert_outside("starting threads");
    let builder = ThreadPoolBuilder::new().num_threads(size).thread_name(|i| format!("sparse_mixer-{i}"));
    let pool = builder.build().ok()?;
    // Threads make what they have for themselves now: later, when memory is refused, the C library would end the process.
    pool.broadcast(|_| ());
    Some(Arc::new(pool))
}
