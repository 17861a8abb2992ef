//! Memory that the core hands over to numpy.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::enter::guard;
use super::gradient_memory::GradientHome;
use crate::runtime::Buffer;

/// Numbers in memory of the core, which nobody but numpy reads or writes from now on. The memory serves the core again
/// when the last array on it is gone.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct Memory {
    values: Buffer<f32>,
    address: usize,
    /// Dropped after the memory.
    _home: Arc<GradientHome>,
}

impl Memory {
    /// Takes over `values`, gradients of the weights of `home`.
    pub fn new(mut values: Buffer<f32>, home: Arc<GradientHome>) -> Self {
        let address = values.as_mut_ptr().expose_provenance();
        Memory { values, address, _home: home }
    }
}

#[pymethods]
impl Memory {
    /// What `numpy.asarray` makes an array of, float32 with one axis.
    #[getter(__array_interface__)]
    fn array_interface<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        guard(|| array_interface(py, self.address, self.values.len()))
    }
}

/// What numpy reads and writes `len` float32 values at `address` by.
///
/// # Errors
/// Those of Python.
pub fn array_interface(py: Python<'_>, address: usize, len: usize) -> PyResult<Bound<'_, PyDict>> {
    let interface = PyDict::new(py);
    interface.set_item("version", 3)?;
    interface.set_item("typestr", if cfg!(target_endian = "big") { ">f4" } else { "<f4" })?;
    interface.set_item("shape", (len,))?;
    interface.set_item("data", (address, false))?;
    Ok(interface)
}
