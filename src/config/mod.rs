//! What an encoder is: every argument of the reference class, and our own. `semantics.rs` has what follows from `semantics`.

mod checks;
mod semantics;

pub use semantics::Semantics;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kernels::Dtype;

/// Which encoder's conventions to follow where they differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SemanticsPreset {
    /// TensorFlow's numbers; documented arguments that TensorFlow's code drops are honoured.
    Keras,
    /// Exactly TensorFlow's code, silent drops included.
    KerasStrict,
    /// The original JAX encoder of the paper.
    Paper,
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
    /// The same with circulant matrices: circular convolutions with learned vectors.
    Circulant,
    /// The same with Toeplitz matrices, constant along diagonals.
    Toeplitz,
}

impl MixingMechanism {
    /// Whether it is a fixed transform, which has no weights and is defined for every sequence length.
    pub fn is_transform(self) -> bool {
        matches!(self, MixingMechanism::Fourier | MixingMechanism::Hartley)
    }
}

/// Who chooses whom in a mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterKind {
    /// Every expert takes the tokens with the largest probability.
    ExpertsChoose,
    /// Every token goes to its most probable experts, while these have room.
    TokensChoose,
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
    /// The sequence length; shorter ones are accepted where [`SparseMixerConfig::check_length`] says so.
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
    /// How kernels and tables are initialised.
    pub initializer: InitializerConfig,
    /// Rows of the last layer to compute.
    pub output_range: Option<usize>,
    /// Width of the embeddings; 0 stands for `hidden_size`.
    pub embedding_width: usize,
    /// Layer norms before the sublayers instead of after.
    pub norm_first: bool,
    /// Weight of the router z-loss in training; `None` as `semantics` has it.
    pub router_z_loss_weight: Option<f64>,
    /// Router inputs are multiplied by uniform noise from `[1 - jitter_noise, 1 + jitter_noise)` when training.
    pub jitter_noise: f64,
    /// Whose conventions to follow.
    pub semantics: SemanticsPreset,
    /// The word id of padding. Given, real tokens attend to real tokens and padding evenly to everything, and padding is
    /// where the word ids have this value unless a mask says otherwise; `None` as `semantics` has it.
    pub pad_id: Option<i64>,
    /// Residual and layer norm around the mixtures of post-norm blocks; `None` as `semantics` has it.
    pub moe_residual: Option<bool>,
    /// Whether sequences may be shorter than `max_sequence_length` where no weight belongs to a length; `None` as
    /// `semantics` has it.
    pub shorter_sequences: Option<bool>,
    /// Project the embeddings also where their width is `hidden_size`, and drop out after the projection rather than
    /// before; `None` as `semantics` has it.
    pub project_embeddings: Option<bool>,
    /// What layer norms add to the variance.
    pub layer_norm_epsilon: f64,
    /// Whether there is a pooler.
    pub with_pooler: bool,
    /// Least expert capacity; `None` as `semantics` has it.
    pub min_expert_capacity: Option<usize>,
    /// Inner width of the experts; `None` for `inner_dim`.
    pub expert_inner_dim: Option<usize>,
    /// Dropout rate of expert outputs; `None` for `output_dropout`.
    pub expert_dropout: Option<f64>,
    /// Who chooses whom.
    pub router: RouterKind,
    /// Experts that each token asks for, where tokens choose.
    pub num_selected_experts: usize,
    /// Where tokens choose: serve them by descending probability of their first choice rather than in their order.
    pub batch_prioritized_routing: bool,
    /// Weight of the load-balancing loss in training, where tokens choose.
    pub auxiliary_loss_factor: f64,
    /// Arithmetic of the router, from its input to the probabilities: 32-bit floats, or every intermediate result rounded
    /// to bfloat16, as the JAX code executes it. No other type.
    pub router_dtype: Dtype,
    /// With several groups, use the expert parameters that the JAX code uses by mistake: number
    /// `(group * num_experts + expert) / groups`.
    pub group_mixup: bool,
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
            router_z_loss_weight: None,
            jitter_noise: 0.0,
            semantics: SemanticsPreset::Keras,
            pad_id: None,
            moe_residual: None,
            shorter_sequences: None,
            layer_norm_epsilon: 1e-12,
            with_pooler: true,
            project_embeddings: None,
            min_expert_capacity: None,
            expert_inner_dim: None,
            expert_dropout: None,
            router: RouterKind::ExpertsChoose,
            num_selected_experts: 1,
            batch_prioritized_routing: true,
            auxiliary_loss_factor: 0.01,
            router_dtype: Dtype::Float32,
            group_mixup: false,
            seed: 0,
            dtype: Dtype::Float32,
        }
    }
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

    /// Inner width of the experts.
    pub fn expert_inner_dim(&self) -> usize {
        self.expert_inner_dim.unwrap_or(self.inner_dim)
    }

    /// Dropout rate of expert outputs.
    pub fn expert_dropout(&self) -> f64 {
        self.expert_dropout.unwrap_or(self.output_dropout)
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
