//! Arrays between numpy and the core. Everything that comes in is copied, so Python may change it at any time.

use numpy::{Element, PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::enter::{callback_error, to_py_err};
use crate::error::{Error, Result};

/// A C-contiguous array's values and shape.
#[derive(Debug)]
pub struct Values<T> {
    /// Row-major.
    pub data: Vec<T>,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
}

impl<T> Values<T> {
    /// Checks the shape.
    pub fn expect_shape(&self, argument: &str, expected: &[usize]) -> PyResult<()> {
        expect(argument, &self.shape, expected)
    }
}

/// Checks type and shape of a float32 array without copying it.
pub fn expect_floats(argument: &str, array: &Bound<'_, PyAny>, shape: &[usize]) -> PyResult<()> {
    let array = typed::<f32>(argument, array, "float32")?;
    expect(argument, array.shape(), shape)
}

/// A float32 array of `shape`, for reading in place.
///
/// # Errors
/// `ValueError` and `TypeError`, also for an array that somebody else is writing to.
pub fn borrow_floats<'py>(
    argument: &str,
    array: &Bound<'py, PyAny>,
    shape: &[usize],
) -> PyResult<PyReadonlyArrayDyn<'py, f32>> {
    let array = typed::<f32>(argument, array, "float32")?;
    expect(argument, array.shape(), shape)?;
    Ok(array.try_readonly()?)
}

/// The values of a borrowed array.
///
/// # Errors
/// `ValueError` if they are not one after the other.
pub fn contiguous<'a>(argument: &str, array: &'a PyReadonlyArrayDyn<'_, f32>) -> PyResult<&'a [f32]> {
    array.as_slice().map_err(|_| not_contiguous(argument))
}

/// Calls `work` with the values of a float32 array of `shape`, which are not copied.
pub fn with_floats<T>(
    argument: &str,
    array: &Bound<'_, PyAny>,
    shape: &[usize],
    work: impl FnOnce(&[f32]) -> Result<T>,
) -> Result<T> {
    let borrowed = borrow_floats(argument, array, shape).map_err(callback_error)?;
    work(contiguous(argument, &borrowed).map_err(callback_error)?)
}

/// The values of a float32 array with `axes` axes.
pub fn floats(argument: &str, array: &Bound<'_, PyAny>, axes: usize) -> PyResult<Values<f32>> {
    values(argument, array, axes, "float32")
}

/// The values, if there is no NaN or infinity among them.
pub fn finite<T: Copy + Into<f64>, V: AsRef<[T]>>(argument: &str, values: V) -> PyResult<V> {
    match values.as_ref().iter().map(|&value| value.into()).find(|value| !value.is_finite()) {
        None => Ok(values),
        Some(value) => {
            Err(to_py_err(Error::value(argument, format!("got {value}, expected finite numbers"))))
        }
    }
}

/// The values of an int32 or int64 array with `axes` axes.
pub fn integers(argument: &str, array: &Bound<'_, PyAny>, axes: usize) -> PyResult<Values<i64>> {
    if array.cast::<PyArrayDyn<i32>>().is_err() {
        return values(argument, array, axes, "int32 or int64");
    }
    let narrow = values::<i32>(argument, array, axes, "int32 or int64")?;
    let wide = copied(argument, narrow.data.len(), narrow.data.into_iter().map(i64::from))?;
    Ok(Values { data: wide, shape: narrow.shape })
}

fn values<T: Element + Copy>(
    argument: &str,
    array: &Bound<'_, PyAny>,
    axes: usize,
    types: &str,
) -> PyResult<Values<T>> {
    read(argument, array, axes, types, |shape, slice| {
        Ok(Values { data: copied(argument, slice.len(), slice.iter().copied())?, shape: shape.to_vec() })
    })
}

/// Copies the values of a float32 array of `shape` to `out`.
pub fn read_floats(
    argument: &str,
    array: &Bound<'_, PyAny>,
    shape: &[usize],
    out: &mut [f32],
) -> PyResult<()> {
    read(argument, array, shape.len(), "float32", |got, slice| {
        expect(argument, got, shape)?;
        out.copy_from_slice(slice);
        Ok(())
    })
}

/// Does `work` with shape and values of an array with `axes` axes.
fn read<T: Element, U>(
    argument: &str,
    array: &Bound<'_, PyAny>,
    axes: usize,
    types: &str,
    work: impl FnOnce(&[usize], &[T]) -> PyResult<U>,
) -> PyResult<U> {
    let array = typed::<T>(argument, array, types)?;
    if array.ndim() != axes {
        let message = format!("got shape {:?}, expected {axes} axes", array.shape());
        return Err(to_py_err(Error::value(argument, message)));
    }
    let borrowed = array.try_readonly()?;
    let slice = borrowed.as_slice().map_err(|_| not_contiguous(argument))?;
    work(array.shape(), slice)
}

fn not_contiguous(argument: &str) -> PyErr {
    PyTypeError::new_err(format!("{argument}: expected a C-contiguous, aligned array"))
}

/// `len` values in memory that the system may refuse.
pub fn copied<T>(argument: &str, len: usize, values: impl Iterator<Item = T>) -> PyResult<Vec<T>> {
    let mut data = Vec::new();
    if data.try_reserve_exact(len).is_err() {
        let bytes = len.saturating_mul(size_of::<T>());
        return Err(to_py_err(Error::Memory { what: argument.into(), bytes }));
    }
    data.extend(values);
    Ok(data)
}

fn typed<'a, 'py, T: Element>(
    argument: &str,
    array: &'a Bound<'py, PyAny>,
    types: &str,
) -> PyResult<&'a Bound<'py, PyArrayDyn<T>>> {
    array.cast::<PyArrayDyn<T>>().map_err(|_| {
        let kind = array.get_type();
        PyTypeError::new_err(format!("{argument}: expected a numpy array of {types}, got {kind}"))
    })
}

fn expect(argument: &str, shape: &[usize], expected: &[usize]) -> PyResult<()> {
    if shape == expected {
        return Ok(());
    }
    Err(to_py_err(Error::value(argument, format!("got shape {shape:?}, expected {expected:?}"))))
}

/// A numpy array of `shape` that takes over `data`.
pub fn to_numpy<'py, T: Element>(
    py: Python<'py>,
    data: Vec<T>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    PyArray1::from_vec(py, data).reshape(shape.to_vec())
}

/// Reads JSON that the Python side made.
pub fn parse<T: serde::de::DeserializeOwned>(argument: &str, text: &str) -> PyResult<T> {
    serde_json::from_str(text).map_err(|error| to_py_err(Error::value(argument, error.to_string())))
}
