//! Numbers of threads as Python passes them.

use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;

use super::enter::to_py_err;
use crate::error::Error;

/// More than any machine has, few enough to be refused by no system.
const MAX_THREADS: i64 = 4096;

/// A number of threads, in range.
pub struct ThreadCount(usize);

impl<'a, 'py> FromPyObject<'a, 'py> for ThreadCount {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let number = match value.extract::<i64>() {
            // Too large for an integer of the core.
            Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => None,
            other => Some(other?),
        };
        let in_range = number.filter(|number| (1..=MAX_THREADS).contains(number));
        in_range.and_then(|number| usize::try_from(number).ok()).map(ThreadCount).ok_or_else(|| {
            let value: &Bound<'_, PyAny> = &value;
            let message = format!("got {value}, expected 1 to {MAX_THREADS}, or None for the default");
            to_py_err(Error::value("num_threads", message))
        })
    }
}

/// The number of threads, 0 for the default.
pub fn thread_count(num_threads: Option<ThreadCount>) -> usize {
    num_threads.map_or(0, |count| count.0)
}
