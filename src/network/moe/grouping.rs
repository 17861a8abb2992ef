//! Routing groups: which tokens compete for the experts, and how many tokens an expert takes of each group.
//!
//! Tokens are taken in the order of the batch and split into groups of equal size, across examples.

use crate::config::{RouterKind, SparseMixerConfig};
use crate::error::{Error, Result};

/// How the tokens of a batch form groups, and how many tokens an expert takes of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// `G`
    pub groups: usize,
    /// `T`
    pub tokens: usize,
    /// `C`
    pub capacity: usize,
}

impl Grouping {
    /// The grouping of a batch of `batch` examples of `seq` tokens.
    ///
    /// Doubles, left to right, half to even, as Python computes them; the traps are listed in the tests.
    pub fn new(config: &SparseMixerConfig, batch: usize, seq: usize, training: bool) -> Result<Self> {
        let semantics = config.semantics();
        let (groups, tokens) = match semantics.max_group_size {
            Some(size) => by_size(batch * seq, size),
            None => by_examples(batch, seq, config.examples_per_group())?,
        };
        let (factor, argument) = if training {
            (config.train_capacity_factor, "train_capacity_factor")
        } else {
            (config.eval_capacity_factor, "eval_capacity_factor")
        };
        let share = (factor * tokens as f64 / config.num_experts as f64).round_ties_even();
        let least = semantics.min_expert_capacity;
        let capacity = share.max(least as f64);
        // Tokens that choose leave slots empty; experts that choose must find as many.
        if capacity > tokens as f64 && config.router == RouterKind::ExpertsChoose {
            let message = format!("an expert would take {capacity} of the {tokens} tokens of a group");
            return Err(if share > tokens as f64 {
                Error::value(argument, format!("got {factor}: {message}"))
            } else {
                Error::value("min_expert_capacity", format!("got {least}: {message}"))
            });
        }
        let grouping = Grouping { groups, tokens, capacity: capacity as usize };
        let rows = (groups as u128) * (config.num_experts * grouping.slots()) as u128;
        if rows.max(batch as u128 * seq as u128) >= u128::from(u32::MAX) {
            // Tokens, and rows of experts, are numbered in 32 bits.
            let message =
                format!("got {batch}: mixtures take fewer than 2^32 tokens or rows of experts in one call");
            return Err(Error::value("batch", message));
        }
        Ok(grouping)
    }

    /// Tokens that an expert can have of a group at the most: slots beyond them stay empty.
    pub fn slots(&self) -> usize {
        self.capacity.min(self.tokens)
    }
}

/// The smallest number of equal groups that is at least `all / size`, rounded down; groups can be larger than `size`.
fn by_size(all: usize, size: usize) -> (usize, usize) {
    let least = (all / size).max(1);
    let groups = (least..=all).find(|groups| all.is_multiple_of(*groups)).unwrap_or(1);
    (groups, all / groups)
}

fn by_examples(batch: usize, seq: usize, per_group: f64) -> Result<(usize, usize)> {
    let all = batch * seq;
    if per_group > batch as f64 {
        return Err(Error::value(
            "examples_per_group",
            format!("got {per_group}, larger than the batch size {batch}"),
        ));
    }
    let tokens = (seq as f64 * per_group) as usize;
    if tokens == 0 || !all.is_multiple_of(tokens) {
        return Err(Error::value(
            "examples_per_group",
            format!(
                "got {per_group}: groups of int({seq} * {per_group}) = {tokens} tokens do not divide \
                 the {all} tokens of a batch of {batch}"
            ),
        ));
    }
    Ok((all / tokens, tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_numbered_in_32_bits() {
        let config = SparseMixerConfig::default();
        assert!(Grouping::new(&config, 1 << 20, 512, false).is_ok());
        // 2^32 tokens; then 2^31 tokens of which every expert takes all.
        let error = Grouping::new(&config, 1 << 23, 512, false).unwrap_err().to_string();
        assert!(error.starts_with("batch: got 8388608"), "{error}");
        let all = SparseMixerConfig { eval_capacity_factor: 16.0, ..config };
        assert!(Grouping::new(&all, 1 << 22, 512, false).is_err());
        assert!(Grouping::new(&all, 1 << 18, 512, false).is_ok());
    }
}
