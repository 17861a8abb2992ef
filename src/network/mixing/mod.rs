//! The first sublayer of a block: tokens exchange information, by mixing or by attention.

pub(super) mod attention;
mod convolution;
mod linear;
mod spectral;
mod structured;

use crate::config::{MixingMechanism, SparseMixerConfig};
use crate::error::{Error, Result};
use crate::kernels::Real;
use crate::params::{Loader, Param, ParamMut, Spec};
use crate::runtime::{ActivationPanels, TaskScratch};

use crate::network::pass::{Pass, RowBlock};
use attention::{Attention, KeysValues};
use linear::LinearMixing;
use spectral::{DftMixing, FftMixing, Spectrum};
use structured::{StructuredMixing, StructuredMixingState};

/// The first sublayer.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one per block, beside weights of megabytes")]
pub enum Mix<R> {
    /// Learned matrices.
    Linear(LinearMixing<R>),
    /// Circulant or Toeplitz matrices from learned vectors.
    Structured(StructuredMixing<R>),
    /// Fixed matrices: a discrete Fourier transform.
    Dft(DftMixing<R>),
    /// A fast Fourier transform.
    Fft(FftMixing<R>),
    /// Self-attention.
    Attention(Attention<R>),
}

/// What the first sublayer made of all tokens, for row blocks to finish.
pub enum MixingState<'m, R: Real> {
    /// A product with the hidden kernels.
    Panels(&'m LinearMixing<R>, ActivationPanels<R>),
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
    /// Of attention.
    KeysValues(KeysValues<R>),
}

/// The weights of the first sublayer of block `layer`.
pub fn specs(prefix: &str, config: &SparseMixerConfig, layer: usize) -> Vec<Spec> {
    let hidden = config.hidden_size;
    if config.is_attention(layer) {
        return attention::specs(prefix, hidden, config.num_attention_heads);
    }
    match config.mixing_mechanism {
        MixingMechanism::Linear => linear::specs(prefix, hidden, config.max_sequence_length).into(),
        MixingMechanism::Circulant | MixingMechanism::Toeplitz => structured::specs(prefix, config).into(),
        MixingMechanism::Fourier | MixingMechanism::Hartley => Vec::new(),
    }
}

impl<R: Real> Mix<R> {
    /// Takes the weights in the order of [`specs`]; shares fixed matrices with `other`, the same sublayer of another
    /// block.
    pub fn load(
        loader: &mut Loader<'_, R>,
        config: &SparseMixerConfig,
        layer: usize,
        other: Option<&Self>,
    ) -> Result<Self> {
        let (hidden, seq) = (config.hidden_size, config.max_sequence_length);
        if config.is_attention(layer) {
            return Ok(Mix::Attention(Attention::load(loader, hidden, config.num_attention_heads)?));
        }
        Ok(match config.mixing_mechanism {
            MixingMechanism::Linear => Mix::Linear(LinearMixing::load(loader, hidden, seq)?),
            MixingMechanism::Circulant | MixingMechanism::Toeplitz => {
                Mix::Structured(StructuredMixing::load(loader, config)?)
            }
            mechanism if config.use_fft => Mix::Fft(FftMixing::new(mechanism, seq, hidden)),
            mechanism => Mix::Dft(match other {
                Some(Mix::Dft(mix)) => mix.clone(),
                _ => DftMixing::new(mechanism, seq, hidden, loader.dtype),
            }),
        })
    }

