//! What an encoder is: every argument of the reference class, checked, and the rules that follow from `semantics`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which encoder's conventions to follow where they differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Semantics {
    /// TensorFlow's numbers; documented arguments that TensorFlow's code drops are honoured.
    Keras,
    /// TensorFlow's code to the letter, silent drops included.
    KerasStrict,
}

/// Token mixing of the layers without attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MixingMechanism {
    /// Real part of the two-dimensional discrete Fourier transform.
    Fourier,
    /// Real minus imaginary part of the same transform.
    Hartley,
    /// Learned matrices along the sequence and the hidden dimension.
    Linear,
}

/// Storage type of the weights and arithmetic of the matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats.
    Float32,
    /// bfloat16 weights and products, 32-bit sums.
    Bfloat16,
    /// float16 weights, 32-bit products and sums.
    Float16,
    /// 8-bit weights and activations, 32-bit sums; inference only.
    Int8,
}

impl Dtype {
    /// The type called `name`; Keras policy names are understood.
    pub fn parse(name: &str) -> Result<Dtype> {
        match name {
            "float32" => Ok(Dtype::Float32),
            "bfloat16" | "mixed_bfloat16" => Ok(Dtype::Bfloat16),
            "float16" | "mixed_float16" => Ok(Dtype::Float16),
            "int8" => Ok(Dtype::Int8),
            _ => Err(Error::value(
                "dtype",
                format!("got {name:?}, expected 'float32', 'bfloat16', 'float16' or 'int8'"),
            )),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Float32 => "float32",
            Dtype::Bfloat16 => "bfloat16",
            Dtype::Float16 => "float16",
            Dtype::Int8 => "int8",
        }
    }
}

/// The activation between the two products of a feed-forward layer, by name with its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationConfig {
    /// A name that [`crate::layers::Activation`] knows, or `"custom"`.
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

/// How kernels and embedding tables are drawn; biases start at 0 and layer norms at the identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum InitializerConfig {
    /// Normal, redrawn beyond two standard deviations.
    TruncatedNormal {
        /// Centre.
        mean: f64,
        /// Standard deviation before the cut.
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

/// Every argument that the computation depends on. Defaults are the reference class's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SparseMixerConfig {
    /// Rows of the word table.
    pub vocab_size: usize,
    /// Width of the encoder.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Blocks whose feed-forward is a mixture of experts.
    pub moe_layers: Vec<usize>,
    /// Blocks that attend instead of mix.
    pub attention_layers: Vec<usize>,
    /// Experts per mixture.
    pub num_experts: usize,
    /// Expert capacity over the even share of tokens, when training.
    pub train_capacity_factor: f64,
    /// The same at inference.
    pub eval_capacity_factor: f64,
    /// Routing group size in examples.
    pub examples_per_group: f64,
    /// Routing group size in tokens, instead of `examples_per_group`.
    pub max_group_size: Option<usize>,
    /// Token mixing of the blocks that do not attend.
    pub mixing_mechanism: MixingMechanism,
    /// Fourier and Hartley mixing by fast transforms instead of matrix products.
    pub use_fft: bool,
    /// Attention heads; must divide `hidden_size`.
    pub num_attention_heads: usize,
    /// The one sequence length.
    pub max_sequence_length: usize,
    /// Rows of the type table.
    pub type_vocab_size: usize,
    /// Width between the two products of a feed-forward layer.
    pub inner_dim: usize,
    /// Activation there.
    pub inner_activation: ActivationConfig,
    /// Dropout rate of embeddings, sublayer outputs and expert outputs.
    pub output_dropout: f64,
    /// Dropout rate of attention weights.
    pub attention_dropout: f64,
    /// How kernels and tables are drawn.
    pub initializer: InitializerConfig,
    /// Rows of the last layer to compute.
    pub output_range: Option<usize>,
    /// Width of the embeddings; 0 stands for `hidden_size`.
    pub embedding_width: usize,
    /// Layer norms before the sublayers instead of after.
    pub norm_first: bool,
    /// Weight of the router z-loss in `aux_losses`.
    pub router_z_loss_weight: f64,
    /// Router inputs are multiplied by uniform noise from `[1 - jitter_noise, 1 + jitter_noise)` when training.
    pub jitter_noise: f64,
    /// Whose conventions to follow.
    pub semantics: Semantics,
    /// Seed of the initial weights.
    pub seed: u64,
    /// Storage type.
    pub dtype: Dtype,
}

impl Default for SparseMixerConfig {
    fn default() -> Self {
        SparseMixerConfig {
            vocab_size: 1,
            hidden_size: 512,
            num_layers: 14,
            moe_layers: vec![5, 6, 7, 8],
            attention_layers: vec![10, 11, 12, 13],
            num_experts: 16,
            train_capacity_factor: 1.0,
            eval_capacity_factor: 1.0,
            examples_per_group: 1.0,
            max_group_size: None,
            mixing_mechanism: MixingMechanism::Linear,
            use_fft: false,
            num_attention_heads: 8,
            max_sequence_length: 512,
            type_vocab_size: 16,
            inner_dim: 2048,
            inner_activation: ActivationConfig {
                name: "gelu_tanh".into(),
                alpha: None,
                max_value: None,
                negative_slope: None,
                threshold: None,
            },
            output_dropout: 0.1,
            attention_dropout: 0.1,
            initializer: InitializerConfig::TruncatedNormal { mean: 0.0, stddev: 0.02 },
            output_range: None,
            embedding_width: 0,
            norm_first: false,
            router_z_loss_weight: 0.0,
            jitter_noise: 0.0,
            semantics: Semantics::Keras,
            seed: 0,
            dtype: Dtype::Float32,
        }
    }
}

