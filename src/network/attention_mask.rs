//! What becomes of attention scores before the softmax: which keys a query attends to, and biases by their distance.

use crate::config::SparseMixerConfig;
use crate::error::Result;
use crate::kernels::{Isa, Real, add_in_place};
use crate::runtime::{Buffer, Context};
use crate::sys::{Work, alloc_collect, timed};

use super::inputs::{Inputs, Words};
use super::position_bias::of_query;

/// What becomes of attention scores before the softmax.
#[derive(Debug)]
pub struct AttentionMask<R: Real> {
    keys: Keys<R>,
    /// Added to the scores first, by head: see [`PositionBias::by_offset`].
    biases: Option<Buffer<R>>,
}

/// Which keys queries attend to.
#[derive(Debug)]
enum Keys<R: Real> {
    /// There is no attention.
    Unused,
    /// Added to the scores of every query of an example, `[B, S]`: `(1 - mask) * -1e9`, rounded as 32-bit arithmetic
    /// rounds it. A fully masked example attends evenly. Source: `SelfAttentionMask`.
    Additive(Buffer<R>),
    /// The same by query, `[B, S, S]`: what a caller of a single block gives.
    AdditiveByQuery(Vec<R>),
    /// 1 for real tokens, 0 for padding, `[B, S]`. Real queries see real keys; padding attends evenly to all positions, padding
    /// included. Source: `layers.AttentionLayer` of the JAX code, whose mask replaces scores by the smallest number.
    Pairwise(Buffer<R>),
}

impl<R: Real> AttentionMask<R> {
    /// That of a call with `inputs`, which have been checked.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::error::Error::Interrupted)
    pub fn new(
        context: &Context<'_, R>,
        config: &SparseMixerConfig,
        inputs: &Inputs<'_, R>,
        biases: Option<Buffer<R>>,
    ) -> Result<Self> {
        Ok(AttentionMask { keys: Keys::new(context, config, inputs)?, biases })
    }

    /// That of a single block, whose caller may say for every query which keys it may see (1 or 0), `[B, S, S]`.
    pub fn by_query(mask: Option<&[R]>, biases: Option<Buffer<R>>) -> Self {
        let add = |mask: &[R]| alloc_collect(mask.iter().map(|&m| (R::ONE - m) * R::from_f64(-1e9)));
        AttentionMask { keys: mask.map_or(Keys::Unused, |mask| Keys::AdditiveByQuery(add(mask))), biases }
    }

    /// Biases and masks `scores` of head number `head`, rows of `seq` keys, of the queries `first..` of `example`.
    pub fn mask(&self, isa: Isa, example: usize, head: usize, first: usize, scores: &mut [R], seq: usize) {
        let _time = timed(Work::Softmax);
        if let Some(biases) = &self.biases {
            let biases = &biases[head * (2 * seq - 1)..][..2 * seq - 1];
            for (row, query) in scores.chunks_exact_mut(seq).zip(first..) {
                add_in_place(isa, row, of_query(biases, query, seq));
            }
        }
        self.keys.mask(isa, example, first, scores, seq);
    }

    /// Makes the gradients of the scores that [`AttentionMask::mask`] replaced zero.
    pub fn mask_gradient(&self, example: usize, first: usize, dscores: &mut [R], seq: usize) {
        let _time = timed(Work::Softmax);
        self.keys.mask_gradient(example, first, dscores, seq);
    }
}

impl<R: Real> Keys<R> {
    fn new(context: &Context<'_, R>, config: &SparseMixerConfig, inputs: &Inputs<'_, R>) -> Result<Self> {
        if config.attention_layers.is_empty() {
            return Ok(Keys::Unused);
        }
        let is_real = |real| if real { R::ONE } else { R::ZERO };
        Ok(match (config.semantics().pad_id, inputs.mask, inputs.words) {
            (None, Some(mask), _) => {
                let add = |&m: &R| (R::ONE - m) * R::from_f64(-1e9);
                Keys::Additive(each_value(context, mask, add)?)
            }
            (Some(_), Some(mask), _) => {
                Keys::Pairwise(each_value(context, mask, |&m| is_real(m != R::ZERO))?)
            }
            (Some(pad_id), None, Words::Ids(ids)) => {
                Keys::Pairwise(each_value(context, ids, |&id| is_real(id != pad_id))?)
            }
            _ => Keys::Unused,
        })
    }

    fn mask(&self, isa: Isa, example: usize, first: usize, scores: &mut [R], seq: usize) {
        match self {
            Keys::Unused => {}
            Keys::Additive(adder) => {
                let adder = &adder[example * seq..][..seq];
                scores.chunks_exact_mut(seq).for_each(|row| add_in_place(isa, row, adder));
            }
            Keys::AdditiveByQuery(adder) => {
                let adder = adder[(example * seq + first) * seq..].chunks_exact(seq);
                scores
                    .chunks_exact_mut(seq)
                    .zip(adder)
                    .for_each(|(row, adder)| add_in_place(isa, row, adder));
            }
            Keys::Pairwise(real) => {
                let keys = &real[example * seq..][..seq];
                for (row, &query) in scores.chunks_exact_mut(seq).zip(&keys[first..]) {
                    for (score, &key) in row.iter_mut().zip(keys) {
                        if query == R::ZERO || key == R::ZERO {
                            *score = R::from_f32(f32::MIN);
                        }
                    }
                }
            }
        }
    }

    fn mask_gradient(&self, example: usize, first: usize, dscores: &mut [R], seq: usize) {
        if let Keys::Pairwise(real) = self {
            let queries = &real[example * seq + first..(example + 1) * seq];
            for (row, _) in dscores.chunks_exact_mut(seq).zip(queries).filter(|(_, real)| **real == R::ZERO) {
                // Of a real query's row, the softmax has left nothing where keys were replaced.
                row.fill(R::ZERO);
            }
        }
    }
}

/// `value` of each of `values`.
fn each_value<R: Real, T: Sync>(
    context: &Context<'_, R>,
    values: &[T],
    value: impl Fn(&T) -> R + Sync,
) -> Result<Buffer<R>> {
    const PER_TASK: usize = 1 << 14;
    let mut out = context.buffer(values.len());
    context.each(out.chunks_mut(PER_TASK).zip(values.chunks(PER_TASK)), |(out, values), _| {
        out.iter_mut().zip(values).for_each(|(out, from)| *out = value(from));
    })?;
    Ok(out)
}
