//! What an encoder is: every argument of the reference class, and our own.

mod arguments;
mod checks;
mod choices;
mod semantics;

pub use arguments::{ARGUMENTS, Argument, Kind, Origin, Range, SparseMixerConfig};
pub use choices::{
    ActivationConfig, ActivationFunction, InitializerConfig, MixingMechanism, RouterKind, SemanticsPreset,
};
pub use semantics::Semantics;

use crate::error::{Error, Result};

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

    /// Seed of the initial weights.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }

    /// Width of the embeddings.
    pub fn embedding_width(&self) -> usize {
        self.embedding_width.unwrap_or(self.hidden_size)
    }

    /// Rows of the last layer to compute; `None` for all.
    pub fn output_range(&self) -> Option<usize> {
        self.output_range.filter(|_| self.semantics().output_range).map(|rows| rows as usize)
    }

    /// Inner width of the experts.
    pub fn expert_inner_dim(&self) -> usize {
        self.expert_inner_dim.unwrap_or(self.inner_dim)
    }

    /// Dropout rate of expert outputs.
    pub fn expert_dropout(&self) -> f64 {
        self.expert_dropout.unwrap_or(self.output_dropout)
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
