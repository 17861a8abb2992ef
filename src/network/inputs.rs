//! What one call computes on, checked against the configuration.

use crate::config::SparseMixerConfig;
use crate::error::{Error, Result};
use crate::kernels::Real;

/// Where the word rows come from.
#[derive(Clone, Copy, Debug)]
pub enum Words<'a, R> {
    /// Rows of the word table, `[B, S']`.
    Ids(&'a [i64]),
    /// Given rows, `[B, S', W]`.
    Embeddings(&'a [R]),
}

/// The inputs of one call. With dense inputs, type ids and mask cover the words first, then the dense part.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, R> {
    /// `B`
    pub batch: usize,
    /// `S`
    pub seq: usize,
    /// The word rows.
    pub words: Words<'a, R>,
    /// `S'`: positions that the words take; the dense part takes the rest.
    pub word_len: usize,
    /// Rows after the words, `[B, S - S', W]`.
    pub dense: &'a [R],
    /// `[B, S]`
    pub type_ids: &'a [i64],
    /// `[B, S]`; `None` is allowed without attention layers, and for word ids where the rules have a `pad_id`.
    pub mask: Option<&'a [R]>,
}

/// [`Inputs`] that live as long as the tape.
#[derive(Clone, Debug)]
pub struct OwnedInputs<R> {
    /// `B`
    pub batch: usize,
    /// `S`
    pub seq: usize,
    /// The word rows.
    pub words: OwnedWords<R>,
    /// Positions that the words take.
    pub word_len: usize,
    /// Rows after the words, `[B, S - S', W]`.
    pub dense: Vec<R>,
    /// `[B, S]`
    pub type_ids: Vec<i64>,
    /// `[B, S]`
    pub mask: Option<Vec<R>>,
}

/// [`Words`] that live as long as the tape.
#[derive(Clone, Debug)]
pub enum OwnedWords<R> {
    /// Rows of the word table, `[B, S']`.
    Ids(Vec<i64>),
    /// Given rows, `[B, S', W]`.
    Embeddings(Vec<R>),
}

impl<R: Real> OwnedInputs<R> {
    /// The inputs, borrowed.
    pub fn view(&self) -> Inputs<'_, R> {
        Inputs {
            batch: self.batch,
            seq: self.seq,
            words: match &self.words {
                OwnedWords::Ids(ids) => Words::Ids(ids),
                OwnedWords::Embeddings(rows) => Words::Embeddings(rows),
            },
            word_len: self.word_len,
            dense: &self.dense,
            type_ids: &self.type_ids,
            mask: self.mask.as_deref(),
        }
    }
}

impl<R: Real> Inputs<'_, R> {
    /// Checks lengths, ranges and finiteness.
    pub fn check(&self, config: &SparseMixerConfig) -> Result<()> {
        let (batch, seq, width) = (self.batch, self.seq, config.embedding_width());
        let words = match self.words {
            Words::Ids(ids) => (ids.len(), batch * self.word_len, "input_word_ids"),
            Words::Embeddings(rows) => (rows.len(), batch * self.word_len * width, "input_word_embeddings"),
        };
        config.check_length(seq, words.2, &format!("got sequence length {seq}"))?;
        let dense_len = seq.checked_sub(self.word_len).ok_or_else(|| {
            Error::value(
                words.2,
                format!("got {} word positions, expected at most the sequence length ({seq})", self.word_len),
            )
        })?;
        let lengths = [
            words,
            (self.dense.len(), batch * dense_len * width, "dense_inputs"),
            (self.type_ids.len(), batch * seq, "input_type_ids"),
            (self.mask.map_or(batch * seq, <[R]>::len), batch * seq, "input_mask"),
        ];
        for (got, expected, argument) in lengths {
            if got != expected {
                return Err(Error::value(
                    argument,
                    format!(
                        "got {got} values, expected {expected} for batch {batch} and sequence length {seq}"
                    ),
                ));
            }
        }
        let ids_tell =
            config.semantics().pad_id.is_some() && matches!(self.words, Words::Ids(_)) && dense_len == 0;
        if self.mask.is_none() && !config.attention_layers.is_empty() && !ids_tell {
            return Err(Error::value("input_mask", "missing; the attention layers need it"));
        }
        match self.words {
            Words::Ids(ids) => {
                check_ids("input_word_ids", ids, self.word_len, config.vocab_size, "vocab_size")?
            }
            Words::Embeddings(rows) => check_finite("input_word_embeddings", rows, self.word_len, width)?,
        }
        check_finite("dense_inputs", self.dense, dense_len, width)?;
        if config.semantics().check_type_ids {
            check_ids("input_type_ids", self.type_ids, seq, config.type_vocab_size, "type_vocab_size")?;
        }
        if let Some(mask) = self.mask
            && let Some(at) = mask.iter().position(|m| !m.is_finite())
        {
            return Err(Error::value(
                "input_mask",
                format!("got a value that is not finite at position [{}, {}]", at / seq, at % seq),
            ));
        }
        Ok(())
    }
}

fn check_ids(argument: &str, ids: &[i64], seq: usize, size: usize, limit: &str) -> Result<()> {
    match ids.iter().position(|&id| id < 0 || id as u64 >= size as u64) {
        None => Ok(()),
        Some(at) => Err(Error::value(
            argument,
            format!(
                "got id {} at position [{}, {}], expected 0 <= id < {limit} ({size})",
                ids[at],
                at / seq,
                at % seq
            ),
        )),
    }
}

fn check_finite<R: Real>(argument: &str, rows: &[R], seq: usize, width: usize) -> Result<()> {
    match rows.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::value(
            argument,
            format!(
                "got {:?} at position [{}, {}, {}], expected finite values",
                rows[at],
                at / width / seq,
                at / width % seq,
                at % width
            ),
        )),
    }
}
