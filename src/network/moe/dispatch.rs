//! Filled slots in two orders: by the expert that works on them, and by the token that is in them.

use std::ops::Range;

use crate::kernels::Real;

use super::router::Routing;

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
pub struct Dispatch<R> {
    /// By expert whose parameters are used, then by group.
    rows: Vec<Slot<R>>,
    /// Rows of expert `e` are `first_row[e]..first_row[e + 1]`.
    first_row: Vec<usize>,
    /// Rows of token `t` are `of_token[first_of_token[t]..first_of_token[t + 1]]`, ascending.
    first_of_token: Vec<u32>,
    of_token: Vec<u32>,
}

impl<R: Real> Dispatch<R> {
    /// The slots that `routing` filled.
    ///
    /// With `mixup`, slots of group `g` and expert `e` are worked on by expert number `(g * E + e) / G`: the JAX code
    /// reshapes `[G, E, C]` slots to `[E, G * C]` without exchanging the axes.
    pub fn new(routing: &Routing<R>, mixup: bool) -> Self {
        let (groups, experts) = (routing.grouping.groups, routing.experts());
        let mut rows = Vec::with_capacity(groups * experts * routing.grouping.slots());
        let mut first_row = vec![0];
        for worker in 0..experts {
            for part in 0..groups {
                let cell = worker * groups + part;
                let (group, expert) = if mixup { (cell / experts, cell % experts) } else { (part, worker) };
                rows.extend(routing.tokens_of(group, expert).map(|(token, weight)| Slot {
                    token: token as u32,
                    expert: expert as u32,
                    weight,
                }));
            }
            first_row.push(rows.len());
        }
        Self::of_rows(rows, first_row, groups * routing.grouping.tokens)
    }

    /// Only the slots of the tokens that `requested` names.
    pub fn retain(&self, requested: impl Fn(usize) -> bool) -> Self {
        let mut rows = Vec::with_capacity(self.rows.len());
        let mut first_row = vec![0];
        for expert in 0..self.first_row.len() - 1 {
            let own = self.rows[self.of_expert(expert)].iter();
            rows.extend(own.filter(|slot| requested(slot.token as usize)));
            first_row.push(rows.len());
        }
        Self::of_rows(rows, first_row, self.first_of_token.len() - 1)
    }

    fn of_rows(rows: Vec<Slot<R>>, first_row: Vec<usize>, tokens: usize) -> Self {
        let mut first_of_token = vec![0u32; tokens + 1];
        for slot in &rows {
            first_of_token[slot.token as usize + 1] += 1;
        }
        for token in 0..tokens {
            first_of_token[token + 1] += first_of_token[token];
        }
        let mut next = first_of_token.clone();
        let mut of_token = vec![0; rows.len()];
        for (row, slot) in rows.iter().enumerate() {
            let place = &mut next[slot.token as usize];
            of_token[*place as usize] = row as u32;
            *place += 1;
        }
        Dispatch { rows, first_row, first_of_token, of_token }
    }

    /// All slots, in the order of rows.
    pub fn rows(&self) -> &[Slot<R>] {
        &self.rows
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
        let hidden = x.len() / rows.len().max(1);
        for (slot, x) in self.rows[rows].iter().zip(x.chunks_exact_mut(hidden.max(1))) {
            x.copy_from_slice(&h[slot.token as usize * hidden..][..hidden]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(token: u32, expert: u32) -> Slot<f32> {
        Slot { token, expert, weight: token as f32 }
    }

    #[test]
    fn what_is_retained_keeps_its_order_and_its_experts() {
        let rows = [(0, 0), (3, 0), (1, 1), (3, 1), (2, 2)].map(|(token, expert)| slot(token, expert));
        let slots = Dispatch::of_rows(rows.to_vec(), vec![0, 2, 4, 5], 5);
        assert_eq!(slots.of_token(3), [1, 3]);
        let some = slots.retain(|token| token == 3 || token == 2);
        let tokens: Vec<_> = some.rows().iter().map(|slot| (slot.token, slot.expert)).collect();
        assert_eq!(tokens, [(3, 0), (3, 1), (2, 2)]);
        assert_eq!([0, 1, 2].map(|expert| some.of_expert(expert)), [0..1, 1..2, 2..3]);
        assert_eq!((some.of_token(3), some.of_token(0)), (&[0, 1][..], &[][..]));
    }
}
