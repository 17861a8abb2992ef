//! The values of arguments that are neither numbers nor truth values.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kernels::Elementwise;

/// An enumeration whose values are written as names.
macro_rules! choices {
    ($(#[$about:meta])* $kind:ident { $($(#[$meaning:meta])* $variant:ident = $name:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $kind {
            $($(#[$meaning])* #[serde(rename = $name)] $variant,)+
        }

        impl $kind {
            /// All names.
            pub const NAMES: &'static [&'static str] = &[$($name),+];
        }
    };
}

choices! {
    /// Which encoder's conventions to follow where they differ.
    SemanticsPreset {
        /// TensorFlow's numbers; documented arguments that TensorFlow's code drops are honoured.
        Keras = "keras",
        /// Exactly TensorFlow's code, silent drops included.
        KerasStrict = "keras_strict",
        /// The original JAX encoder of the paper.
        Paper = "paper",
    }
}

choices! {
    /// Token mixing of the layers without attention.
    MixingMechanism {
        /// Real part of the two-dimensional discrete Fourier transform.
        Fourier = "fourier",
        /// Real minus imaginary part of the same transform.
        Hartley = "hartley",
        /// Learned matrices along the sequence and the hidden dimension.
        Linear = "linear",
        /// The same with circulant matrices: circular convolutions with learned vectors.
        Circulant = "circulant",
        /// The same with Toeplitz matrices, constant along diagonals.
        Toeplitz = "toeplitz",
    }
}

impl MixingMechanism {
    /// Whether it is a fixed transform, which has no weights and is defined for every sequence length.
    pub fn is_transform(self) -> bool {
        matches!(self, MixingMechanism::Fourier | MixingMechanism::Hartley)
    }
}

choices! {
    /// Who chooses whom in a mixture of experts.
    RouterKind {
        /// Every expert takes the tokens with the largest probability.
        ExpertsChoose = "experts_choose",
        /// Every token goes to its most probable experts, while these have room.
        TokensChoose = "tokens_choose",
    }
}

/// The activation between the two products of a feed-forward layer, by name with its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationConfig {
    /// A name that [`ActivationConfig::function`] knows, or `"custom"`.
    pub name: String,
    /// `elu`: scale of the negative part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// `relu`: upper bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_value: Option<f64>,
    /// `relu`: slope below the threshold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_slope: Option<f64>,
    /// `relu`: values from here on pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
}

/// What the name of an activation stands for.
#[derive(Clone, Copy, Debug)]
pub enum ActivationFunction {
    /// Each value for itself.
    Elementwise(Elementwise),
    /// Over the last axis.
    Softmax,
    /// Logarithm of softmax over the last axis.
    LogSoftmax,
    /// The user's.
    Custom,
}

impl ActivationConfig {
    /// The activation called `name`, with the numbers that it has by itself.
    pub fn named(name: &str) -> Self {
        let name = name.into();
        ActivationConfig { name, alpha: None, max_value: None, negative_slope: None, threshold: None }
    }

    /// The function.
    ///
    /// # Errors
    /// [`Error::Value`] for a name that is not known.
    pub fn function(&self) -> Result<ActivationFunction> {
        use Elementwise as E;
        let relu = |max_value, negative_slope| E::Relu { max_value, negative_slope, threshold: 0.0 };
        Ok(ActivationFunction::Elementwise(match self.name.as_str() {
            "linear" => E::Linear,
            "gelu_tanh" => E::GeluTanh,
            "gelu" => E::GeluErf,
            "relu" => E::Relu {
                max_value: self.max_value.unwrap_or(f64::INFINITY),
                negative_slope: self.negative_slope.unwrap_or(0.0),
                threshold: self.threshold.unwrap_or(0.0),
            },
            "relu6" => relu(6.0, 0.0),
            "leaky_relu" => relu(f64::INFINITY, self.negative_slope.unwrap_or(0.2)),
            "sigmoid" => E::Sigmoid,
            "hard_sigmoid" => E::HardSigmoid,
            "silu" | "swish" => E::Silu,
            "hard_swish" => E::HardSwish,
            "tanh" => E::Tanh,
            "elu" => E::Elu { alpha: self.alpha.unwrap_or(1.0) },
            "selu" => E::Selu,
            "exponential" => E::Exponential,
            "softplus" => E::Softplus,
            "softsign" => E::Softsign,
            "mish" => E::Mish,
            "softmax" => return Ok(ActivationFunction::Softmax),
            "log_softmax" => return Ok(ActivationFunction::LogSoftmax),
            "custom" => return Ok(ActivationFunction::Custom),
            name => {
                let message = format!("got {name:?}, which is not an activation");
                return Err(Error::value("inner_activation", message));
            }
        }))
    }
}

/// How kernels and embedding tables are initialised; biases start at 0 and layer norms at the identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum InitializerConfig {
    /// Normal, redrawn beyond two standard deviations.
    TruncatedNormal {
        /// Centre.
        mean: f64,
        /// Standard deviation before values are cut off.
        stddev: f64,
    },
    /// Normal.
    Normal {
        /// Centre.
        mean: f64,
        /// Standard deviation.
        stddev: f64,
    },
    /// Uniform on `[minval, maxval)`.
    Uniform {
        /// Lower bound.
        minval: f64,
        /// Upper bound.
        maxval: f64,
    },
    /// One value everywhere.
    Constant {
        /// The value.
        value: f64,
    },
    /// Keras `VarianceScaling`, which the Glorot, He and LeCun families are.
    VarianceScaling {
        /// Numerator of the variance.
        scale: f64,
        /// `fan_in`, `fan_out` or `fan_avg`.
        mode: String,
        /// `truncated_normal`, `untruncated_normal` or `uniform`.
        distribution: String,
    },
}
