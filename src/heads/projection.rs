//! The head of classifiers: features to logits, row by row.
//!
//! ```text
//! x = dropout(features)            where the model has dropout before the head
//! y = dropout(f(x W1 + b1))        where there is an inner layer, f being tanh by itself; else y = dropout(x)
//! logits = y W2 + b2
//! ```
//! Sources: `BertClassifier` with `ClassificationHead`, `BertTokenClassifier`, `SpanLabeling` of the Model Garden.
//! Backward computes the forward steps again: they cost little beside the encoder, and nothing has to be kept.

use serde::{Deserialize, Serialize};

use crate::config::ActivationConfig;
use crate::error::{Error, Result};
use crate::kernels::Real;
use crate::layers::{Activation, Dense, Dropout};
use crate::params::{Gradients, WeightList, Weights};
use crate::random::{Purpose, RngStream, place_of};
use crate::runtime::Context;
use crate::sys::{Place, alloc_zeroed, at};

/// Sizes and rates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectionConfig {
    /// Width of the features.
    pub input_width: usize,
    /// Width of the layer between features and logits; 0 for none.
    pub inner_width: usize,
    /// Of that layer.
    #[serde(default = "tanh")]
    pub inner_activation: ActivationConfig,
    /// Number of logits.
    pub num_classes: usize,
    /// Dropout on the features.
    pub input_dropout: f64,
    /// Dropout before the last layer.
    pub dropout: f64,
    /// Name of the inner layer's weights.
    pub inner_name: String,
    /// Name of the last layer's weights.
    pub output_name: String,
}

fn tanh() -> ActivationConfig {
    ActivationConfig::named("tanh")
}

/// The head's layers.
#[derive(Clone, Debug)]
pub struct Projection<R> {
    config: ProjectionConfig,
    activation: Activation<R>,
    inner: Option<Dense>,
    output: Dense,
}

/// The values of a forward pass that backward reads.
struct Steps<R> {
    /// Features after dropout.
    x: Vec<R>,
    /// The inner layer before its activation.
    pre: Vec<R>,
    /// What the last layer sees.
    y: Vec<R>,
}

impl ProjectionConfig {
    /// Checks sizes and rates; the error names the argument.
    pub fn validate(&self) -> Result<()> {
        for (argument, size) in [("input_width", self.input_width), ("num_classes", self.num_classes)] {
            if size == 0 {
                return Err(Error::value(argument, "got 0, expected at least 1"));
            }
            let fits = size.checked_mul(self.input_width.max(self.inner_width));
            if fits.is_none_or(|size| size as u64 > 1 << 40) {
                let message = "too large: a weight would have more than 2^40 elements";
                return Err(Error::value(argument, message));
            }
        }
        for (argument, rate) in [("input_dropout", self.input_dropout), ("dropout_rate", self.dropout)] {
            if !(0.0..1.0).contains(&rate) {
                return Err(Error::value(
                    argument,
                    format!("got {rate}, expected at least 0 and less than 1"),
                ));
            }
        }
        Activation::<f32>::from_config(&self.inner_activation, None).map(|_| ())
    }
}

impl<R: Real> Projection<R> {
    /// Declares the layers.
    ///
    /// # Errors
    /// [`Error::Value`] for an activation that is not known.
    pub fn new(list: &mut WeightList, config: &ProjectionConfig) -> Result<Self> {
        let mut width = config.input_width;
        let mut inner = None;
        if config.inner_width > 0 {
            inner = Some(Dense::new(list, &config.inner_name, width, config.inner_width));
            width = config.inner_width;
        }
        let output = Dense::new(list, &config.output_name, width, config.num_classes);
        let activation = Activation::from_config(&config.inner_activation, None)?;
        Ok(Projection { config: config.clone(), activation, inner, output })
    }

    /// Logits `[rows, num_classes]` of `features` `[rows, input_width]`; dropout with the seed `training`, if any.
    pub fn forward(
        &self,
        context: &Context<'_, R>,
        weights: &Weights<R>,
        features: &[R],
        training: Option<u64>,
    ) -> Result<Vec<R>> {
        let _place = at(Place::Head);
        let steps = self.steps(context, weights, features, training)?;
        let mut logits = alloc_zeroed(features.len() / self.config.input_width * self.config.num_classes);
        self.output.forward(context, weights, &steps.y, &mut logits)?;
        Ok(logits)
    }

    /// From the gradient of the logits: adds the weights' gradients to `gradients` and returns the features'.
    pub fn backward(
        &self,
        context: &Context<'_, R>,
        weights: &Weights<R>,
        features: &[R],
        d_logits: &[R],
        training: Option<u64>,
        gradients: &mut Gradients<R>,
    ) -> Result<Vec<R>> {
        let _place = at(Place::Head);
        let [inner_dropout, input_dropout] = self.dropouts(training);
        let Steps { x, pre, y } = self.steps(context, weights, features, training)?;
        // logits = y W2 + b2
        let mut dy = alloc_zeroed(y.len());
        self.output.backward(context, weights, 0, &y, d_logits, &mut dy, gradients)?;
        // y = dropout(f(pre)), pre = x W1 + b1
        inner_dropout.iter().for_each(|dropout| dropout.apply(context.isa, &mut dy, 0));
        let mut dx = match &self.inner {
            None => dy,
            Some(inner) => {
                self.activation.backward(context.isa, &pre, &mut dy, self.config.inner_width)?;
                let mut dx = alloc_zeroed(x.len());
                inner.backward(context, weights, 0, &x, &dy, &mut dx, gradients)?;
                dx
            }
        };
        // x = dropout(features)
        input_dropout.iter().for_each(|dropout| dropout.apply(context.isa, &mut dx, 0));
        Ok(dx)
    }

    /// Dropout before the last layer, and on the features.
    fn dropouts(&self, training: Option<u64>) -> [Option<Dropout>; 2] {
        // By name: heads of one model that are given the same seed drop differently.
        let place = place_of(&self.config.output_name);
        let dropout = |rate, purpose| {
            training.and_then(|seed| Dropout::new(rate, RngStream::new(seed, purpose, place)))
        };
        [
            dropout(self.config.dropout, Purpose::HeadDropout),
            dropout(self.config.input_dropout, Purpose::HeadFeatureDropout),
        ]
    }

    fn steps(
        &self,
        context: &Context<'_, R>,
        weights: &Weights<R>,
        features: &[R],
        training: Option<u64>,
    ) -> Result<Steps<R>> {
        if !features.len().is_multiple_of(self.config.input_width) {
            let message = format!("got {} values for rows of {}", features.len(), self.config.input_width);
            return Err(Error::value("features", message));
        }
        let [inner_dropout, input_dropout] = self.dropouts(training);
        let mut x = features.to_vec();
        input_dropout.iter().for_each(|dropout| dropout.apply(context.isa, &mut x, 0));
        let (pre, mut y) = match &self.inner {
            None => (Vec::new(), x.clone()),
            Some(inner) => {
                let mut pre = alloc_zeroed(x.len() / self.config.input_width * self.config.inner_width);
                inner.forward(context, weights, &x, &mut pre)?;
                let mut y = pre.clone();
                self.activation.forward(context.isa, &mut y, self.config.inner_width)?;
                (pre, y)
            }
        };
        inner_dropout.iter().for_each(|dropout| dropout.apply(context.isa, &mut y, 0));
        Ok(Steps { x, pre, y })
    }
}
