//! Filled slots in two orders: by the expert that works on them, and by the token that is in them.

use std::ops::Range;

use crate::kernels::Real;
use crate::runtime::{Buffer, Context};

use super::router::Routing;
use crate::sys::{Work, timed};

/// A token on its way to an expert.
#[derive(Clone, Copy, Debug)]
pub struct Slot<R> {
    /// In the whole batch.
    pub token: u32,
    /// The expert that the router meant.
    pub expert: u32,
    /// The router's probability: weight of the expert's output.
    pub weight: R,
}

/// The filled slots of one mixture and call. A *row* is a slot's place in the experts' inputs and outputs.
#[derive(Debug)]
pub struct Dispatch<R: Real> {
    /// Of each row, by expert whose parameters are used, then by group. The buffers may be longer.
    token: Buffer<u32>,
    expert: Buffer<u32>,
    weight: Buffer<R>,
    rows: usize,
    /// Rows that one token can be in.
    rows_per_token: usize,
    /// Rows of expert `e` are `first_row[e]..first_row[e + 1]`.
    first_row: Vec<usize>,
    /// Rows of token `t` are `of_token[first_of_token[t]..first_of_token[t + 1]]`, ascending.
    first_of_token: Buffer<u32>,
    of_token: Buffer<u32>,
}

impl<R: Real> Dispatch<R> {
    /// The slots that `routing` filled.
    ///
    /// With `mixup`, slots of group `g` and expert `e` are worked on by expert number `(g * E + e) / G`: the JAX code
    /// reshapes `[G, E, C]` slots to `[E, G * C]` without exchanging the axes.
    pub fn new(context: &Context<'_, R>, routing: &Routing<R>, mixup: bool) -> Self {
        let (groups, experts) = (routing.grouping.groups, routing.experts());
        let tokens = groups * routing.grouping.tokens;
        let slots = (groups * experts * routing.grouping.slots()).min(tokens * routing.choices);
        Self::fill(context, experts, slots, tokens, routing.choices, |worker, rows| {
            for part in 0..groups {
                let cell = worker * groups + part;
                let (group, expert) = if mixup { (cell / experts, cell % experts) } else { (part, worker) };
                for (token, weight) in routing.tokens_of(group, expert) {
                    rows.push(Slot { token: token as u32, expert: expert as u32, weight });
                }
            }
        })
    }

    /// Only the slots of the first `requested` tokens of every `seq`.
    pub fn retain(&self, context: &Context<'_, R>, requested: usize, seq: usize) -> Self {
        let (experts, tokens) = (self.first_row.len() - 1, self.first_of_token.len() - 1);
        let most = self.rows.min(tokens / seq * requested * self.rows_per_token);
        Self::fill(context, experts, most, tokens, self.rows_per_token, |expert, rows| {
            let own = self.of_expert(expert).map(|row| self.slot(row));
            own.filter(|slot| slot.token as usize % seq < requested).for_each(|slot| rows.push(slot));
        })
    }

    /// At most `slots` slots of `tokens` tokens: those that `push_rows` adds for each expert. A dry run takes all for
    /// filled.
    fn fill(
        context: &Context<'_, R>,
        experts: usize,
        slots: usize,
        tokens: usize,
        rows_per_token: usize,
        push_rows: impl Fn(usize, &mut Self),
    ) -> Self {
        let mut filled = Dispatch {
            token: context.numbers(slots),
            expert: context.numbers(slots),
            weight: context.buffer(slots),
            rows: 0,
            rows_per_token,
            first_row: vec![0],
            first_of_token: context.numbers(tokens + 1),
            of_token: context.numbers(slots),
        };
        if context.is_dry() {
            filled.rows = slots;
            filled.first_row = (0..=experts).map(|expert| expert * slots / experts).collect();
            return filled;
        }
        for expert in 0..experts {
            push_rows(expert, &mut filled);
            filled.first_row.push(filled.rows);
        }
        filled.index_tokens();
        filled
    }

    fn push(&mut self, slot: Slot<R>) {
        let row = self.rows;
        (self.token[row], self.expert[row], self.weight[row]) = (slot.token, slot.expert, slot.weight);
        self.rows += 1;
    }

    /// Lists the rows of every token.
    fn index_tokens(&mut self) {
        let first = &mut self.first_of_token[..];
        first.fill(0);
        let rows = &self.token[..self.rows];
        rows.iter().for_each(|&token| first[token as usize] += 1);
        let mut end = 0;
        for first in first.iter_mut() {
            end += *first;
            *first = end;
        }
        // From the end of each token's rows to their beginning.
        for (row, &token) in rows.iter().enumerate().rev() {
            first[token as usize] -= 1;
            self.of_token[first[token as usize] as usize] = row as u32;
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The slot that is row number `row`.
    pub fn slot(&self, row: usize) -> Slot<R> {
        Slot { token: self.token[row], expert: self.expert[row], weight: self.weight[row] }
    }

    /// Rows that `expert` works on.
    pub fn of_expert(&self, expert: usize) -> Range<usize> {
        self.first_row[expert]..self.first_row[expert + 1]
    }

    /// Rows that a token is in, ascending: by expert.
    pub fn of_token(&self, token: usize) -> &[u32] {
        &self.of_token[self.first_of_token[token] as usize..self.first_of_token[token + 1] as usize]
    }

    /// Copies the tokens of `rows` from `h` (`[B*S, H]`) to `x` (`[rows, H]`).
    pub fn gather(&self, rows: Range<usize>, h: &[R], x: &mut [R]) {
        let _time = timed(Work::Residual);
        let hidden = x.len() / rows.len().max(1);
        for (&token, x) in self.token[rows].iter().zip(x.chunks_exact_mut(hidden.max(1))) {
            x.copy_from_slice(&h[token as usize * hidden..][..hidden]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;
    use crate::runtime::{ScratchPool, never, run};

    #[test]
    fn what_is_retained_keeps_its_order_and_its_experts() {
        // Of each expert, the tokens in its slots.
        let of_experts = [&[0, 3][..], &[1, 3], &[2]];
        let check = |context: &Context<'_, f32>| {
            let slots = Dispatch::fill(context, 3, 5, 6, 3, |expert, rows| {
                for &token in of_experts[expert] {
                    rows.push(Slot { token, expert: expert as u32, weight: token as f32 });
                }
            });
            assert_eq!([0, 3, 4, 2].map(|token| slots.of_token(token)), [&[0][..], &[1, 3], &[], &[4]]);
            let some = slots.retain(context, 1, 3);
            let kept: Vec<_> = (0..some.rows()).map(|row| some.slot(row)).collect();
            let kept: Vec<_> = kept.iter().map(|slot| (slot.token, slot.expert, slot.weight)).collect();
            assert_eq!(kept, [(0, 0, 0.0), (3, 0, 3.0), (3, 1, 3.0)]);
            assert_eq!([0, 1, 2].map(|expert| some.of_expert(expert)), [0..2, 2..3, 3..3]);
            assert_eq!([0, 1, 3].map(|token| some.of_token(token)), [&[0][..], &[], &[1, 2]]);
            Ok(())
        };
        run(Isa::PORTABLE, 1, &ScratchPool::new(), &never, check).unwrap();
    }
}
