//! The first sublayer of a block: tokens exchange information, by mixing or by attention.

use crate::config::{MixingMechanism, SparseMixerConfig};
use crate::error::{Error, Result};
use crate::kernels::Real;
use crate::params::{Loader, Param, ParamMut, Spec};
use crate::runtime::{ActivationPanels, TaskScratch};

use super::attend::{self, Attend, KeysValues};
use super::mix_linear::{self, MixLinear};
use super::mix_spectral::{MixDft, MixFft, Spectrum};
use super::mix_structured::{self, MixStructured, MixedStructured};
use super::pass::{Pass, RowBlock};

/// The first sublayer.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one per block, beside weights of megabytes")]
pub enum Mix<R> {
    /// Learned matrices.
    Linear(MixLinear<R>),
    /// Circulant or Toeplitz matrices from learned vectors.
    Structured(MixStructured<R>),
    /// Fixed matrices: a discrete Fourier transform.
    Dft(MixDft<R>),
    /// A fast Fourier transform.
    Fft(MixFft<R>),
    /// Self-attention.
    Attend(Attend<R>),
}

/// What the first sublayer made of all tokens, for row blocks to finish.
pub enum Mixed<'m, R: Real> {
    /// A product with the hidden kernels.
    Panels(&'m MixLinear<R>, ActivationPanels<R>),
    /// See [`MixedStructured`].
    Structured(MixedStructured<'m, R>),
    /// Both transforms.
    Spectrum(Spectrum<R>),
    /// What queries look at.
    KeysValues(KeysValues<R>),
}

/// The part of [`Mixed`] that backward needs as well.
#[derive(Debug)]
pub enum Kept<R: Real> {
    /// Of learned matrices.
    Panels(ActivationPanels<R>),
    /// Of attention.
    KeysValues(KeysValues<R>),
}

/// The weights of the first sublayer of block `layer`.
pub fn specs(prefix: &str, config: &SparseMixerConfig, layer: usize) -> Vec<Spec> {
    let hidden = config.hidden_size;
    if config.is_attention(layer) {
        return attend::specs(prefix, hidden, config.num_attention_heads);
    }
    match config.mixing_mechanism {
        MixingMechanism::Linear => mix_linear::specs(prefix, hidden, config.max_sequence_length).into(),
        MixingMechanism::Circulant | MixingMechanism::Toeplitz => {
            mix_structured::specs(prefix, config).into()
        }
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
            return Ok(Mix::Attend(Attend::load(loader, hidden, config.num_attention_heads)?));
        }
        Ok(match config.mixing_mechanism {
            MixingMechanism::Linear => Mix::Linear(MixLinear::load(loader, hidden, seq)?),
            MixingMechanism::Circulant | MixingMechanism::Toeplitz => {
                Mix::Structured(MixStructured::load(loader, config)?)
            }
            mechanism if config.use_fft => Mix::Fft(MixFft::new(mechanism, seq, hidden)?),
            mechanism => Mix::Dft(match other {
                Some(Mix::Dft(mix)) => mix.clone(),
                _ => MixDft::new(mechanism, seq, hidden, loader.storage.matrix),
            }),
        })
    }

    /// The weights in the order of [`specs`].
    pub fn params(&self) -> Vec<Param<'_, R>> {
        match self {
            Mix::Linear(mix) => mix.params().into(),
            Mix::Structured(mix) => mix.params().into(),
            Mix::Dft(_) | Mix::Fft(_) => Vec::new(),
            Mix::Attend(attend) => attend.params(),
        }
    }

    /// The same, to be changed.
    pub fn params_mut(&mut self) -> Vec<ParamMut<'_, R>> {
        match self {
            Mix::Linear(mix) => mix.params_mut().into(),
            Mix::Structured(mix) => mix.params_mut().into(),
            Mix::Dft(_) | Mix::Fft(_) => Vec::new(),
            Mix::Attend(attend) => attend.params_mut(),
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
    pub fn prepare(&self, pass: &Pass<'_, R>, q: &[R], kv: &[R]) -> Result<Mixed<'_, R>> {
        Ok(match self {
            Mix::Linear(mix) => Mixed::Panels(mix, mix.prepare(pass, q)?),
            Mix::Structured(mix) => Mixed::Structured(mix.prepare(pass, q)?),
            Mix::Dft(mix) => match mix.for_shorter(pass)? {
                Some(mix) => Mixed::Spectrum(mix.prepare(pass, q)?),
                None => Mixed::Panels(&mix.matrices, mix.matrices.prepare(pass, q)?),
            },
            Mix::Fft(mix) => Mixed::Spectrum(mix.prepare(pass, q)?),
            Mix::Attend(attend) => Mixed::KeysValues(attend.prepare(pass, kv)?),
        })
    }

    /// The sublayer's output for the rows of `block`; `q` as in `prepare`, all rows.
    pub fn rows(
        &self,
        pass: &Pass<'_, R>,
        mixed: &Mixed<'_, R>,
        layer: usize,
        block: RowBlock,
        q: &[R],
        out: &mut [R],
        scratch: &mut TaskScratch<R>,
    ) {
        match (self, mixed) {
            (_, Mixed::Panels(mix, panels)) => mix.rows(pass, panels, block, out, scratch),
            (_, Mixed::Structured(mixed)) => mixed.rows(pass, block, out, scratch),
            (_, Mixed::Spectrum(spectrum)) => spectrum.rows(block, out),
            (Mix::Attend(attend), Mixed::KeysValues(state)) => {
                let q = block.of(q, pass.seq, pass.config.hidden_size);
                attend.rows(pass, state, layer, block, q, out, scratch);
            }
            _ => unreachable!("`mixed` is what this sublayer prepared"),
        }
    }

    /// What is to be kept of `mixed` for backward.
    pub fn keep(&self, mixed: Mixed<'_, R>) -> Option<Kept<R>> {
        match (self, mixed) {
            (Mix::Linear(_), Mixed::Panels(_, panels)) => Some(Kept::Panels(panels)),
            (_, Mixed::KeysValues(state)) => Some(Kept::KeysValues(state)),
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
        kept: Option<&Kept<R>>,
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
                let mixed = if let Some(Kept::Panels(panels)) = kept { Some(panels) } else { None };
                mix.backward(pass, q, mixed, dy, dq, Some([hidden, seq]))
            }
            Mix::Structured(mix) => {
                let [hidden, seq] = grads else {
                    return Err(Error::Internal("structured mixing has two gradients".into()));
                };
                mix.backward(pass, q, dy, dq, [hidden, seq])
            }
            Mix::Dft(mix) => match mix.for_shorter(pass)? {
                Some(mix) => mix.backward(pass, dy, dq),
                None => mix.matrices.backward(pass, q, None, dy, dq, None),
            },
            Mix::Fft(mix) => mix.backward(pass, dy, dq),
            Mix::Attend(attend) => {
                let Some(Kept::KeysValues(state)) = kept else {
                    return Err(Error::Internal("attention without its training record".into()));
                };
                attend.backward(pass, state, layer, q, kv, dy, dq, dkv, grads)
            }
        }
    }
}
