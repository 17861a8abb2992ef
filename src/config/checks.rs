//! Which configurations can work, and which calls an encoder takes.

use super::arguments::SparseMixerConfig;
use super::choices::RouterKind;
use crate::error::{Error, Result};

/// Far above any encoder; files from strangers must not make us list the weights of more.
const MAX_LAYERS: usize = 4096;
/// Most buckets of relative position biases: more than there are distances with one of their own.
const MAX_BUCKETS: usize = 256;
const MAX_WEIGHTS: u128 = 1 << 42;
/// Elements of one weight.
const MAX_ELEMENTS: u128 = 1 << 40;

impl SparseMixerConfig {
    /// Checks every argument, by itself and together with others.
    pub fn validated(self) -> Result<Self> {
        self.check_ranges()?;
        // Without a mixture, nothing looks at the number of experts.
        if self.num_experts < 1 && !self.moe_layers.is_empty() {
            return Err(Error::value(
                "num_experts",
                format!("got {}, expected at least 1", self.num_experts),
            ));
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
        if let (Some(size), Some(examples)) = (self.max_group_size, self.examples_per_group) {
            return Err(Error::value(
                "max_group_size",
                format!("got {size} together with examples_per_group={examples}; give only one of them"),
            ));
        }
        if let Some(range) = self.output_range
            && self.semantics().output_range
            && !(1..=self.max_sequence_length as i64).contains(&range)
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
        if self.router == RouterKind::ExpertsChoose && self.num_selected_experts != 1 {
            return Err(Error::value(
                "num_selected_experts",
                format!(
                    "got {}, which only router=\"tokens_choose\" uses; experts choose as many tokens as the capacity \
                     factor says",
                    self.num_selected_experts
                ),
            ));
        }
        if self.router == RouterKind::TokensChoose
            && !self.moe_layers.is_empty()
            && self.num_selected_experts > self.num_experts
        {
            return Err(Error::value(
                "num_selected_experts",
                format!(
                    "got {}, expected at most num_experts ({})",
                    self.num_selected_experts, self.num_experts
                ),
            ));
        }
        if let Some(id) = self.pad_id
            && !(-1..self.vocab_size as i64).contains(&id)
        {
            return Err(Error::value(
                "pad_id",
                format!("got {id}, expected an id below {}, or -1 for no padding", self.vocab_size),
            ));
        }
        if self.project_embeddings == Some(false) && self.embedding_width() != self.hidden_size {
            return Err(Error::value(
                "project_embeddings",
                format!(
                    "got False, but only a projection leads from embedding_width ({}) to hidden_size ({})",
                    self.embedding_width(),
                    self.hidden_size
                ),
            ));
        }
        if self.shorter_sequences == Some(true) && !self.takes_shorter_sequences() {
            return Err(Error::value(
                "shorter_sequences",
                format!("got True, but weights of {:?} mixing belong to one length", self.mixing_mechanism)
                    .to_lowercase(),
            ));
        }
        if let Some(buckets) = self.relative_attention_num_buckets
            && (buckets < 4 || !buckets.is_multiple_of(2) || buckets > MAX_BUCKETS)
        {
            return Err(Error::value(
                "relative_attention_num_buckets",
                format!("got {buckets}, expected an even number from 4 to {MAX_BUCKETS}"),
            ));
        }
        if self.norm_first && self.moe_residual == Some(false) {
            return Err(Error::value(
                "moe_residual",
                "got False together with norm_first=True; pre-norm blocks have residuals",
            ));
        }
        if self.num_layers > MAX_LAYERS {
            return Err(Error::value(
                "num_layers",
                format!("got {}, expected at most {MAX_LAYERS}", self.num_layers),
            ));
        }
        self.inner_activation.function()?;
        self.check_sizes()?;
        Ok(self)
    }

    /// Refuses sizes whose products do not fit the address space, before anything is allocated.
    fn check_sizes(&self) -> Result<()> {
        // 128 bits, so that no product overflows, on 32-bit processors either.
        let size = |value: usize| value as u128;
        let (h, w, s) =
            (size(self.hidden_size), size(self.embedding_width()), size(self.max_sequence_length));
        let experts = size(self.expert_inner_dim()) * size(self.num_experts.max(1));
        let largest = [
            ("vocab_size", size(self.vocab_size) * w),
            ("max_sequence_length", s * s.max(w)),
            ("hidden_size", h * h.max(w)),
            ("inner_dim", h * size(self.inner_dim)),
            ("expert_inner_dim", h * experts),
            ("type_vocab_size", size(self.type_vocab_size) * w),
        ];
        for (name, elements) in largest {
            if elements > MAX_ELEMENTS.min(isize::MAX as u128 / 8) {
                return Err(Error::value(name, "too large: a weight would have more than 2^40 elements"));
            }
        }
        let embeddings = (size(self.vocab_size) + s + size(self.type_vocab_size) + h) * w;
        let (mixing, dense) = (4 * h * h + s * s, 2 * h * size(self.inner_dim));
        let mixtures = size(self.moe_layers.len().min(self.num_layers)) * 2 * h * experts;
        let all = embeddings + size(self.num_layers) * (mixing + dense) + mixtures + h * h;
        if all > MAX_WEIGHTS {
            return Err(Error::value(
                "num_layers",
                "too many: the encoder would have more than 2^42 weights",
            ));
        }
        Ok(())
    }

    /// Checks the length of a call's sequences.
    ///
    /// # Errors
    /// [`Error::Value`] naming `argument`, with `got` for what was given.
    pub fn check_length(&self, seq: usize, argument: &str, got: &str) -> Result<()> {
        let longest = self.max_sequence_length;
        if seq == longest || (self.takes_shorter_sequences() && (1..longest).contains(&seq)) {
            return Ok(());
        }
        let expected =
            if self.takes_shorter_sequences() { "1 to max_sequence_length" } else { "max_sequence_length" };
        Err(Error::value(argument, format!("{got}, expected {expected} ({longest})")))
    }

    /// Whether calls may have shorter sequences: where the rules say so and no weight belongs to a length.
    pub fn takes_shorter_sequences(&self) -> bool {
        self.semantics().shorter_sequences
            && (self.mixing_mechanism.is_transform()
                || (0..self.num_layers).all(|layer| self.is_attention(layer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file from a stranger can name sizes that each pass alone.
    #[test]
    fn all_weights_count_towards_the_bound() {
        let toy = SparseMixerConfig { hidden_size: 8, num_layers: 1, inner_dim: 8, ..Default::default() };
        let toy = SparseMixerConfig { moe_layers: vec![], attention_layers: vec![0], ..toy };
        let large = [
            SparseMixerConfig { vocab_size: 1 << 30, embedding_width: Some(1 << 12), ..toy.clone() },
            SparseMixerConfig { type_vocab_size: 1 << 30, embedding_width: Some(1 << 11), ..toy.clone() },
            SparseMixerConfig { num_layers: 4096, hidden_size: 1 << 15, inner_dim: 1 << 15, ..toy.clone() },
            SparseMixerConfig { hidden_size: usize::MAX & !7, ..toy.clone() },
            // Each table is within the bound of one weight, all of them together are not.
            SparseMixerConfig {
                vocab_size: 1 << 30,
                type_vocab_size: 1 << 30,
                embedding_width: Some(1 << 10),
                hidden_size: 1 << 20,
                inner_dim: 1 << 20,
                ..toy.clone()
            },
        ];
        for config in large {
            let error = config.clone().validated().unwrap_err().to_string();
            assert!(error.contains("too large") || error.contains("too many"), "{config:?}: {error}");
        }
        assert!(SparseMixerConfig { vocab_size: 1 << 20, ..toy }.validated().is_ok());
    }
}
