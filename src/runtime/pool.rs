//! Private thread pools: one per size and process, started on first use.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::fork::{Section, generation};
use super::lock;

/// The pools of one process, by the number of threads asked for.
struct Pools {
    generation: u64,
    by_size: BTreeMap<usize, Arc<ThreadPool>>,
}

static POOLS: Mutex<Pools> = Mutex::new(Pools { generation: 0, by_size: BTreeMap::new() });

/// The pool of `threads` threads, or of fewer where the system refuses to start as many; `None` if it starts none.
pub(super) fn get(threads: usize) -> Option<Arc<ThreadPool>> {
    let _section = Section::enter();
    let mut pools = lock(&POOLS);
    if pools.generation != generation() {
        // Forked: the threads are the parent's. Dropping their pools would wait for them.
        std::mem::forget(std::mem::take(&mut pools.by_size));
        pools.generation = generation();
    }
    if let Some(pool) = pools.by_size.get(&threads) {
        return Some(pool.clone());
    }
    let mut size = threads;
    while size > 1 {
        let builder = ThreadPoolBuilder::new().num_threads(size).thread_name(|i| format!("sparse_mixer-{i}"));
        if let Ok(pool) = builder.build() {
            let pool = Arc::new(pool);
            pools.by_size.insert(threads, pool.clone());
            return Some(pool);
        }
        size /= 2;
    }
    None
}
