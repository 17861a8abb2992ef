//! How many threads a call uses that does not say.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use crate::error::{Error, Result};

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
    let limit = std::env::var("OMP_NUM_THREADS").ok().and_then(|text| omp_limit(&text));
    Ok(allowed_cpus().min(limit.unwrap_or(usize::MAX)))
}

/// Sets the number of threads of calls that do not say; `None` goes back to the automatic choice.
pub fn set_default_threads(threads: Option<usize>) {
    DEFAULT_THREADS.store(threads.unwrap_or(0), Ordering::Relaxed);
}

/// The number in `OMP_NUM_THREADS`; of a list, one number per level of nesting, the first.
fn omp_limit(text: &str) -> Option<usize> {
    text.split(',').next()?.trim().parse().ok().filter(|&limit| limit >= 1)
}

/// What affinity and control-group quota allow. Looked up ten times a second at most: the quota is in files.
fn allowed_cpus() -> usize {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    /// Tenths of a second from the start, plus one, in the upper half; CPUs in the lower one.
    static KNOWN: AtomicU64 = AtomicU64::new(0);
    let now = START.elapsed().as_secs() * 10 + u64::from(START.elapsed().subsec_millis()) / 100 + 1;
    let known = KNOWN.load(Ordering::Relaxed);
    if known >> 32 == now {
        return (known & u64::from(u32::MAX)) as usize;
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    KNOWN.store(now << 32 | cpus as u64 & u64::from(u32::MAX), Ordering::Relaxed);
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_level_of_omp_num_threads_counts() {
        let cases = [
            ("4", Some(4)),
            (" 4 ", Some(4)),
            ("4,2", Some(4)),
            ("3 , 2,1", Some(3)),
            ("0", None),
            ("", None),
            ("many", None),
            (",4", None),
        ];
        for (text, expected) in cases {
            assert_eq!(omp_limit(text), expected, "{text:?}");
        }
    }
}
