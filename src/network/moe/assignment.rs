//! The routing assignment of one group, from the router's probabilities `p` (`[T, E]`).
//!
//! Both kinds of routing fill slots `[E, C]` with token indices. Equal probabilities go to the lower index; NaN of either sign counts
//! as largest.
//! Sources: `moe.ExpertsChooseMaskedRouter`; `routing.ExpertsChooseMaskedRouter` and `routing.TokensChoose*Router` of
//! the JAX code, whose masked and scatter forms give the same result.

use std::cmp::Ordering;

use crate::kernels::Real;
use crate::sys::{alloc_collect, alloc_zeroed};

/// A slot without a token.
pub const EMPTY: u32 = u32::MAX;

/// Every expert picks the tokens with the largest probabilities: writes `slots`, `[E, C]`, ascending in each expert.
pub fn experts_choose<R: Real>(p: &[R], experts: usize, slots: &mut [u32]) {
    let (tokens, capacity) = (p.len() / experts, slots.len() / experts);
    for (expert, picks) in slots.chunks_exact_mut(capacity.max(1)).enumerate() {
        pick_largest(tokens, |token| p[token * experts + expert], picks);
    }
}

/// Every token asks for its most probable experts, as many as `selected`: writes `slots`, `[E, C]`, in the order of
/// service, and to `requested` (`[E]`) the fraction of the tokens that ask for each expert, served or not.
///
/// First choices are served first, then second choices, and so on; among equals tokens are served in their order or,
/// with `prioritized`, by descending probability of their first choice.
pub fn tokens_choose<R: Real>(
    p: &[R],
    experts: usize,
    selected: usize,
    prioritized: bool,
    slots: &mut [u32],
    requested: &mut [R],
) {
    let (tokens, capacity) = (p.len() / experts, slots.len() / experts);
    let mut choices = alloc_zeroed::<u32>(tokens * selected);
    for (choices, p) in choices.chunks_exact_mut(selected).zip(p.chunks_exact(experts)) {
        most_probable(p, choices);
    }
    let mut order = alloc_collect((0..tokens).map(|token| token as u32));
    if prioritized {
        let first = |token: u32| p[token as usize * experts + choices[token as usize * selected] as usize];
        order.sort_by(|&a, &b| descending(first(a), first(b)));
    }
    slots.fill(EMPTY);
    let mut requests = vec![0usize; experts];
    for rank in 0..selected {
        for &token in &order {
            let expert = choices[token as usize * selected + rank] as usize;
            if requests[expert] < capacity {
                slots[expert * capacity + requests[expert]] = token;
            }
            requests[expert] += 1;
        }
    }
    for (fraction, requests) in requested.iter_mut().zip(requests) {
        *fraction = R::from_f64(requests as f64 / tokens as f64);
    }
}

/// A total order also with NaN, which counts as largest whatever its sign: which sign it gets differs between processors.
fn descending<R: Real>(a: R, b: R) -> Ordering {
    let (a, b) = (a.to_f64(), b.to_f64());
    b.is_nan().cmp(&a.is_nan()).then(b.partial_cmp(&a).unwrap_or(Ordering::Equal))
}

/// Writes the indices of the `choices.len()` largest of `p`, descending.
fn most_probable<R: Real>(p: &[R], choices: &mut [u32]) {
    for rank in 0..choices.len() {
        let (chosen, rest) = choices.split_at_mut(rank);
        let others = (0..p.len() as u32).filter(|expert| !chosen.contains(expert));
        let best = others.min_by(|&a, &b| descending(p[a as usize], p[b as usize]).then(a.cmp(&b)));
        rest[0] = best.unwrap_or_default();
    }
}

/// Writes the indices of the `picks.len()` largest values, ascending; of equal values the lower index is larger.
fn pick_largest<R: Real>(count: usize, value: impl Fn(usize) -> R, picks: &mut [u32]) {
    let mut order = alloc_collect((0..count).map(|i| (value(i), i as u32)));
    if picks.len() < count {
        order.select_nth_unstable_by(picks.len(), |a, b| descending(a.0, b.0).then(a.1.cmp(&b.1)));
    }
    for (pick, (_, index)) in picks.iter_mut().zip(&order) {
        *pick = *index;
    }
    picks.sort_unstable();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, RngStream, open_unit};

    /// Probabilities on a coarse grid, so that there are ties.
    fn probabilities(seed: u64, tokens: usize, experts: usize) -> Vec<f64> {
        let mut p = vec![0.0; tokens * experts];
        RngStream::new(seed, Purpose::RouterJitter, 0)
            .for_each_word(0, p.len(), |i, word| p[i] = (open_unit(word) * 8.0).floor() / 8.0);
        p
    }

    /// The definition, request by request, on whole lists.
    fn reference(p: &[f64], experts: usize, selected: usize, prioritized: bool, capacity: usize) -> Vec<u32> {
        let rows: Vec<&[f64]> = p.chunks(experts).collect();
        let choices: Vec<Vec<usize>> = rows
            .iter()
            .map(|row| {
                let mut all: Vec<usize> = (0..experts).collect();
                all.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap());
                all
            })
            .collect();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        if prioritized {
            order.sort_by(|&a, &b| rows[b][choices[b][0]].partial_cmp(&rows[a][choices[a][0]]).unwrap());
        }
        let requests: Vec<(usize, usize)> =
            (0..selected).flat_map(|rank| order.iter().map(move |&t| (rank, t))).collect();
        let mut slots = Vec::new();
        for expert in 0..experts {
            let mut own: Vec<u32> = requests
                .iter()
                .filter(|&&(rank, token)| choices[token][rank] == expert)
                .map(|&(_, token)| token as u32)
                .collect();
            own.resize(capacity.max(own.len()), EMPTY);
            slots.extend(&own[..capacity]);
        }
        slots
    }

    #[test]
    fn tokens_choose_is_the_definition() {
        for seed in 0..200 {
            let (tokens, experts) = (1 + seed as usize % 17, 1 + seed as usize % 5);
            let p = probabilities(seed, tokens, experts);
            for selected in 1..=experts.min(3) {
                for prioritized in [false, true] {
                    for capacity in [0, 1, 2, tokens] {
                        let (mut slots, mut requested) = (vec![7; experts * capacity], vec![0.0; experts]);
                        tokens_choose(&p, experts, selected, prioritized, &mut slots, &mut requested);
                        assert_eq!(slots, reference(&p, experts, selected, prioritized, capacity));
                        let all: f64 = requested.iter().sum();
                        assert!((all - selected as f64).abs() < 1e-12, "{requested:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn nan_of_either_sign_is_largest_and_stops_nothing() {
        for nan in [f64::NAN.copysign(1.0), f64::NAN.copysign(-1.0)] {
            let p = [0.5, 0.5, nan, 0.1, 0.2, nan];
            let (mut slots, mut requested) = (vec![0; 2 * 2], vec![0.0; 2]);
            tokens_choose(&p, 2, 1, true, &mut slots, &mut requested);
            assert_eq!(slots, [1, 0, 2, EMPTY], "{nan:?}");
            experts_choose(&p, 2, &mut slots);
            assert_eq!(slots, [0, 1, 0, 2], "{nan:?}");
        }
        // Two of them are equal: the lower index goes first.
        let p = [0.5, f64::NAN.copysign(-1.0), f64::NAN.copysign(1.0), 0.9];
        let mut slots = [7];
        experts_choose(&p, 1, &mut slots);
        assert_eq!(slots, [1]);
    }
}
