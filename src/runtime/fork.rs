//! Forks: the child has one thread, whatever the parent had, and finds all memory as it was at that moment.
//!
//! - No fork happens inside a [`Section`]: a few instructions under a lock that every call takes. The system calls the
//!   handlers below around every fork.
//! - A fork by way of Python also waits until nobody has a [`Hold`]: weights, moments or gradients that are being
//!   changed. It waits without the interpreter ([`announce_fork`]), so that whoever has one can get on.
//! - The child knows that it is one ([`generation`]) and starts threads of its own.
//!
//! So a child finds every lock free and no value half changed.

use std::cell::Cell;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::sys::call_at_fork;

static SECTIONS: Gate = Gate::new();
static HOLDS: Gate = Gate::new();
/// Forks between this process and the first one.
static GENERATION: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// [`Hold`]s of this thread.
    static OWN_HOLDS: Cell<usize> = const { Cell::new(0) };
    /// Whether this thread is in a [`Section`].
    static IN_SECTION: Cell<bool> = const { Cell::new(false) };
}

/// Lets threads in until a fork closes it.
struct Gate {
    inside: AtomicUsize,
    /// Forks that wait or are being made.
    closed: AtomicUsize,
}

impl Gate {
    const fn new() -> Self {
        Gate { inside: AtomicUsize::new(0), closed: AtomicUsize::new(0) }
    }

    /// Goes in, unless the gate is closed.
    fn try_enter(&self) -> bool {
        self.inside.fetch_add(1, Ordering::SeqCst);
        let open = self.closed.load(Ordering::SeqCst) == 0;
        if !open {
            self.leave();
        }
        open
    }

    fn leave(&self) {
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    /// Closes the gate and waits until all but `own` are outside.
    fn close(&self, own: usize) {
        self.closed.fetch_add(1, Ordering::SeqCst);
        while self.inside.load(Ordering::SeqCst) > own {
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn open(&self) {
        self.closed.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How many forks lie between this process and the one that loaded the library.
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// Has forks wait for sections from now on. A system that refuses leaves us without that and otherwise works.
pub fn register() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        call_at_fork(before_fork, after_fork_in_parent, after_fork_in_child);
    });
}

/// A few instructions that a fork must not interrupt. They wait for nothing; not to be nested.
#[derive(Debug)]
pub struct Section(());

impl Section {
    /// Begins a section; waits for a fork that is being made.
    pub fn enter() -> Self {
        debug_assert!(!IN_SECTION.replace(true), "sections are not to be nested");
        register();
        while !SECTIONS.try_enter() {
            std::thread::yield_now();
        }
        Section(())
    }

    /// Panics, in builds with checks, if this thread is in a section: for what takes long or waits.
    pub fn assert_outside(what: &str) {
        debug_assert!(!IN_SECTION.get(), "{what} in a section that forks wait for");
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        IN_SECTION.set(false);
        SECTIONS.leave();
    }
}

/// Holds back forks by way of Python while something is being changed.
///
/// Whoever has one waits for nothing that another thread holds: that one may wait for the fork.
#[derive(Debug)]
pub struct Hold {
    /// Belongs to its thread.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Hold {
    /// None while a fork is announced, except for a thread that has one: the fork waits for that thread.
    pub fn try_begin() -> Option<Self> {
        register();
        let own = OWN_HOLDS.get();
        if own > 0 {
            HOLDS.inside.fetch_add(1, Ordering::SeqCst);
        } else if !HOLDS.try_enter() {
            return None;
        }
        OWN_HOLDS.set(own + 1);
        Some(Hold { _not_send: std::marker::PhantomData })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        OWN_HOLDS.set(OWN_HOLDS.get() - 1);
        HOLDS.leave();
    }
}

/// Waits until no other thread has a [`Hold`], and lets none begin until [`finish_fork`]. To be called without the
/// interpreter.
pub fn announce_fork() {
    HOLDS.close(OWN_HOLDS.get());
}

/// Takes back [`announce_fork`] in the parent; in the child there is nothing to take back.
pub fn finish_fork() {
    HOLDS.open();
}

extern "C" fn before_fork() {
    SECTIONS.close(0);
}

extern "C" fn after_fork_in_parent() {
    SECTIONS.open();
}

extern "C" fn after_fork_in_child() {
    // Other threads are not here.
    HOLDS.inside.store(OWN_HOLDS.get(), Ordering::SeqCst);
    SECTIONS.inside.store(0, Ordering::SeqCst);
    for gate in [&HOLDS, &SECTIONS] {
        gate.closed.store(0, Ordering::SeqCst);
    }
    GENERATION.fetch_add(1, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_lets_nobody_in_and_waits_for_those_inside() {
        let gate = Gate::new();
        assert!(gate.try_enter());
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| gate.close(0));
            while gate.closed.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            assert!(!gate.try_enter());
            assert!(!closing.is_finished());
            gate.leave();
        });
        gate.open();
        assert!(gate.try_enter());
        // A thread does not wait for itself.
        gate.close(1);
    }

    #[test]
    #[should_panic(expected = "starting threads in a section that forks wait for")]
    fn what_takes_long_is_refused_in_a_section() {
        Section::assert_outside("starting threads");
        let _section = Section::enter();
        Section::assert_outside("starting threads");
    }

    #[test]
    #[should_panic(expected = "not to be nested")]
    fn sections_are_not_nested() {
        let _outer = Section::enter();
        let _inner = Section::enter();
    }
}
