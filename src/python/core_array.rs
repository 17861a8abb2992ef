//! Arrays that stay in the core on their way between encoder and heads.

use std::borrow::Cow;
use std::sync::Arc;

use numpy::{PyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::convert::{copied, floats, to_numpy};
use super::enter::{guard, to_py_err};
use crate::error::Error;
use crate::runtime::Buffer;
use crate::sys::alloc_zeroed;

/// A float32 array in the core: an output of a recorded call, or a gradient of one. Never changes.
#[pyclass(frozen, module = "sparse_mixer._native")]
#[derive(Clone)]
pub struct CoreArray {
    values: Arc<Values>,
    shape: Vec<usize>,
}

enum Values {
    Plain(Vec<f32>),
    /// Of a record, which reads it as well.
    Scratch(Arc<Buffer<f32>>),
}

impl CoreArray {
    /// Takes over `values`.
    pub fn new(values: Vec<f32>, shape: &[usize]) -> Self {
        CoreArray { values: Arc::new(Values::Plain(values)), shape: shape.to_vec() }
    }

    /// Shares `values` with a record.
    pub fn shared(values: Arc<Buffer<f32>>, shape: &[usize]) -> Self {
        CoreArray { values: Arc::new(Values::Scratch(values)), shape: shape.to_vec() }
    }

    /// The elements, row-major.
    pub fn values(&self) -> &[f32] {
        match &*self.values {
            Values::Plain(values) => values,
            Values::Scratch(values) => values,
        }
    }

    /// Sizes of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Checks the number of axes.
    pub fn expect_axes(self, argument: &str, axes: usize) -> PyResult<Self> {
        if self.shape.len() == axes {
            return Ok(self);
        }
        let message = format!("got shape {:?}, expected {axes} axes", self.shape);
        Err(to_py_err(Error::value(argument, message)))
    }
}

#[pymethods]
impl CoreArray {
    #[getter(shape)]
    fn py_shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    /// A copy.
    fn numpy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        guard(|| {
            let values = self.values();
            to_numpy(py, copied("values", values.len(), values.iter().copied())?, &self.shape)
        })
    }
}

/// What Python hands over where numbers are wanted: an array of the core as it is, or one of numpy, to be copied.
#[derive(FromPyObject)]
pub enum FloatArray<'py> {
    /// In the core.
    Core(Bound<'py, CoreArray>),
    /// Of numpy.
    Numpy(Bound<'py, PyAny>),
}

impl FloatArray<'_> {
    /// The numbers, copied only if they are not in the core.
    pub fn read(&self, argument: &str) -> PyResult<CoreArray> {
        match self {
            FloatArray::Core(array) => Ok(array.get().clone()),
            FloatArray::Numpy(array) => {
                let axes = array.cast::<PyArrayDyn<f32>>().map_or(0, |array| array.ndim());
                let values = floats(argument, array, axes)?;
                Ok(CoreArray::new(values.data, &values.shape))
            }
        }
    }
}

/// A term of the gradient of an output: of all positions, or of one, `[B, H]`.
#[derive(FromPyObject)]
pub struct GradientTerm<'py>(pub Option<usize>, pub FloatArray<'py>);

/// The same, read.
pub type ReadTerm = (Option<usize>, CoreArray);

/// The sum of `terms`, as many values as an output of shape `[batch, rows, width]` has.
///
/// # Errors
/// [`Error::Value`] naming `argument`.
pub fn sum_of_terms<'a>(
    argument: &str,
    terms: &'a [ReadTerm],
    [batch, rows, width]: [usize; 3],
) -> Result<Cow<'a, [f32]>, Error> {
    if let [(None, whole)] = terms {
        return Ok(Cow::Borrowed(whole.values()));
    }
    let mut sum: Vec<f32> = alloc_zeroed(batch * rows * width);
    for (position, term) in terms {
        let (values, at) = (term.values(), position.unwrap_or(0));
        let own_rows = if position.is_some() { 1 } else { rows };
        if values.len() != batch * own_rows * width || at + own_rows > rows {
            let message = format!("got shape {:?}, expected [{batch}, {own_rows}, {width}]", term.shape());
            return Err(Error::value(argument, message));
        }
        for (sum, values) in sum.chunks_exact_mut(rows * width).zip(values.chunks_exact(own_rows * width)) {
            sum[at * width..].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
    }
    Ok(Cow::Owned(sum))
}
