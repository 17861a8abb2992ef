//! The activation between the two products of a feed-forward layer.

use std::fmt::Debug;
use std::sync::Arc;

use crate::config::{ActivationConfig, ActivationFunction};
use crate::error::{Error, Result};
use crate::kernels::{
    Elementwise, Isa, Real, elementwise, elementwise_backward, elementwise_with_backward, softmax_backward,
    softmax_in_place,
};
use crate::sys::{Work, timed};

/// A function that the user supplies. Called on one thread, on whole arrays.
pub trait CustomActivation<R>: Debug + Send + Sync {
    /// Replaces `x`, rows of `width`, by the function of it.
    fn forward(&self, x: &mut [R], width: usize) -> Result<()>;

    /// Copies of `x` that there are at once while [`CustomActivation::forward`] runs.
    fn copies(&self) -> usize;

    /// Multiplies `dy` by the derivative at `x`.
    ///
    /// # Errors
    /// If the user gave no derivative.
    fn backward(&self, x: &[R], dy: &mut [R], width: usize) -> Result<()>;
}

/// An activation function.
#[derive(Clone, Debug)]
pub enum Activation<R> {
    /// Each value for itself.
    Elementwise(Elementwise),
    /// Over the last axis.
    Softmax,
    /// Logarithm of softmax over the last axis.
    LogSoftmax,
    /// The user's.
    Custom(Arc<dyn CustomActivation<R>>),
}

impl<R: Real> Activation<R> {
    /// The activation that `config` names; `custom` is the function behind the name `"custom"`.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) for a name that is not known, or for `"custom"` where there is no function.
    pub fn from_config(
        config: &ActivationConfig,
        custom: Option<Arc<dyn CustomActivation<R>>>,
    ) -> Result<Self> {
        Ok(match config.function()? {
            ActivationFunction::Elementwise(function) => Activation::Elementwise(function),
            ActivationFunction::Softmax => Activation::Softmax,
            ActivationFunction::LogSoftmax => Activation::LogSoftmax,
            ActivationFunction::Custom => Activation::Custom(custom.ok_or_else(|| {
                Error::value("inner_activation", "got \"custom\", but no function that it stands for")
            })?),
        })
    }

    /// Whether a slice of a row can be computed without the rest of it.
    pub fn is_elementwise(&self) -> bool {
        matches!(self, Activation::Elementwise(_))
    }

    /// Whether only the coordinating thread may call it.
    pub fn is_custom(&self) -> bool {
        matches!(self, Activation::Custom(_))
    }

    /// Bytes that [`Activation::forward`] takes for copies of `len` values.
    pub fn copied_bytes(&self, len: usize) -> usize {
        if let Activation::Custom(function) = self { function.copies() * len * size_of::<R>() } else { 0 }
    }

    /// Replaces `x`, rows of `width`, by the function of it.
    pub fn forward(&self, isa: Isa, x: &mut [R], width: usize) -> Result<()> {
        let _time = timed(Work::Activation);
        match self {
            Activation::Elementwise(function) => elementwise(isa, *function, x),
            Activation::Softmax => softmax_in_place(isa, x, width),
            Activation::LogSoftmax => {
                for row in x.chunks_exact_mut(width) {
                    let shift = log_sum_exp_row(row);
                    row.iter_mut().for_each(|v| *v -= shift);
                }
            }
            Activation::Custom(function) => function.forward(x, width)?,
        }
        Ok(())
    }

    /// [`Activation::backward`], and the function of `x` into `values`.
    pub fn with_backward(
        &self,
        isa: Isa,
        x: &[R],
        values: &mut [R],
        dy: &mut [R],
        width: usize,
    ) -> Result<()> {
        if let Activation::Elementwise(function) = self {
            let _time = timed(Work::Activation);
            elementwise_with_backward(isa, *function, x, values, dy);
            return Ok(());
        }
        self.backward(isa, x, dy, width)?;
        values.copy_from_slice(x);
        self.forward(isa, values, width)
    }

    /// Multiplies `dy` by the derivative at `x` (the function's input), rows of `width`.
    pub fn backward(&self, isa: Isa, x: &[R], dy: &mut [R], width: usize) -> Result<()> {
        let _time = timed(Work::Activation);
        match self {
            Activation::Elementwise(function) => elementwise_backward(isa, *function, x, dy),
            Activation::Softmax => {
                let mut p = x.to_vec();
                softmax_in_place(isa, &mut p, width);
                softmax_backward(isa, &p, dy, width);
            }
            Activation::LogSoftmax => {
                for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact_mut(width)) {
                    let shift = log_sum_exp_row(x);
                    let sum = dy.iter().fold(R::ZERO, |s, &d| s + d);
                    for (d, &v) in dy.iter_mut().zip(x) {
                        *d -= (v - shift).exp() * sum;
                    }
                }
            }
            Activation::Custom(function) => function.backward(x, dy, width)?,
        }
        Ok(())
    }
}

fn log_sum_exp_row<R: Real>(row: &[R]) -> R {
    let mut out = [R::ZERO];
    crate::kernels::log_sum_exp(Isa::PORTABLE, row, row.len(), &mut out);
    out[0]
}
