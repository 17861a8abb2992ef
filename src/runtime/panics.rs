//! What becomes of panics.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::sys::OutOfMemory;

/// Does `work`; a panic in it is an error.
///
/// # Errors
/// Those of `work`, and that of [`panic_error`].
pub fn catch<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panic_error(panic.as_ref())))
}

/// The error for a panic: [`Error::Memory`] if the system refused memory, else [`Error::Internal`].
pub fn panic_error(panic: &(dyn Any + Send)) -> Error {
    if let Some(refused) = panic.downcast_ref::<OutOfMemory>() {
        return Error::Memory { what: "a computation".into(), bytes: refused.bytes };
    }
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    Error::Internal(text.unwrap_or_else(|| "a panic without a message".into()))
}

/// The lock of a value that no panic leaves half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
