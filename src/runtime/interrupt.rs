//! How a caller stops a computation.

use std::time::Duration;

/// How often a computation asks whether it is to stop. Asking Python takes its global lock.
pub const POLL_INTERVAL: Duration = Duration::from_millis(40);

/// Asks whether the computation should stop. Called on the caller's own thread only.
pub type Interrupt<'a> = &'a (dyn Fn() -> bool + Sync);

/// An interrupt that never comes.
pub fn never() -> bool {
    false
}
