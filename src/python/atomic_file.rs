//! Files that Python writes itself, with the guarantees of those that the core writes.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;

use super::enter::{enter_core, guard, to_py_err};
use crate::checkpoint;
use crate::error::Error;

/// A file being written beside its final place.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct AtomicFile {
    temporary: PathBuf,
    /// None once it is committed or given up.
    file: Mutex<Option<checkpoint::AtomicFile>>,
}

impl AtomicFile {
    fn take(&self) -> Option<checkpoint::AtomicFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[pymethods]
impl AtomicFile {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        guard(|| {
            let file = enter_core(py, |_| checkpoint::AtomicFile::create(&path))?;
            Ok(Self { temporary: file.temporary().to_owned(), file: Mutex::new(Some(file)) })
        })
    }

    #[getter]
    fn temporary(&self) -> &OsStr {
        self.temporary.as_os_str()
    }

    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        guard(|| {
            let file = self
                .take()
                .ok_or_else(|| to_py_err(Error::value("AtomicFile", "it has been committed or given up")))?;
            enter_core(py, |interrupt| file.commit(interrupt))
        })
    }

    fn discard(&self) {
        drop(self.take());
    }
}
