//! How much a call has to do: whether it is worth other threads than the caller's.

use crate::config::SparseMixerConfig;

/// Multiply-adds that one thread does while others would be woken.
const SMALL: f64 = 3e6;

/// Whether a forward pass over `batch` examples of `seq` tokens is over before other threads would help.
pub fn is_small(config: &SparseMixerConfig, batch: usize, seq: usize) -> bool {
    let (seq, hidden) = (seq as f64, config.hidden_size as f64);
    let per_token = (0..config.num_layers).map(|layer| {
        // Keys, values, queries and outputs, or one product with a matrix; then one along the sequence, or two.
        let mixing = if config.is_attention(layer) { 4.0 * hidden + 2.0 * seq } else { hidden + seq };
        let inner = if config.is_moe(layer) { config.expert_inner_dim() } else { config.inner_dim };
        hidden * (mixing + 2.0 * inner as f64)
    });
    batch as f64 * seq * per_token.sum::<f64>() < SMALL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_model_is_large_and_a_toy_is_small() {
        let base = SparseMixerConfig::default();
        assert!(!is_small(&base, 1, 512));
        let toy = SparseMixerConfig { hidden_size: 32, num_layers: 2, inner_dim: 64, ..base };
        assert!(is_small(&toy, 8, 8) && !is_small(&toy, 8, 512));
        assert!(is_small(&toy, 0, 512));
    }
}
