//! Values that many threads read and one at a time changes.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use super::fork::{Hold, Section};
use super::interrupt::{Interrupt, POLL_INTERVAL};
use crate::error::{Error, Result};

/// Between two tries to get a lock. Trying, unlike sleeping in the lock, can be interrupted.
const RETRY_INTERVAL: Duration = Duration::from_micros(200);

/// A value behind a lock. Readers hold the lock to clone the value, mostly an `Arc`; writers while they change it.
///
/// A panic in the middle of a change leaves the value unusable until it is replaced.
#[derive(Debug)]
pub struct Shared<T> {
    /// What it is, for messages.
    name: &'static str,
    value: Mutex<T>,
}

impl<T> Shared<T> {
    /// Shares `value`, called `name` in messages.
    pub fn new(name: &'static str, value: T) -> Self {
        Shared { name, value: Mutex::new(value) }
    }

    /// The lock, if it is free; for use in [`lock_all`].
    ///
    /// # Errors
    /// [`Error::Internal`] if a change was left half done.
    pub fn try_lock(&self) -> Result<Option<MutexGuard<'_, T>>> {
        match self.value.try_lock() {
            Ok(guard) => Ok(Some(guard)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Poisoned(_)) => Err(Error::Internal(format!(
                "{}: an error in the middle of a change left them unusable",
                self.name
            ))),
        }
    }

    /// The lock, for a change that no fork interrupts.
    ///
    /// # Errors
    /// [`Error::Interrupted`], and those of [`Shared::try_lock`].
    pub fn lock(&self, interrupt: Interrupt<'_>) -> Result<Locked<MutexGuard<'_, T>>> {
        lock_all(interrupt, || self.try_lock())
    }

    /// Calls `work` with the value if the lock is free. `work` takes a few instructions.
    ///
    /// # Errors
    /// Those of [`Shared::try_lock`].
    pub fn try_with<U>(&self, work: impl FnOnce(&mut T) -> U) -> Result<Option<U>> {
        let _section = Section::enter();
        Ok(self.try_lock()?.map(|mut value| work(&mut value)))
    }

    /// Calls `work` with the value once the lock is free. `work` takes a few instructions.
    ///
    /// # Errors
    /// [`Error::Interrupted`], and those of [`Shared::try_lock`].
    pub fn with<U>(&self, interrupt: Interrupt<'_>, mut work: impl FnMut(&mut T) -> U) -> Result<U> {
        wait_for(interrupt, || self.try_with(&mut work))
    }

    /// Puts `value` in the place of what is there, which may be unusable.
    ///
    /// # Errors
    /// [`Error::Interrupted`]
    pub fn replace(&self, interrupt: Interrupt<'_>, value: T) -> Result<()> {
        let mut value = Some(value);
        let old = wait_for(interrupt, || {
            let _section = Section::enter();
            let mut place = match self.value.try_lock() {
                Ok(place) => place,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return Ok(None),
            };
            self.value.clear_poison();
            Ok(value.take().map(|value| std::mem::replace(&mut *place, value)))
        })?;
        // Giving back large memory takes its time: without the lock.
        drop(old);
        Ok(())
    }
}

/// Locks, and as long as they are held no fork by way of Python happens.
#[derive(Debug)]
pub struct Locked<G> {
    /// Dropped first: forks wait until all locks are free.
    guards: G,
    _hold: Hold,
}

impl<G> Deref for Locked<G> {
    type Target = G;
    fn deref(&self) -> &G {
        &self.guards
    }
}

impl<G> DerefMut for Locked<G> {
    fn deref_mut(&mut self) -> &mut G {
        &mut self.guards
    }
}

/// Calls `try_all` until it gets all locks that it wants. It keeps none when it does not, so that nobody has one thing
/// while waiting for another.
///
/// # Errors
/// [`Error::Interrupted`], and those of `try_all`.
pub fn lock_all<G>(
    interrupt: Interrupt<'_>,
    mut try_all: impl FnMut() -> Result<Option<G>>,
) -> Result<Locked<G>> {
    wait_for(interrupt, || {
        let Some(hold) = Hold::try_begin() else { return Ok(None) };
        Ok(try_all()?.map(|guards| Locked { guards, _hold: hold }))
    })
}

/// Calls `attempt` until it returns something.
fn wait_for<T>(interrupt: Interrupt<'_>, mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let mut last_poll = Instant::now();
    loop {
        if let Some(result) = attempt()? {
            return Ok(result);
        }
        if last_poll.elapsed() >= POLL_INTERVAL {
            if interrupt() {
                return Err(Error::Interrupted);
            }
            last_poll = Instant::now();
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::super::interrupt::never;
    use super::*;

    #[test]
    fn one_at_a_time() {
        let shared = Shared::new("numbers", 0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let mut number = shared.lock(&never).unwrap();
                        let before = **number;
                        std::thread::yield_now();
                        **number = before + 1;
                    }
                });
            }
        });
        assert_eq!(shared.with(&never, |number| *number).unwrap(), 400);
    }

    #[test]
    fn whoever_waits_can_be_interrupted() {
        let shared = Shared::new("numbers", 0);
        let locked = shared.lock(&never).unwrap();
        assert!(matches!(shared.lock(&|| true), Err(Error::Interrupted)));
        assert!(matches!(shared.with(&|| true, |_| ()), Err(Error::Interrupted)));
        assert!(matches!(shared.replace(&|| true, 1), Err(Error::Interrupted)));
        assert!(matches!(shared.try_with(|_| ()), Ok(None)));
        drop(locked);
        assert!(matches!(shared.try_with(|_| ()), Ok(Some(()))));
    }

    #[test]
    fn what_a_panic_left_half_done_is_not_used_until_it_is_replaced() {
        let shared = Shared::new("numbers", 0);
        let half = || {
            let _locked = shared.lock(&never).unwrap();
            panic!("in the middle");
        };
        assert!(std::thread::scope(|scope| scope.spawn(half).join().is_err()));
        for error in [shared.lock(&never).map(drop).unwrap_err(), shared.with(&never, |_| ()).unwrap_err()] {
            assert!(error.to_string().contains("numbers: an error in the middle"), "{error}");
        }
        shared.replace(&never, 3).unwrap();
        assert_eq!(shared.with(&never, |number| *number).unwrap(), 3);
    }
}
