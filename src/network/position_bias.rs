//! Relative position biases: numbers that attention adds to its scores, one per head and bucket of distances between query
//! and key. All blocks share them.
//!
//! Near distances have a bucket each, far ones share buckets whose widths grow with the distance; keys before and behind the
//! query have buckets of their own. Source: `MPNetEncoder.compute_position_bias` of Hugging Face's transformers, after T5.

use crate::kernels::Real;
use crate::layers::EmbeddingTable;
use crate::params::{Gradients, WeightList, Weights};
use crate::runtime::{Buffer, Context};
use crate::sys::{alloc_collect, alloc_zeroed};

/// Distances from here on are in the last bucket.
const FARTHEST: f64 = 128.0;

/// The table of biases.
#[derive(Clone, Copy, Debug)]
pub struct PositionBias {
    /// `[buckets, heads]`
    table: EmbeddingTable,
}

impl PositionBias {
    /// Declares the table.
    pub fn new(list: &mut WeightList, buckets: usize, heads: usize) -> Self {
        PositionBias {
            table: EmbeddingTable::new(list, "relative_attention_bias/embeddings", buckets, heads),
        }
    }

    /// The biases by distance, `[heads, 2 S - 1]`: row `n` begins with that of a key `S - 1` positions before the query.
    pub fn by_offset<R: Real>(self, context: &Context<'_, R>, weights: &Weights<R>, seq: usize) -> Buffer<R> {
        let (table, offsets) = (self.table.table(weights), 2 * seq - 1);
        let mut biases = context.buffer(self.table.width() * offsets);
        let mut row: Vec<R> = alloc_zeroed(self.table.width());
        for place in 0..offsets {
            table.copy_row(bucket(place, seq, self.table.rows()), &mut row);
            for (biases, bias) in biases.chunks_exact_mut(offsets).zip(&row) {
                biases[place] = *bias;
            }
        }
        biases
    }

    /// Adds to the table's gradients what `d_offsets`, gradients of [`PositionBias::by_offset`], comes to.
    pub fn add_gradients<R: Real>(
        self,
        context: &Context<'_, R>,
        d_offsets: &[R],
        seq: usize,
        gradients: &mut Gradients<R>,
    ) {
        let (heads, offsets) = (self.table.width(), 2 * seq - 1);
        let mut rows: Vec<R> = alloc_zeroed(d_offsets.len());
        for (place, row) in rows.chunks_exact_mut(heads).enumerate() {
            for (d, own) in row.iter_mut().zip(d_offsets.chunks_exact(offsets)) {
                *d = own[place];
            }
        }
        let looked_up = rows
            .chunks_exact(heads)
            .enumerate()
            .map(|(place, row)| (bucket(place, seq, self.table.rows()), row));
        self.table.add_gradients(context.isa, looked_up, gradients);
    }
}

/// The bucket, of `buckets`, of each distance between `seq` positions, `[2 S - 1]`: of keys `S - 1` positions before the query,
/// then of later ones.
pub fn distance_buckets(seq: usize, buckets: usize) -> Vec<usize> {
    alloc_collect((0..2 * seq - 1).map(|place| bucket(place, seq, buckets)))
}

/// The biases of the keys of query `query`, `[S]`, of one head's `[2 S - 1]`.
pub fn of_query<T>(biases: &[T], query: usize, seq: usize) -> &[T] {
    &biases[seq - 1 - query..][..seq]
}

/// The same, to be changed.
pub fn of_query_mut<T>(biases: &mut [T], query: usize, seq: usize) -> &mut [T] {
    &mut biases[seq - 1 - query..][..seq]
}

/// The bucket of place `place` among the offsets of `seq` positions.
fn bucket(place: usize, seq: usize, buckets: usize) -> usize {
    let each = buckets / 2;
    let (behind, distance) = if place > seq - 1 { (each, place - (seq - 1)) } else { (0, seq - 1 - place) };
    let exact = each / 2;
    if distance < exact {
        return behind + distance;
    }
    // As 32-bit arithmetic rounds it there.
    let part = (distance as f32 / exact as f32).ln() / (FARTHEST / exact as f64).ln() as f32;
    let far = exact + (part * (each - exact) as f32) as usize;
    behind + far.min(each - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_mpnet() {
        // transformers' relative_position_bucket(relative_position, 32) for keys at these distances.
        let of = |offset: isize| bucket((200 + offset) as usize, 201, 32);
        let expected = [(0, 0), (-1, 1), (-7, 7), (-8, 8), (-11, 8), (-12, 9), (-127, 15), (-200, 15)];
        for (offset, expected) in expected {
            assert_eq!(of(offset), expected, "{offset}");
        }
        for (offset, expected) in [(1, 17), (7, 23), (8, 24), (12, 25), (128, 31), (200, 31)] {
            assert_eq!(of(offset), expected, "{offset}");
        }
    }

    #[test]
    fn queries_see_the_offsets_of_their_keys() {
        let offsets = [-2, -1, 0, 1, 2];
        assert_eq!(of_query(&offsets, 0, 3), [0, 1, 2]);
        assert_eq!(of_query(&offsets, 2, 3), [-2, -1, 0]);
    }
}