/// What follows from `semantics`, as one choice per question; layers ask these, never the name.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Dropout after mixing/attention and after the dense feed-forward.
    pub block_dropout: bool,
    /// `output_range` slices the last layer.
    pub output_range: bool,
    /// A type id outside the vocabulary is an error, else it contributes zeros.
    pub check_type_ids: bool,
}

impl SparseMixerConfig {
    /// Reads the canonical JSON form and checks it.
    pub fn from_json(text: &str) -> Result<Self> {
        let config: SparseMixerConfig =
            serde_json::from_str(text).map_err(|e| Error::value("config", e.to_string()))?;
        config.validated()
    }

    /// The canonical JSON form.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Resolves defaults that depend on other arguments and checks every argument.
    pub fn validated(mut self) -> Result<Self> {
        if self.embedding_width == 0 {
            self.embedding_width = self.hidden_size;
        }
        let at_least_one = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_layers", self.num_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_sequence_length", self.max_sequence_length),
            ("type_vocab_size", self.type_vocab_size),
            ("inner_dim", self.inner_dim),
            ("num_experts", self.num_experts),
        ];
        for (name, value) in at_least_one {
            // Without a mixture, nothing looks at the number of experts.
            if value < 1 && !(name == "num_experts" && self.moe_layers.is_empty()) {
                return Err(Error::value(name, format!("got {value}, expected at least 1")));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(Error::value(
                "hidden_size",
                format!(
                    "got {}, expected a multiple of num_attention_heads ({})",
                    self.hidden_size, self.num_attention_heads
                ),
            ));
        }
        for (name, rate) in
            [("output_dropout", self.output_dropout), ("attention_dropout", self.attention_dropout)]
        {
            if !(0.0..=1.0).contains(&rate) {
                return Err(Error::value(name, format!("got {rate}, expected a rate between 0 and 1")));
            }
        }
        let not_negative = [
            ("train_capacity_factor", self.train_capacity_factor),
            ("eval_capacity_factor", self.eval_capacity_factor),
            ("router_z_loss_weight", self.router_z_loss_weight),
            ("jitter_noise", self.jitter_noise),
        ];
        for (name, value) in not_negative {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::value(name, format!("got {value}, expected a finite number >= 0")));
            }
        }
        if !(self.examples_per_group > 0.0 && self.examples_per_group.is_finite()) {
            return Err(Error::value(
                "examples_per_group",
                format!("got {}, expected a finite number > 0", self.examples_per_group),
            ));
        }
        if let Some(size) = self.max_group_size {
            if size < 1 {
                return Err(Error::value("max_group_size", format!("got {size}, expected at least 1")));
            }
            if self.examples_per_group != 1.0 {
                return Err(Error::value(
                    "max_group_size",
                    format!(
                        "got {size} together with examples_per_group={}; give only one of them",
                        self.examples_per_group
                    ),
                ));
            }
        }
        if let Some(range) = self.output_range
            && self.rules().output_range
            && !(1..=self.max_sequence_length).contains(&range)
        {
            return Err(Error::value(
                "output_range",
                format!("got {range}, expected 1 to max_sequence_length ({})", self.max_sequence_length),
            ));
        }
        for (name, layers) in [("moe_layers", &self.moe_layers), ("attention_layers", &self.attention_layers)]
        {
            if let Some(layer) = layers.iter().find(|&&layer| layer >= self.num_layers) {
                return Err(Error::value(
                    name,
                    format!("got layer {layer}, expected layers below num_layers ({})", self.num_layers),
                ));
            }
        }
        crate::layers::Activation::<f32>::from_config(&self.inner_activation, None)?;
        self.check_sizes()?;
        Ok(self)
    }

    /// Refuses sizes whose products do not fit the address space, before anything is allocated.
    fn check_sizes(&self) -> Result<()> {
        let (h, w) = (self.hidden_size, self.embedding_width);
        let largest = [
            ("vocab_size", self.vocab_size, w, 1),
            ("max_sequence_length", self.max_sequence_length, self.max_sequence_length.max(w), 1),
            ("hidden_size", h, h.max(w), 1),
            ("inner_dim", h, self.inner_dim, self.num_experts.max(1)),
            ("type_vocab_size", self.type_vocab_size, w, 1),
        ];
        for (name, a, b, c) in largest {
            let fits = a.checked_mul(b).and_then(|ab| ab.checked_mul(c)).is_some_and(|size| size <= 1 << 40);
            if !fits {
                return Err(Error::value(name, "too large: a weight would have more than 2^40 elements"));
            }
        }
        Ok(())
    }

    /// The choices that `semantics` stands for.
    pub fn rules(&self) -> Rules {
        let strict = self.semantics == Semantics::KerasStrict;
        Rules { block_dropout: !strict, output_range: !strict, check_type_ids: !strict }
    }

    /// Head size `D`.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Whether block `layer` has a mixture of experts.
    pub fn is_moe(&self, layer: usize) -> bool {
        self.moe_layers.contains(&layer)
    }

    /// Whether block `layer` attends.
    pub fn is_attention(&self, layer: usize) -> bool {
        self.attention_layers.contains(&layer)
    }
}
