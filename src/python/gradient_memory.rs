//! Memory of gradients, and how those that have been applied hand it on to the next ones.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::ThreadId;

use pyo3::exceptions::PyRuntimeError;

use super::enter::{SCRATCH, callback_error};
use crate::error::{Error, Result};
use crate::params::{Gradients, Spec};
use crate::runtime::{Shared, catch};

/// What all gradients of the weights of one encoder or head share. When it and the last of them are gone, free memory of
/// their size goes back to the system.
#[derive(Debug)]
pub struct GradientHome {
    specs: Vec<Spec>,
    /// The gradients that were applied last, if they hand their memory on.
    applied: Shared<Option<Applied>>,
    /// Whether there have been gradients at all.
    has_had_any: AtomicBool,
}

#[derive(Debug)]
struct Applied {
    /// Who has applied them. Others do not take their memory: between an update and the next gradients, whoever made the
    /// update may read what it was made with.
    thread: ThreadId,
    memory: Weak<Shared<GradientMemory>>,
}

/// Gradients of the weights of one encoder or head, as long as they have memory.
#[derive(Debug)]
pub struct GradientMemory {
    state: State,
    /// Whether to hand the memory on once the gradients have been applied, and to take it from such gradients.
    passes_on: bool,
    /// Whether an optimiser has applied them as they are.
    is_applied: bool,
    /// Dropped after the memory.
    home: Arc<GradientHome>,
}

#[derive(Debug)]
enum State {
    /// Zeros, without memory so far.
    Untouched,
    Here(Gradients<f32>),
    /// The memory belongs to later gradients.
    PassedOn,
}

impl GradientHome {
    /// For weights `specs`.
    pub fn new(specs: Vec<Spec>) -> Self {
        let has_had_any = AtomicBool::new(false);
        GradientHome { specs, applied: Shared::new("gradients", None), has_had_any }
    }

    /// The weights.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// Gradients of their own, all zero, for a computation to add to: see [`Gradients::clear_lazily`].
    pub fn lazy_zeros(&self) -> Gradients<f32> {
        self.has_had_any.store(true, Ordering::Relaxed);
        Gradients::lazy_zeros_in(&self.specs, &SCRATCH)
    }

    /// Those of the gradients that this thread has applied last, if nobody uses them and nothing else happened to them.
    fn take_applied(&self) -> Option<Gradients<f32>> {
        let this = std::thread::current().id();
        let own = |applied: &mut Option<Applied>| applied.take_if(|applied| applied.thread == this);
        let applied = self.applied.try_with(own).ok().flatten().flatten()?;
        let memory = applied.memory.upgrade()?;
        let mut memory = memory.try_lock().ok().flatten()?;
        memory.pass_on()
    }
}

impl Drop for GradientHome {
    fn drop(&mut self) {
        if *self.has_had_any.get_mut() {
            SCRATCH.release_gradients(Gradients::<f32>::memory_len(&self.specs));
        }
    }
}

impl GradientMemory {
    /// Zeros. Those that pass on have no memory before their first use.
    pub fn new(home: Arc<GradientHome>, passes_on: bool) -> Self {
        let state = if passes_on { State::Untouched } else { State::Here(home.lazy_zeros()) };
        GradientMemory { state, passes_on, is_applied: false, home }
    }

    /// The gradients, to be read.
    ///
    /// # Errors
    /// If their memory is passed on; [`Error::Memory`].
    pub fn read(&mut self) -> Result<&mut Gradients<f32>> {
        let gradients = self.unsettled()?;
        gradients.settle();
        Ok(gradients)
    }

    /// The gradients, which a computation is to add to: see [`Gradients::clear_lazily`].
    ///
    /// # Errors
    /// As [`GradientMemory::read`].
    pub fn for_adding(&mut self) -> Result<&mut Gradients<f32>> {
        self.is_applied = false;
        self.unsettled()
    }

    fn unsettled(&mut self) -> Result<&mut Gradients<f32>> {
        if let State::Untouched = self.state {
            let applied = if self.passes_on { self.home.take_applied() } else { None };
            let gradients = catch(|| {
                Ok(match applied {
                    Some(mut gradients) => {
                        gradients.renew_lazily();
                        gradients
                    }
                    None => self.home.lazy_zeros(),
                })
            });
            self.state = State::Here(gradients?);
        }
        match &mut self.state {
            State::Here(gradients) => Ok(gradients),
            State::Untouched | State::PassedOn => Err(passed_on()),
        }
    }

    /// The gradients, to be changed: they have to be applied again before they hand on their memory.
    ///
    /// # Errors
    /// As [`GradientMemory::read`].
    pub fn write(&mut self) -> Result<&mut Gradients<f32>> {
        self.is_applied = false;
        self.read()
    }

    /// The gradients, if they have memory.
    pub fn present(&mut self) -> Option<&mut Gradients<f32>> {
        match &mut self.state {
            State::Here(gradients) => Some(gradients),
            State::Untouched | State::PassedOn => None,
        }
    }

    /// Zeros again, in memory of their own if theirs is passed on.
    ///
    /// # Errors
    /// As [`expect_not_leased`].
    pub fn clear(&mut self) -> Result<()> {
        self.is_applied = false;
        match &mut self.state {
            State::Here(gradients) => {
                expect_not_leased(gradients)?;
                gradients.clear_lazily();
            }
            state => *state = State::Untouched,
        }
        Ok(())
    }

    /// An optimiser has applied these gradients, which `own` locks, to the weights of `home`. If they pass on, and are of
    /// these weights, the next ones that this thread has computed get their memory, unless something changes them before.
    pub fn set_applied(&mut self, own: &Arc<Shared<GradientMemory>>, home: &Arc<GradientHome>) {
        if self.passes_on && Arc::ptr_eq(home, &self.home) {
            self.is_applied = true;
            let applied = Applied { thread: std::thread::current().id(), memory: Arc::downgrade(own) };
            // While another thread looks, its gradients come first; ours stay as they are.
            let _ = self.home.applied.try_with(|place| place.replace(applied));
        }
    }

    fn pass_on(&mut self) -> Option<Gradients<f32>> {
        match std::mem::replace(&mut self.state, State::PassedOn) {
            State::Here(gradients) if self.is_applied && !gradients.is_leased() => Some(gradients),
            state => {
                self.state = state;
                None
            }
        }
    }
}

/// Checks that nobody has the gradients on lease.
///
/// # Errors
/// [`Error::Value`] if somebody has.
pub fn expect_not_leased(gradients: &Gradients<f32>) -> Result<()> {
    if gradients.is_leased() {
        return Err(Error::value("gradients", "they are on lease; drop the lease and what it gave first"));
    }
    Ok(())
}

fn passed_on() -> Error {
    callback_error(PyRuntimeError::new_err(
        "gradients: they have been applied, and the gradients computed after that have taken over their memory; to keep \
         them, copy them before: kept = gradients.copy()",
    ))
}
