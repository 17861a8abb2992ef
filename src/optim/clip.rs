//! Norms of gradients and the factor of clipping by the global norm.

use super::blocks::{BLOCK, map_in_order};
use super::layout::Gradient;
use crate::kernels::Real;
use crate::sys::alloc_collect_up_to;

/// Sum of the squares of `values` in double precision, in an order that depends only on their number.
pub(super) fn sum_of_squares<R: Real>(values: &[R]) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0f64; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x.to_f64() * x.to_f64();
        }
    }
    let tail: f64 = rest.iter().map(|x| x.to_f64() * x.to_f64()).sum();
    lanes.iter().sum::<f64>() + tail
}

/// Euclidean norm over all `gradients` together. The threads of the pool that the caller is in share the
/// work; the bits do not depend on how many there are.
pub fn global_norm<'a, R: Real>(gradients: impl Iterator<Item = Gradient<'a, R>> + Clone) -> f64 {
    let chunks = |gradient| match gradient {
        Gradient::None => [].chunks(BLOCK),
        Gradient::Dense(values) => values.chunks(BLOCK),
    };
    let count = gradients.clone().map(|gradient| chunks(gradient).len()).sum();
    let pieces = alloc_collect_up_to::<&[R]>(count, gradients.flat_map(chunks));
    let squares: Vec<f64> = map_in_order(pieces, sum_of_squares);
    squares.iter().sum::<f64>().sqrt()
}

/// What gradients of global norm `norm` are multiplied by so that it is at most `limit`: `min(1, limit / norm)`.
///
/// This is `tf.clip_by_global_norm` and, equally, the paper's rule (scale by `limit / norm` once the norm reaches the
/// limit).
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    if norm > limit { limit / norm } else { 1.0 }
}
