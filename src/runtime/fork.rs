//! Forks: the child has one thread, whatever the parent had, and finds all memory as it was at that moment.
//!
//! Three things make it usable:
//! - No lock of the library is held at a fork. Whoever takes one is inside a [`Section`], and a fork waits until all
//!   sections have ended. Sections last microseconds and never wait for anything.
//! - A fork by way of Python waits as well until no weights are half updated ([`NoFork`]), without the interpreter, so
//!   that nobody waits for the one who waits.
//! - The child knows that it is one ([`generation`]): it starts its own threads, and what a thread of the parent had
//!   taken out of its place at the fork is lost rather than waited for (see [`super::Exclusive`]).

use std::sync::Once;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::sys::call_at_fork;

static SECTIONS: AtomicUsize = AtomicUsize::new(0);
/// Forks that are being made at this moment; while there are any, sections do not begin.
static FORKS: AtomicUsize = AtomicUsize::new(0);
/// Forks between this process and the first one.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// [`NoFork`]s that exist.
static HOLDING_BACK: AtomicUsize = AtomicUsize::new(0);
/// Forks that wait for them; while there are any, no new ones begin.
static ANNOUNCED: AtomicUsize = AtomicUsize::new(0);

/// How often those who wait look again.
const LOOK: Duration = Duration::from_millis(1);

/// How many forks lie between this process and the one that loaded the library.
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// A few instructions that a fork must not cut in two; not to be nested.
#[derive(Debug)]
pub struct Section(());

impl Section {
    /// Begins a section; waits for a fork that is being made.
    pub fn enter() -> Self {
        static REGISTERED: Once = Once::new();
        REGISTERED.call_once(|| {
            // A system that refuses leaves us without the guarantee and otherwise works.
            call_at_fork(before_fork, after_fork_in_parent, after_fork_in_child);
        });
        loop {
            SECTIONS.fetch_add(1, Ordering::SeqCst);
            if FORKS.load(Ordering::SeqCst) == 0 {
                return Section(());
            }
            SECTIONS.fetch_sub(1, Ordering::SeqCst);
            while FORKS.load(Ordering::SeqCst) != 0 {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        SECTIONS.fetch_sub(1, Ordering::SeqCst);
    }
}

extern "C" fn before_fork() {
    FORKS.fetch_add(1, Ordering::SeqCst);
    while SECTIONS.load(Ordering::SeqCst) != 0 {
        std::thread::yield_now();
    }
}

extern "C" fn after_fork_in_parent() {
    FORKS.fetch_sub(1, Ordering::SeqCst);
}

extern "C" fn after_fork_in_child() {
    // Whoever else had counted himself in is not here.
    for count in [&SECTIONS, &FORKS, &HOLDING_BACK, &ANNOUNCED] {
        count.store(0, Ordering::SeqCst);
    }
    GENERATION.fetch_add(1, Ordering::SeqCst);
}

/// Holds back forks by way of Python while state is half changed, or copied and therefore out of its place. Unlike a
/// [`Section`] it may last; whoever has one must get on without the interpreter, and without waiting for what another
/// thread has taken: that one may be waiting for the fork. [`super::take_whole`] sees to that.
#[derive(Debug)]
pub struct NoFork(());

impl NoFork {
    /// None while a fork has been announced.
    pub fn try_begin() -> Option<Self> {
        HOLDING_BACK.fetch_add(1, Ordering::SeqCst);
        let begun = NoFork(());
        (ANNOUNCED.load(Ordering::SeqCst) == 0).then_some(begun)
    }
}

impl Drop for NoFork {
    fn drop(&mut self) {
        HOLDING_BACK.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits until nobody holds back forks, and lets nobody begin to until [`finish_fork`]. To be called without the
/// interpreter.
pub fn announce_fork() {
    ANNOUNCED.fetch_add(1, Ordering::SeqCst);
    while HOLDING_BACK.load(Ordering::SeqCst) != 0 {
        std::thread::sleep(LOOK);
    }
}

/// Takes back [`announce_fork`] in the parent; in the child there is nothing to take back.
pub fn finish_fork() {
    ANNOUNCED.fetch_sub(1, Ordering::SeqCst);
}
