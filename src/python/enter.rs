//! The one door from Python into the core, and the way back for errors.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use pyo3::exceptions::{PyKeyboardInterrupt, PyMemoryError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::error::{Error, Result};
use crate::runtime::{Interrupt, ScratchPool, Shared, panic_error};

/// Scratch memory of all encoders of the process: bounded by the calls that run at once, not by the encoders.
pub static SCRATCH: LazyLock<ScratchPool<f32>> = LazyLock::new(ScratchPool::new);

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
    let may_come = AtomicBool::new(true);
    let interrupt = || {
        may_come.load(Ordering::Relaxed)
            && Python::attach(|py| match py.check_signals() {
                Ok(()) => {
                    // Taking the interpreter may mean waiting for it: no more than once in vain.
                    may_come.store(is_main_thread(py).unwrap_or(true), Ordering::Relaxed);
                    false
                }
                Err(error) => {
                    *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    true
                }
            })
    };
    let outcome = py.detach(|| catch_unwind(AssertUnwindSafe(|| work(&interrupt))));
    // Also where it came too late to stop anything.
    if let Some(error) = raised.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    match outcome {
        Ok(result) => result.map_err(to_py_err),
        Err(panic) => Err(to_py_err(panic_error(panic.as_ref()))),
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
    outcome.unwrap_or_else(|panic| Err(to_py_err(panic_error(panic.as_ref()))))
}

/// One Python exception for each case of the core's error.
pub fn to_py_err(error: Error) -> PyErr {
    // An exception is not formatted: Python's `str()` runs the handlers of signals, and what they raise would be lost.
    let error = match error {
        Error::Callback(source) => match source.downcast::<PyErr>() {
            Ok(error) => return *error,
            Err(source) => Error::Callback(source),
        },
        error => error,
    };
    let text = error.to_string();
    match error {
        Error::Value { .. } => PyValueError::new_err(text),
        Error::Interrupted => PyKeyboardInterrupt::new_err(text),
        Error::Callback(_) => PyRuntimeError::new_err(text),
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
    Error::Callback(Box::new(error))
}

/// What is shared, of this moment; waits, without the interpreter, for whoever is changing it.
pub fn read_shared<T: Clone + Send>(py: Python<'_>, shared: &Shared<T>) -> PyResult<T> {
    match shared.try_with(|value| value.clone()).map_err(to_py_err)? {
        Some(value) => Ok(value),
        None => enter_core(py, |interrupt| shared.with(interrupt, |value| value.clone())),
    }
}

/// Whether Python handles signals in this thread; in others it has nothing to ask for.
fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import("threading")?;
    threading.call_method0("get_ident")?.eq(threading.call_method0("main_thread")?.getattr("ident")?)
}
