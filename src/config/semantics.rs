//! What `semantics` stands for, as one choice per question: layers ask these, never the name.

use super::arguments::SparseMixerConfig;
use super::choices::{InitializerConfig, SemanticsPreset};

/// The choices of one encoder; where an argument makes a choice, it is the argument's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Semantics {
    /// Dropout after mixing or attention.
    pub mixing_dropout: bool,
    /// Dropout after the dense feed-forward.
    pub feed_forward_dropout: bool,
    /// One dropout mask `[S, S]` of attention weights for all examples and heads.
    pub shared_attention_dropout: bool,
    /// `output_range` slices the last layer.
    pub output_range: bool,
    /// A type id outside the vocabulary is an error, else it contributes zeros.
    pub check_type_ids: bool,
    /// Residual and layer norm around the mixtures of post-norm blocks.
    pub moe_residual: bool,
    /// A projection of the embeddings whatever their width, and dropout after it instead of before.
    pub project_embeddings: bool,
    /// The projection is initialised LeCun normal, unlike the other kernels.
    pub lecun_projection: bool,
    /// The id of padding, if real tokens attend to real tokens and padding to everything; else masks cover keys.
    pub pad_id: Option<i64>,
    /// Sequences may be shorter where no weight belongs to a length.
    pub shorter_sequences: bool,
    /// Largest routing group in tokens; else groups are made of `examples_per_group`.
    pub max_group_size: Option<usize>,
    /// Least expert capacity.
    pub min_expert_capacity: usize,
    /// Weight of the router z-loss.
    pub router_z_loss_weight: f64,
}

/// Standard deviation of kernels and tables, where no initialiser is given.
const STDDEV: f64 = 0.02;

impl SparseMixerConfig {
    /// The choices that `semantics` and the arguments stand for.
    pub fn semantics(&self) -> Semantics {
        let strict = self.semantics == SemanticsPreset::KerasStrict;
        let paper = self.semantics == SemanticsPreset::Paper;
        let paper_group = (paper && self.examples_per_group.is_none()).then_some(4096);
        Semantics {
            mixing_dropout: !strict && !paper,
            feed_forward_dropout: !strict,
            shared_attention_dropout: paper,
            output_range: !strict,
            check_type_ids: !strict,
            moe_residual: self.moe_residual.unwrap_or(paper),
            project_embeddings: self.project_embeddings.unwrap_or(paper),
            lecun_projection: paper && self.initializer.is_none(),
            pad_id: self.pad_id.or(paper.then_some(0)),
            shorter_sequences: self.shorter_sequences.unwrap_or(paper),
            max_group_size: self.max_group_size.or(paper_group),
            min_expert_capacity: self.min_expert_capacity.unwrap_or(if paper { 4 } else { 0 }),
            router_z_loss_weight: self.router_z_loss_weight.unwrap_or(if paper { 1e-4 } else { 0.0 }),
        }
    }

    /// How kernels and tables are initialised.
    pub fn initializer(&self) -> InitializerConfig {
        let (mean, stddev) = (0.0, STDDEV);
        match (&self.initializer, self.semantics) {
            (Some(given), _) => given.clone(),
            (None, SemanticsPreset::Paper) => InitializerConfig::Normal { mean, stddev },
            (None, _) => InitializerConfig::TruncatedNormal { mean, stddev },
        }
    }

    /// Routing group size in examples, where there is none in tokens.
    pub fn examples_per_group(&self) -> f64 {
        self.examples_per_group.unwrap_or(1.0)
    }
}
