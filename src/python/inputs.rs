//! The arrays of one call, checked to fit together.

use pyo3::prelude::*;

use super::convert::{Values, floats, integers};
use super::enter::to_py_err;
use crate::config::SparseMixerConfig;
use crate::error::Error;
use crate::network::{OwnedInputs, OwnedWords};

/// The arrays of a call, as Python passes them.
pub struct RawInputs<'a, 'py> {
    /// `[B, S']`, or `None` with `word_embeddings`.
    pub word_ids: Option<&'a Bound<'py, PyAny>>,
    /// `[B, S']`
    pub mask: Option<&'a Bound<'py, PyAny>>,
    /// `[B, S']`
    pub type_ids: Option<&'a Bound<'py, PyAny>>,
    /// `[B, S', W]`
    pub word_embeddings: Option<&'a Bound<'py, PyAny>>,
    /// `[B, S - S', W]`
    pub dense_inputs: Option<&'a Bound<'py, PyAny>>,
    /// `[B, S - S']`
    pub dense_mask: Option<&'a Bound<'py, PyAny>>,
    /// `[B, S - S']`
    pub dense_type_ids: Option<&'a Bound<'py, PyAny>>,
}

impl RawInputs<'_, '_> {
    /// Copies the arrays, joins the dense part to the words, and checks that their shapes fit together and to `config`. Values are the core's to check.
    pub fn read(&self, config: &SparseMixerConfig) -> PyResult<OwnedInputs<f32>> {
        let width = config.embedding_width();
        let (argument, shape, words) = match (self.word_embeddings, self.word_ids) {
            (Some(array), _) => {
                let rows = floats("input_word_embeddings", array, 3)?;
                rows.expect_shape("input_word_embeddings", &[rows.shape[0], rows.shape[1], width])?;
                ("input_word_embeddings", rows.shape, OwnedWords::Embeddings(rows.data))
            }
            (None, Some(array)) => {
                let ids = integers("input_word_ids", array, 2)?;
                ("input_word_ids", ids.shape, OwnedWords::Ids(ids.data))
            }
            (None, None) => return Err(missing("input_word_ids")),
        };
        let (batch, word_len) = (shape[0], shape[1]);
        let dense = self.dense_inputs.map(|array| floats("dense_inputs", array, 3)).transpose()?;
        let dense_len = dense.as_ref().map_or(0, |rows| rows.shape[1]);
        let seq = word_len + dense_len;
        let (argument, got) = match &dense {
            None => (argument, format!("got sequence length {word_len}")),
            Some(_) => ("dense_inputs", format!("got {dense_len} positions after {word_len} of words")),
        };
        config.check_length(seq, argument, &got).map_err(to_py_err)?;
        if let Some(rows) = &dense {
            rows.expect_shape("dense_inputs", &[batch, dense_len, width])?;
        }
        let parts = (word_len, dense.is_some().then_some(dense_len));
        let type_ids = joined(
            batch,
            parts,
            ("input_type_ids", self.type_ids.map(|a| integers("input_type_ids", a, 2)).transpose()?),
            ("dense_type_ids", self.dense_type_ids.map(|a| integers("dense_type_ids", a, 2)).transpose()?),
        )?
        .ok_or_else(|| missing("input_type_ids"))?;
        let mask = joined(
            batch,
            parts,
            ("input_mask", self.mask.map(|a| floats("input_mask", a, 2)).transpose()?),
            ("dense_mask", self.dense_mask.map(|a| floats("dense_mask", a, 2)).transpose()?),
        )?;
        Ok(OwnedInputs {
            batch,
            seq,
            word_len,
            words,
            dense: dense.map_or(Vec::new(), |d| d.data),
            type_ids,
            mask,
        })
    }
}

/// Joins `[batch, first]` and `[batch, second]` along the last axis; `None` if there is no first part.
fn joined<T: Copy>(
    batch: usize,
    (first_len, second_len): (usize, Option<usize>),
    (first_name, first): (&str, Option<Values<T>>),
    (second_name, second): (&str, Option<Values<T>>),
) -> PyResult<Option<Vec<T>>> {
    let Some(first) = first else { return Ok(None) };
    first.expect_shape(first_name, &[batch, first_len])?;
    let Some(second_len) = second_len else { return Ok(Some(first.data)) };
    let second = second.ok_or_else(|| missing(second_name))?;
    second.expect_shape(second_name, &[batch, second_len])?;
    let mut all = Vec::with_capacity(first.data.len() + second.data.len());
    for example in 0..batch {
        all.extend_from_slice(&first.data[example * first_len..][..first_len]);
        all.extend_from_slice(&second.data[example * second_len..][..second_len]);
    }
    Ok(Some(all))
}

fn missing(argument: &str) -> PyErr {
    to_py_err(Error::value(argument, "missing"))
}
