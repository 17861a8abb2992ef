//! The first sublayer of a block: tokens exchange information, by mixing or by attention.

pub(super) mod attention;
mod attention_head;
mod convolution;
mod linear;
mod spectral;
mod structured;

use std::sync::Arc;

use crate::config::{MixingMechanism, SparseMixerConfig};
use crate::error::{Error, Result};
use crate::kernels::Real;
use crate::params::{Gradients, WeightList, Weights};
use crate::runtime::{ActivationPanels, Buffer, TaskScratch};
use crate::sys::{Place, at};

use crate::network::pass::{Pass, RowGroup};
use crate::network::position_bias::PositionBias;
use attention::{Attention, KeysValues};
pub use linear::OwnedMatrices;
use linear::{LinearMixing, MixingMatrices};
use spectral::{DftMixing, FftMixing, Spectrum};
use structured::{StructuredMixing, StructuredMixingState};

/// The first sublayer.
#[derive(Clone, Debug)]
pub enum Mix<R> {
    /// Learned matrices.
    Linear(LinearMixing),
    /// Circulant or Toeplitz matrices from learned vectors.
    Structured(StructuredMixing<R>),
    /// Fixed matrices: a discrete Fourier transform.
    Dft(DftMixing<R>),
    /// A fast Fourier transform.
    Fft(FftMixing<R>),
    /// Self-attention.
    Attention(Attention),
}

