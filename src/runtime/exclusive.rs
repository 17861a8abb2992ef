//! A value that one computation at a time takes away, works on for as long as it needs, and puts back.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::fork::{NoFork, Section, generation};
use super::{Interrupt, lock};
use crate::error::{Error, Result};

/// Between two looks whether the value is back. Waiting without a condition variable leaves no lock behind in the child
/// of a fork.
const LOOK: Duration = Duration::from_micros(200);
/// Looks between two questions to the interrupt.
const LOOKS_PER_POLL: u64 = 100;

/// A place for a value, shared between threads. Its lock is held only to move the value, never while it is used.
#[derive(Debug)]
pub struct Exclusive<T> {
    /// What it is, for messages.
    name: &'static str,
    place: Mutex<Place<T>>,
}

#[derive(Debug)]
enum Place<T> {
    Here(T),
    /// By a process of this generation.
    Taken(u64),
    /// Whoever had it failed in the middle.
    Broken,
}

/// A value on loan; goes back when dropped.
#[derive(Debug)]
pub struct Taken<T> {
    home: Arc<Exclusive<T>>,
    /// `None` only while being dropped.
    value: Option<T>,
}

impl<T> Exclusive<T> {
    /// A place with `value` in it.
    pub fn new(name: &'static str, value: T) -> Arc<Self> {
        Arc::new(Exclusive { name, place: Mutex::new(Place::Here(value)) })
    }

    /// Calls `work` with the value if it is here. `work` must not wait for anything.
    ///
    /// # Errors
    /// The value is lost: see [`Exclusive::try_take`].
    pub fn try_with<U>(&self, work: impl FnOnce(&mut T) -> U) -> Result<Option<U>> {
        let _section = Section::enter();
        match &mut *lock(&self.place) {
            Place::Here(value) => Ok(Some(work(value))),
            Place::Taken(by) if *by == generation() => Ok(None),
            Place::Taken(_) => Err(Error::value(
                self.name,
                "another thread was changing them when this process was forked, and is not here to finish",
            )),
            Place::Broken => Err(Error::Internal(format!(
                "{}: an error in the middle of a change left them unusable",
                self.name
            ))),
        }
    }

    /// Calls `work` with the value, waiting until it is here. `work` must not wait for anything.
    ///
    /// # Errors
    /// [`Error::Interrupted`], or the value is lost: see [`Exclusive::try_take`].
    pub fn with<U>(&self, interrupt: Interrupt<'_>, mut work: impl FnMut(&mut T) -> U) -> Result<U> {
        take_together(interrupt, || self.try_with(&mut work))
    }

    /// Puts `value` in the place of what is here, waiting for whoever has that; also where it is lost or was left broken.
    ///
    /// # Errors
    /// [`Error::Interrupted`]
    pub fn overwrite(&self, interrupt: Interrupt<'_>, value: T) -> Result<()> {
        let mut value = Some(value);
        // The old one is dropped without the lock.
        take_together(interrupt, || {
            let _section = Section::enter();
            let mut place = lock(&self.place);
            if matches!(&*place, Place::Taken(by) if *by == generation()) {
                return Ok(None);
            }
            Ok(value.take().map(|value| std::mem::replace(&mut *place, Place::Here(value))))
        })
        .map(drop)
    }

    /// Takes the value if it is here; for use in [`take_together`] and [`take_whole`].
    ///
    /// # Errors
    /// - [`Error::Value`] if a thread of the parent had it when this process was forked.
    /// - [`Error::Internal`] if whoever had it panicked.
    pub fn try_take(self: &Arc<Self>) -> Result<Option<Taken<T>>> {
        // Says whether it is lost.
        if self.try_with(|_| ())?.is_none() {
            return Ok(None);
        }
        let _section = Section::enter();
        let mut place = lock(&self.place);
        match std::mem::replace(&mut *place, Place::Taken(generation())) {
            Place::Here(value) => Ok(Some(Taken { home: self.clone(), value: Some(value) })),
            other => {
                *place = other;
                Ok(None)
            }
        }
    }
}

/// Calls `try_all` until it takes all that it wants. It must keep nothing when it does not, so that nobody has one thing
/// while waiting for another.
///
/// Not to be called from a task of a thread pool: while a task waits for others its thread takes up any work that
/// there is, and would wait for a value that it has itself taken further down its stack.
///
/// # Errors
/// [`Error::Interrupted`], and those of `try_all`.
pub fn take_together<T>(
    interrupt: Interrupt<'_>,
    mut try_all: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    for look in 1u64.. {
        if let Some(all) = try_all()? {
            return Ok(all);
        }
        if look % LOOKS_PER_POLL == 0 && interrupt() {
            break;
        }
        std::thread::sleep(LOOK);
    }
    Err(Error::Interrupted)
}

/// What was taken for a change that no fork may cut in two.
#[derive(Debug)]
pub struct Whole<T> {
    /// Dropped first: forks wait until everything is back.
    value: T,
    _no_fork: NoFork,
}

impl<T> Deref for Whole<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Whole<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// As [`take_together`], and holds back forks for as long as the result lives; while waiting it does not.
///
/// # Errors
/// As [`take_together`].
pub fn take_whole<T>(
    interrupt: Interrupt<'_>,
    mut try_all: impl FnMut() -> Result<Option<T>>,
) -> Result<Whole<T>> {
    take_together(interrupt, || {
        let Some(no_fork) = NoFork::try_begin() else { return Ok(None) };
        Ok(try_all()?.map(|value| Whole { value, _no_fork: no_fork }))
    })
}

impl<T> Deref for Taken<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value.as_ref().expect("it is there until dropped")
    }
}

impl<T> DerefMut for Taken<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("it is there until dropped")
    }
}

impl<T> Drop for Taken<T> {
    fn drop(&mut self) {
        let back = match self.value.take() {
            Some(value) if !std::thread::panicking() => Place::Here(value),
            _ => Place::Broken,
        };
        let _section = Section::enter();
        *lock(&self.home.place) = back;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::never;

    #[test]
    fn one_at_a_time() {
        let shared = Exclusive::new("numbers", 0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let mut number = take_together(&never, || shared.try_take()).unwrap();
                        let before = *number;
                        std::thread::yield_now();
                        *number = before + 1;
                    }
                });
            }
        });
        assert_eq!(shared.with(&never, |number| *number).unwrap(), 400);
    }

    #[test]
    fn whoever_waits_can_be_interrupted() {
        let shared = Exclusive::new("numbers", 0);
        let taken = take_together(&never, || shared.try_take()).unwrap();
        assert!(matches!(take_together(&|| true, || shared.try_take()), Err(Error::Interrupted)));
        assert!(matches!(shared.with(&|| true, |_| ()), Err(Error::Interrupted)));
        assert!(matches!(shared.try_with(|_| ()), Ok(None)));
        drop(taken);
        assert!(matches!(shared.try_with(|_| ()), Ok(Some(()))));
    }

    #[test]
    fn what_a_panic_left_half_done_is_not_used() {
        let shared = Exclusive::new("numbers", 0);
        let panicked = std::thread::scope(|scope| {
            let half = || {
                let _taken = take_together(&never, || shared.try_take()).unwrap();
                panic!("in the middle");
            };
            scope.spawn(half).join().is_err()
        });
        assert!(panicked);
        let error = take_together(&never, || shared.try_take()).unwrap_err().to_string();
        assert!(error.contains("numbers: an error in the middle"), "{error}");
    }
}