    /// The weights in the order of [`specs`].
    pub fn params(&self) -> Vec<Param<'_, R>> {
        match self {
            Mix::Linear(mix) => mix.params().into(),
            Mix::Structured(mix) => mix.params().into(),
            Mix::Dft(_) | Mix::Fft(_) => Vec::new(),
            Mix::Attention(attend) => attend.params(),
        }
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> Vec<ParamMut<'_, R>> {
        match self {
            Mix::Linear(mix) => mix.params_mut().into(),
            Mix::Structured(mix) => mix.params_mut().into(),
            Mix::Dft(_) | Mix::Fft(_) => Vec::new(),
            Mix::Attention(attend) => attend.params_mut(),
        }
    }

    /// Makes what calls need of weights that were changed in place.
    pub fn refresh(&mut self) -> Result<()> {
        match self {
            Mix::Structured(mix) => mix.refresh(),
            _ => Ok(()),
        }
    }

    /// The part that needs all tokens: `q` is what queries and mixing read, `kv` what keys and values read.
    pub fn prepare(&self, pass: &Pass<'_, R>, q: &[R], kv: &[R]) -> Result<MixingState<'_, R>> {
        Ok(match self {
            Mix::Linear(mix) => MixingState::Panels(mix, mix.prepare(pass, q)?),
            Mix::Structured(mix) => MixingState::Structured(mix.prepare(pass, q)?),
            Mix::Dft(mix) => match mix.for_shorter(pass) {
                Some(mix) => MixingState::Spectrum(mix.prepare(pass, q)?),
                None => MixingState::Panels(&mix.matrices, mix.matrices.prepare(pass, q)?),
            },
            Mix::Fft(mix) => MixingState::Spectrum(mix.prepare(pass, q)?),
            Mix::Attention(attend) => MixingState::KeysValues(attend.prepare(pass, kv)?),
        })
    }

    /// The sublayer's output for the rows of `block`; `q` as in `prepare`, all rows.
    pub fn rows(
        &self,
        pass: &Pass<'_, R>,
        mixed: &MixingState<'_, R>,
        layer: usize,
        block: RowBlock,
        q: &[R],
        out: &mut [R],
        scratch: &mut TaskScratch<R>,
    ) {
        match (self, mixed) {
            (_, MixingState::Panels(mix, panels)) => mix.rows(pass, panels, block, out, scratch),
            (_, MixingState::Structured(mixed)) => mixed.rows(pass, block, out, scratch),
            (_, MixingState::Spectrum(spectrum)) => spectrum.rows(block, out),
            (Mix::Attention(attend), MixingState::KeysValues(state)) => {
                let q = block.of(q, pass.seq, pass.config.hidden_size);
                attend.rows(pass, state, layer, block, q, out, scratch);
            }
            _ => unreachable!("`mixed` is what this sublayer prepared"),
        }
    }

    /// What is to be kept of `mixed` for backward.
    pub fn keep(&self, mixed: MixingState<'_, R>) -> Option<MixingCache<R>> {
        match (self, mixed) {
            (Mix::Linear(_), MixingState::Panels(_, panels)) => Some(MixingCache::Panels(panels)),
            (_, MixingState::KeysValues(state)) => Some(MixingCache::KeysValues(state)),
            _ => None,
        }
    }

    /// Undoes the sublayer: writes `dq`, adds to `dkv` and to the gradients.
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
        grads: &mut [Vec<R>],
    ) -> Result<()> {
        match self {
            Mix::Linear(mix) => {
                let [hidden, seq] = grads else {
                    return Err(Error::Internal("linear mixing has two gradients".into()));
                };
                let mixed = if let Some(MixingCache::Panels(panels)) = kept { Some(panels) } else { None };
                mix.backward(pass, q, mixed, dy, dq, Some([hidden, seq]))
            }
            Mix::Structured(mix) => {
                let [hidden, seq] = grads else {
                    return Err(Error::Internal("structured mixing has two gradients".into()));
                };
                mix.backward(pass, q, dy, dq, [hidden, seq])
            }
            Mix::Dft(mix) => match mix.for_shorter(pass) {
                Some(mix) => mix.backward(pass, dy, dq),
                None => mix.matrices.backward(pass, q, None, dy, dq, None),
            },
            Mix::Fft(mix) => mix.backward(pass, dy, dq),
            Mix::Attention(attend) => {
                let Some(MixingCache::KeysValues(state)) = kept else {
                    return Err(Error::Internal("attention without its training record".into()));
                };
                attend.backward(pass, state, layer, q, kv, dy, dq, dkv, grads)
            }
        }
    }
}