/// What the first sublayer made of all tokens, for row blocks to finish.
pub enum MixingState<'m, R: Real> {
    /// A product with the hidden kernels.
    Panels(MixingMatrices<'m, R>, ActivationPanels<R>),
    /// See [`StructuredMixingState`].
    Structured(StructuredMixingState<'m, R>),
    /// Both transforms.
    Spectrum(Spectrum<R>),
    /// What queries look at.
    KeysValues(KeysValues<R>),
}

/// The part of [`MixingState`] that backward needs as well.
#[derive(Debug)]
pub enum MixingCache<R: Real> {
    /// Of learned matrices.
    Panels(ActivationPanels<R>),
    /// Of attention, with its [`Mix::kept_width`] rows.
    Attention(KeysValues<R>, [Buffer<R>; 2]),
}

impl<R: Real> Mix<R> {
    /// Declares the first sublayer of block `layer`.
    pub fn new(
        list: &mut WeightList,
        prefix: &str,
        config: &SparseMixerConfig,
        layer: usize,
        position_bias: Option<PositionBias>,
    ) -> Self {
        let (hidden, seq) = (config.hidden_size, config.max_sequence_length);
        if config.is_attention(layer) {
            return Mix::Attention(Attention::new(
                list,
                prefix,
                hidden,
                config.num_attention_heads,
                position_bias,
            ));
        }
        match config.mixing_mechanism {
            MixingMechanism::Linear => Mix::Linear(LinearMixing::new(list, prefix, hidden, seq)),
            MixingMechanism::Circulant | MixingMechanism::Toeplitz => {
                Mix::Structured(StructuredMixing::new(list, prefix, config))
            }
            mechanism if config.use_fft => Mix::Fft(FftMixing::new(mechanism, seq, hidden)),
            mechanism => Mix::Dft(DftMixing::new(mechanism)),
        }
    }

    /// Forgets what was made of weights that have `changed`.
    pub fn invalidate(&mut self, changed: &dyn Fn(usize) -> bool) {
        if let Mix::Structured(mix) = self {
            mix.invalidate(changed);
        }
    }

    /// The matrices beside the weights: made of learned vectors, or fixed, which blocks share.
    pub fn own_matrices(&self) -> Option<&OwnedMatrices<R>> {
        match self {
            Mix::Structured(mix) => mix.own_matrices(),
            Mix::Dft(mix) => mix.own_matrices(),
            Mix::Linear(_) | Mix::Fft(_) | Mix::Attention(_) => None,
        }
    }

    /// Which of two places the sublayer is in: attention, mixing.
    fn place(&self, [attention, mixing]: [Place; 2]) -> Place {
        if matches!(self, Mix::Attention(_)) { attention } else { mixing }
    }

    /// Makes what calls need beside the weights, unless it is there. `shared` is what blocks have in common.
    pub fn refresh(
        &mut self,
        weights: &Weights<R>,
        config: &SparseMixerConfig,
        shared: &mut Option<Arc<OwnedMatrices<R>>>,
    ) {
        match self {
            Mix::Structured(mix) => mix.refresh(weights),
            Mix::Dft(mix) => {
                mix.refresh(config.max_sequence_length, config.hidden_size, weights.dtype(), shared);
            }
            Mix::Linear(_) | Mix::Fft(_) | Mix::Attention(_) => {}
        }
    }

    /// The part that needs all tokens: `q` is what queries and mixing read, `kv` what keys and values read.
    pub fn prepare<'m>(&'m self, pass: &Pass<'m, R>, q: &[R], kv: &[R]) -> Result<MixingState<'m, R>> {
        let _place = at(self.place([Place::AttentionPrepare, Place::MixingPrepare]));
        Ok(match self {
            Mix::Linear(mix) => {
                let matrices = mix.matrices(pass.weights);
                MixingState::Panels(matrices, matrices.prepare(pass, q)?)
            }
            Mix::Structured(mix) => MixingState::Structured(mix.prepare(pass, q)?),
            Mix::Dft(mix) => match mix.matrices(pass) {
                Some(matrices) => MixingState::Panels(matrices, matrices.prepare(pass, q)?),
                None => MixingState::Spectrum(mix.for_other_length(pass).prepare(pass, q)?),
            },
            Mix::Fft(mix) => MixingState::Spectrum(mix.prepare(pass, q)?),
            Mix::Attention(attend) => MixingState::KeysValues(attend.prepare(pass, kv)?),
        })
    }

    /// Values per token of each of the two arrays that backward needs again of what [`Mix::rows`] makes on the way.
    pub fn kept_width(&self, pass: &Pass<'_, R>) -> usize {
        if pass.keep && matches!(self, Mix::Attention(_)) { pass.config.hidden_size } else { 0 }
    }

    /// The sublayer's output for the rows of `group`; `q` as in `prepare`, all rows. `kept` has these rows of what is kept,
    /// both empty where nothing is.
    pub fn rows(
        &self,
        pass: &Pass<'_, R>,
        mixed: &MixingState<'_, R>,
        layer: usize,
        group: RowGroup<'_>,
        q: &[R],
        out: &mut [R],
        kept: [&mut [R]; 2],
        scratch: &mut TaskScratch<R>,
    ) {
        let _place = at(self.place([Place::AttentionRows, Place::MixingRows]));
        if let (Mix::Attention(attend), MixingState::KeysValues(state)) = (self, mixed) {
            return attend.rows(pass, state, layer, group, q, out, kept, scratch);
        }
        for (block, out) in group.split(out, pass.config.hidden_size) {
            match mixed {
                MixingState::Panels(mix, panels) => mix.rows(pass, panels, block, out, scratch),
                MixingState::Structured(mixed) => mixed.rows(pass, block, out, scratch),
                MixingState::Spectrum(spectrum) => spectrum.rows(block, out),
                MixingState::KeysValues(_) => unreachable!("`mixed` is what this sublayer prepared"),
            }
        }
    }

    /// `prepare` and `rows` at once, where tasks can share out the work on few rows better: the sublayer's output for the
    /// first `rows` rows of every example. `None` if there is no such way.
    pub fn few_rows(
        &self,
        pass: &Pass<'_, R>,
        layer: usize,
        q: &[R],
        kv: &[R],
        rows: usize,
        out: &mut [R],
    ) -> Option<Result<()>> {
        let _place = at(Place::AttentionRows);
        match self {
            Mix::Attention(attend) if pass.are_few(pass.batch * pass.seq) => {
                Some(attend.few_rows(pass, layer, q, kv, rows, out))
            }
            _ => None,
        }
    }

    /// What is to be kept of `mixed`, and of the `rows` of [`Mix::kept_width`], for backward.
    pub fn keep(&self, mixed: MixingState<'_, R>, rows: [Buffer<R>; 2]) -> Option<MixingCache<R>> {
        match (self, mixed) {
            (Mix::Linear(_), MixingState::Panels(_, panels)) => Some(MixingCache::Panels(panels)),
            (_, MixingState::KeysValues(state)) => Some(MixingCache::Attention(state, rows)),
            _ => None,
        }
    }

    /// Backward of the sublayer: writes `dq`, adds to `dkv` and to the gradients.
    pub fn backward(
        &self,
        pass: &Pass<'_, R>,
        layer: usize,
        q: &[R],
        kv: &[R],
        kept: Option<&MixingCache<R>>,
        dy: &[R],
        dq: &mut [R],
        dkv: &mut [R],
        gradients: &mut Gradients<R>,
    ) -> Result<()> {
        let _place = at(self.place([Place::AttentionBackward, Place::MixingBackward]));
        match self {
            Mix::Linear(mix) => {
                let mixed = if let Some(MixingCache::Panels(panels)) = kept { Some(panels) } else { None };
                mix.backward(pass, q, mixed, dy, dq, gradients)
            }
            Mix::Structured(mix) => mix.backward(pass, q, dy, dq, gradients),
            Mix::Dft(mix) => match mix.matrices(pass) {
                Some(matrices) => matrices.backward(pass, q, None, dy, dq, [None, None]),
                None => mix.for_other_length(pass).backward(pass, dy, dq),
            },
            Mix::Fft(mix) => mix.backward(pass, dy, dq),
            Mix::Attention(attend) => {
                let Some(MixingCache::Attention(state, rows)) = kept else {
                    return Err(Error::Internal("attention without its training record".into()));
                };
                attend.backward(pass, state, rows, layer, q, kv, dy, dq, dkv, gradients)
            }
        }
    }
}
