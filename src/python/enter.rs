//! The one door from Python into the core, and the way back for errors.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::{
    PyKeyboardInterrupt, PyMemoryError, PyOSError, PyRuntimeError, PyTypeError, PyValueError,
};
use pyo3::prelude::*;

use crate::error::{Error, Result};
use crate::runtime::{Interrupt, internal};

pyo3::create_exception!(
    sparse_mixer,
    InternalError,
    PyRuntimeError,
    "A bug in this library; please report the arguments that led to it. The encoder stays usable, except after one in \
     the middle of an update: its weights are refused then until set_weights or load_weights replaces all of them, and \
     the optimiser's moments are lost."
);

pyo3::create_exception!(
    sparse_mixer,
    CheckpointError,
    PyValueError,
    "A weight file is damaged, of a kind that is not read, or does not fit; the message names the file."
);

/// Does `work` without holding the interpreter, so that other Python threads run meanwhile.
///
/// `work` gets an interrupt that handles Python's signals; when a handler raises (as Ctrl-C does), the core stops and
/// that exception comes out. A panic becomes an [`InternalError`]. Everything that takes longer than a few microseconds
/// goes through here.
///
/// # Errors
/// What `work` returns, as a Python exception.
pub fn enter_core<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(Interrupt<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    let raised: Mutex<Option<PyErr>> = Mutex::new(None);
    let interrupt = || {
        Python::attach(|py| match py.check_signals() {
            Ok(()) => false,
            Err(error) => {
                *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                true
            }
        })
    };
    let outcome = py.detach(|| catch_unwind(AssertUnwindSafe(|| work(&interrupt))));
    // A signal that came while nobody could stop any more is raised all the same.
    if let Some(error) = raised.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    match outcome {
        Ok(result) => result.map_err(to_py_err),
        Err(panic) => Err(to_py_err(internal(panic.as_ref()))),
    }
}

/// Does `work`, the whole of what Python calls, so that a panic in it becomes an [`InternalError`]: pyo3 would raise one
/// that `except Exception` does not catch.
///
/// # Errors
/// What `work` returns.
pub fn guard<T>(work: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        #[cfg(feature = "fault-injection")]
        crate::runtime::ENTRY.inject_fault();
        work()
    }));
    outcome.unwrap_or_else(|panic| Err(to_py_err(internal(panic.as_ref()))))
}

/// One Python exception for each case of the core's error.
pub fn to_py_err(error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Value { .. } => PyValueError::new_err(text),
        Error::Type { .. } => PyTypeError::new_err(text),
        Error::Interrupted => PyKeyboardInterrupt::new_err(text),
        Error::Callback(ticket) => {
            travelling::arrive(&ticket).unwrap_or_else(|| InternalError::new_err(text))
        }
        Error::Io { path, source } => {
            // With an error number Python picks the subclass, such as FileNotFoundError.
            match source.raw_os_error() {
                Some(number) => PyOSError::new_err((number, source.to_string(), path)),
                None => PyOSError::new_err(text),
            }
        }
        Error::Memory { .. } => PyMemoryError::new_err(text),
        Error::Checkpoint { .. } => CheckpointError::new_err(text),
        Error::Internal(_) => InternalError::new_err(text),
    }
}

/// Wraps an exception of a user's callable for its way through the core, to come out of [`to_py_err`] as it is.
pub fn callback_error(error: PyErr) -> Error {
    Error::Callback(travelling::depart(error))
}

/// Python exceptions on their way through the core, which knows nothing of Python: it carries their tickets.
mod travelling {
    use super::*;
    use crate::runtime::fork::Section;

    static NEXT: AtomicU64 = AtomicU64::new(0);
    static ON_THE_WAY: Mutex<Option<HashMap<String, PyErr>>> = Mutex::new(None);

    pub fn depart(error: PyErr) -> String {
        let ticket = format!("exception {}", NEXT.fetch_add(1, Ordering::Relaxed));
        let _section = Section::enter();
        let mut all = ON_THE_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        all.get_or_insert_default().insert(ticket.clone(), error);
        ticket
    }

    pub fn arrive(ticket: &str) -> Option<PyErr> {
        let _section = Section::enter();
        ON_THE_WAY.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.remove(ticket)
    }
}
