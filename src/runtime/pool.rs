//! Private thread pools: one per size and process, started on first use.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::lock;
use crate::error::{Error, Result};

/// The pools of one process, by size.
///
/// A forked child finds its parent's here, whose threads do not exist in the child and whose lock may be held for
/// ever. So it appends its own and leaves the parent's alone: the chain is as long as forks are nested.
struct ProcessPools {
    process: u32,
    pools: Mutex<HashMap<usize, Arc<ThreadPool>>>,
    child: OnceLock<Box<ProcessPools>>,
}

impl ProcessPools {
    fn new(process: u32) -> Self {
        ProcessPools { process, pools: Mutex::default(), child: OnceLock::new() }
    }

    /// Those of the running process.
    fn current() -> &'static ProcessPools {
        static FIRST: OnceLock<ProcessPools> = OnceLock::new();
        let process = std::process::id();
        let mut pools = FIRST.get_or_init(|| ProcessPools::new(process));
        while pools.process != process {
            pools = pools.child.get_or_init(|| Box::new(ProcessPools::new(process)));
        }
        pools
    }
}

/// 0 stands for "not set".
static DEFAULT_THREADS: AtomicUsize = AtomicUsize::new(0);

/// Threads of a call that does not say: what [`set_default_threads`] set, else `SPARSE_MIXER_NUM_THREADS`, else what
/// affinity and control-group quota allow, at most `OMP_NUM_THREADS`.
///
/// # Errors
/// If `SPARSE_MIXER_NUM_THREADS` is not a number of at least 1.
pub fn default_threads() -> Result<usize> {
    let set = DEFAULT_THREADS.load(Ordering::Relaxed);
    if set > 0 {
        return Ok(set);
    }
    if let Ok(text) = std::env::var("SPARSE_MIXER_NUM_THREADS") {
        return match text.trim().parse::<usize>() {
            Ok(n) if n >= 1 => Ok(n),
            _ => {
                Err(Error::value("SPARSE_MIXER_NUM_THREADS", format!("got {text:?}, expected a number >= 1")))
            }
        };
    }
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let limit = std::env::var("OMP_NUM_THREADS").ok().and_then(|text| text.trim().parse::<usize>().ok());
    Ok(limit.filter(|&limit| limit >= 1).map_or(available, |limit| available.min(limit)))
}

/// Sets the number of threads of calls that do not say; `None` goes back to the automatic choice.
pub fn set_default_threads(threads: Option<usize>) {
    DEFAULT_THREADS.store(threads.unwrap_or(0), Ordering::Relaxed);
}

/// The pool of `threads` threads, or of fewer where the system refuses to start as many; `None` if it starts none.
pub(super) fn get(threads: usize) -> Option<Arc<ThreadPool>> {
    let mut pools = lock(&ProcessPools::current().pools);
    if let Some(pool) = pools.get(&threads) {
        return Some(pool.clone());
    }
    let mut size = threads;
    while size > 1 {
        let builder = ThreadPoolBuilder::new().num_threads(size).thread_name(|i| format!("sparse_mixer-{i}"));
        if let Ok(pool) = builder.build() {
            let pool = Arc::new(pool);
            pools.insert(threads, pool.clone());
            return Some(pool);
        }
        size /= 2;
    }
    None
}
