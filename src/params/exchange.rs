//! Arithmetic of adding up the gradients of several processes: sums in an order that is fixed, numbers in half their bits.

use std::sync::Mutex;

use half::bf16;

use crate::kernels::{Isa, round_to_bfloat16};
use crate::runtime::{lock, parallel};
use crate::sys::{alloc_collect, alloc_zeroed};

/// Values that a thread takes at a time: sources and sums stay in the L2 cache.
const VALUES: usize = 1 << 13;

/// How a number travels.
pub trait Wire: Copy + Sync {
    /// The number.
    fn value(self) -> f32;
}

impl Wire for f32 {
    fn value(self) -> f32 {
        self
    }
}

impl Wire for bf16 {
    /// Without a branch, for vectors of them.
    fn value(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Adds up `terms` as a balanced tree does, in `sum`: number 0 and 1, number 2 and 3, then these sums, and so on. Terms that
/// are missing are left out rather than added as zeros. So the bits depend on the places of the terms alone: `2^k` terms
/// that begin at a multiple of `2^k` may as well be added up before, and be one term.
///
/// # Panics
/// If a term is shorter than `sum`.
pub fn tree_sum<W: Wire>(terms: &[Option<&[W]>], sum: &mut [f32]) {
    let depth = terms.len().next_power_of_two().ilog2() as usize;
    // A thread's own.
    let partials: Vec<Mutex<Vec<f32>>> =
        alloc_collect((0..parallel::thread_count()).map(|_| Mutex::new(alloc_zeroed(depth * VALUES))));
    parallel::for_each(sum.chunks_mut(VALUES).enumerate(), |(chunk, sum), thread| {
        if !add_up(terms, chunk * VALUES, sum, &mut lock(&partials[thread])) {
            sum.fill(0.0);
        }
    });
}

/// Writes the sum of the values of all terms from `start` on, unless there are no terms. `partial` is room for sums.
fn add_up<W: Wire>(terms: &[Option<&[W]>], start: usize, sum: &mut [f32], partial: &mut [f32]) -> bool {
    let &[term] = terms else {
        if terms.is_empty() {
            return false;
        }
        let (left, right) = terms.split_at(terms.len().next_power_of_two() / 2);
        if !add_up(left, start, sum, partial) {
            return add_up(right, start, sum, partial);
        }
        let (own, rest) = partial.split_at_mut(VALUES);
        let own = &mut own[..sum.len()];
        if add_up(right, start, own, rest) {
            sum.iter_mut().zip(own).for_each(|(sum, value)| *sum += *value);
        }
        return true;
    };
    let Some(term) = term else { return false };
    let values = &term[start..start + sum.len()];
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum = value.value());
    true
}

/// Writes the nearest bfloat16 of each value, of two that are as near the even one.
///
/// # Panics
/// If the lengths differ.
pub fn pack_bfloat16(values: &[f32], out: &mut [bf16]) {
    assert_eq!(values.len(), out.len(), "as many numbers as places for them");
    let (isa, pieces) = (Isa::fastest(), values.chunks(VALUES).zip(out.chunks_mut(VALUES)));
    parallel::for_each(pieces, |(values, out), _| round_to_bfloat16(isa, values, out));
}

/// Writes the numbers that `halves` are.
///
/// # Panics
/// If the lengths differ.
pub fn unpack_bfloat16(halves: &[bf16], out: &mut [f32]) {
    assert_eq!(halves.len(), out.len(), "as many numbers as places for them");
    let pieces = halves.chunks(VALUES).zip(out.chunks_mut(VALUES));
    parallel::for_each(pieces, |(halves, out), _| {
        halves.iter().zip(out).for_each(|(half, out)| *out = half.value());
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::parallel::with_threads;

    /// Numbers whose sums depend on the order.
    fn terms(count: usize, len: usize) -> Vec<Vec<f32>> {
        let value = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 1009) as f32 * 1.37e-3 - 0.7;
        (0..count).map(|i| (0..len).map(|j| value(i, j)).collect()).collect()
    }

    fn sum(terms: &[Option<&[f32]>], len: usize) -> Vec<f32> {
        let mut sum = vec![f32::NAN; len];
        tree_sum(terms, &mut sum);
        sum
    }

    #[test]
    fn neighbours_are_added_first_whoever_adds_them() {
        let len = 2 * VALUES + 5;
        let terms = terms(8, len);
        let all: Vec<Option<&[f32]>> = terms.iter().map(|term| Some(&term[..])).collect();
        let whole = with_threads(2, || sum(&all, len));
        let t = |i: usize| terms[i][len - 1];
        let by_hand = ((t(0) + t(1)) + (t(2) + t(3))) + ((t(4) + t(5)) + (t(6) + t(7)));
        assert_eq!(whole[len - 1].to_bits(), by_hand.to_bits());
        for ranks in [1, 2, 4] {
            let parts: Vec<Vec<f32>> = all.chunks(8 / ranks).map(|part| sum(part, len)).collect();
            let parts: Vec<Option<&[f32]>> = parts.iter().map(|part| Some(&part[..])).collect();
            assert_eq!(sum(&parts, len), whole, "{ranks} ranks");
        }
        let in_order = |j: usize| terms.iter().fold(0.0, |sum, term| sum + term[j]);
        assert!((0..len).any(|j| in_order(j).to_bits() != whole[j].to_bits()), "the numbers show nothing");
    }

    #[test]
    fn missing_terms_are_left_out() {
        let minus_zero = [-0.0f32];
        assert_eq!(sum(&[None, None, Some(&minus_zero), None, None], 1)[0].to_bits(), (-0.0f32).to_bits());
        assert_eq!(sum(&[None; 3], 2), [0.0, 0.0]);
        assert_eq!(sum(&[], 2), [0.0, 0.0]);
        let terms = terms(3, 1);
        let some = [Some(&terms[0][..]), Some(&terms[1][..]), None, None, Some(&terms[2][..])];
        assert_eq!(sum(&some, 1), [terms[0][0] + terms[1][0] + terms[2][0]]);
    }

    #[test]
    fn half_of_the_bits_are_those_of_the_nearest_even_number() {
        let values: Vec<f32> = (0..70_000u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b1))).collect();
        let mut halves = vec![bf16::ZERO; values.len()];
        pack_bfloat16(&values, &mut halves);
        let mut back = vec![0.0; values.len()];
        unpack_bfloat16(&halves, &mut back);
        for ((value, half), back) in values.iter().zip(&halves).zip(&back) {
            let expected = bf16::from_f32(*value);
            assert_eq!(half.to_bits(), expected.to_bits(), "{value}");
            assert_eq!(back.to_bits(), expected.to_f32().to_bits(), "{value}");
        }
        let mut sum = [0.0];
        tree_sum(&[Some(&[bf16::ONE][..]), Some(&[bf16::from_bits(0x3b80)][..])], &mut sum);
        assert_eq!(sum, [1.003_906_3], "sums have all bits");
    }
}
