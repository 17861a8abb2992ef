//! Gradients on their way to other processes and back: memory that is lent to numpy, sums, numbers in half their bits.

use std::sync::Mutex;

use bytemuck::Pod;
use half::bf16;
use numpy::{Element, PyArray1, PyArray2, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::enter::{enter_core, guard, to_py_err};
use super::memory::array_interface;
use crate::error::Error;
use crate::params::{self, Wire};
use crate::runtime::catch;
use crate::runtime::parallel::with_threads;

/// The right to the gradients of an encoder or head that are finished. Ends when it and all of its slices are dropped.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct GradientLease(params::GradientLease<f32>);

impl GradientLease {
    /// Takes over `lease`.
    pub fn new(lease: params::GradientLease<f32>) -> Self {
        GradientLease(lease)
    }
}

#[pymethods]
impl GradientLease {
    /// Number of values, room between gradients included.
    fn __len__(&self) -> usize {
        self.0.value_count()
    }

    /// Waits, without the interpreter, until all values before `end` are finished.
    fn wait_ready(&self, py: Python<'_>, end: usize) -> PyResult<()> {
        guard(|| {
            py.detach(|| self.0.wait(end));
            Ok(())
        })
    }

    /// The values from `start` on and before `end`, to be read and written.
    fn slice(&self, start: usize, end: usize) -> PyResult<GradientSlice> {
        guard(|| match self.0.slice(start..end) {
            Some(mut slice) => {
                let address = slice.as_mut_ptr().expose_provenance();
                Ok(GradientSlice { address, len: slice.len(), _slice: Mutex::new(slice) })
            }
            None => {
                let message = format!("{start}..{end} are not finished, or there is a slice of some of them");
                Err(to_py_err(Error::value("slice", message)))
            }
        })
    }
}

/// Some of the gradients on lease, which nobody but numpy reads or writes until the last array on them is gone.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct GradientSlice {
    address: usize,
    len: usize,
    /// Keeps the memory, and others from it.
    _slice: Mutex<params::GradientSlice<f32>>,
}

#[pymethods]
impl GradientSlice {
    /// What `numpy.asarray` makes an array of, float32 with one axis.
    #[getter(__array_interface__)]
    fn array_interface<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        guard(|| array_interface(py, self.address, self.len))
    }
}

/// Terms of sums, one per row.
#[derive(FromPyObject)]
pub enum Terms<'py> {
    /// As they are.
    Floats(Bound<'py, PyArray2<f32>>),
    /// As bits of bfloat16.
    Bits(Bound<'py, PyArray2<u16>>),
}

/// Writes the sum of the rows of `terms` whose flags are set to `sum`, added in the order of a balanced tree.
#[pyfunction]
pub fn tree_sum(
    py: Python<'_>,
    terms: Terms<'_>,
    present: Vec<bool>,
    sum: &Bound<'_, PyArray1<f32>>,
    num_threads: usize,
) -> PyResult<()> {
    guard(|| match terms {
        Terms::Floats(terms) => sum_rows::<f32, f32>(py, &terms, &present, sum, num_threads),
        Terms::Bits(terms) => sum_rows::<u16, bf16>(py, &terms, &present, sum, num_threads),
    })
}

/// Numbers `W` travel in arrays of `E`, which have as many bits.
fn sum_rows<E: Element + Pod, W: Wire + Pod>(
    py: Python<'_>,
    terms: &Bound<'_, PyArray2<E>>,
    present: &[bool],
    sum: &Bound<'_, PyArray1<f32>>,
    threads: usize,
) -> PyResult<()> {
    let (rows, len) = (terms.shape()[0], terms.shape()[1]);
    if rows != present.len() || len != sum.len() {
        let message = format!("got {rows} x {len}, expected {} x {}", present.len(), sum.len());
        return Err(to_py_err(Error::value("terms", message)));
    }
    let (terms, mut sum) = (terms.try_readonly()?, sum.try_readwrite()?);
    let (terms, sum) = (bytemuck::cast_slice(terms.as_slice()?), sum.as_slice_mut()?);
    let row = |(row, &present): (usize, &bool)| present.then(|| &terms[row * len..][..len]);
    let terms: Vec<Option<&[W]>> = present.iter().enumerate().map(row).collect();
    in_core(py, threads, || params::tree_sum(&terms, sum))
}

/// Writes the bits of the bfloat16 nearest to each of `values` to `out`.
#[pyfunction]
pub fn pack_bfloat16(
    py: Python<'_>,
    values: &Bound<'_, PyArray1<f32>>,
    out: &Bound<'_, PyArray1<u16>>,
    num_threads: usize,
) -> PyResult<()> {
    guard(|| {
        expect_as_many(values.len(), out.len())?;
        let (values, mut out) = (values.try_readonly()?, out.try_readwrite()?);
        let (values, out) = (values.as_slice()?, out.as_slice_mut()?);
        in_core(py, num_threads, || params::pack_bfloat16(values, bytemuck::cast_slice_mut(out)))
    })
}

/// Writes the numbers of which `bits` are the bits as bfloat16 to `out`.
#[pyfunction]
pub fn unpack_bfloat16(
    py: Python<'_>,
    bits: &Bound<'_, PyArray1<u16>>,
    out: &Bound<'_, PyArray1<f32>>,
    num_threads: usize,
) -> PyResult<()> {
    guard(|| {
        expect_as_many(bits.len(), out.len())?;
        let (bits, mut out) = (bits.try_readonly()?, out.try_readwrite()?);
        let (bits, out) = (bits.as_slice()?, out.as_slice_mut()?);
        in_core(py, num_threads, || params::unpack_bfloat16(bytemuck::cast_slice(bits), out))
    })
}

fn expect_as_many(values: usize, out: usize) -> PyResult<()> {
    if values == out {
        return Ok(());
    }
    Err(to_py_err(Error::value("out", format!("got room for {out} values, expected {values}"))))
}

/// Does `work` without the interpreter, with `threads` threads.
fn in_core(py: Python<'_>, threads: usize, work: impl FnOnce() + Send) -> PyResult<()> {
    enter_core(py, |_| {
        catch(|| {
            with_threads(threads, work);
            Ok(())
        })
    })
}
