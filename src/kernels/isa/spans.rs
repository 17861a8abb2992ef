//! Walks over slices in vectors, with one partial vector at the end.
//!
//! Closures given to these functions are marked `#[inline(always)]`, see [`simd`](super::simd).

use std::ops::Range;

use half::bf16;

use super::number::Number;
use super::simd::{LANES, Simd};

/// Up to [`LANES`] neighbouring elements of each of several slices of one length.
#[derive(Clone, Copy)]
pub struct Span {
    first: usize,
    len: usize,
}

/// What vectors of `R` can be written as: `R` itself, or bfloat16.
pub trait Stored<R>: Sized {
    /// Whether that is bfloat16: see `VectorLoop::TO_BFLOAT16`.
    const IS_BFLOAT16: bool;
    /// Writes the lanes that `at` stands for.
    fn store<S: Simd<Elem = R>>(at: Span, simd: S, v: S::Vec, out: &mut [Self]);
}

impl<R: Number> Stored<R> for R {
    const IS_BFLOAT16: bool = false;
    #[inline(always)]
    fn store<S: Simd<Elem = R>>(at: Span, simd: S, v: S::Vec, out: &mut [R]) {
        at.store(simd, v, out);
    }
}

impl<R: Number> Stored<R> for bf16 {
    const IS_BFLOAT16: bool = true;
    #[inline(always)]
    fn store<S: Simd<Elem = R>>(at: Span, simd: S, v: S::Vec, out: &mut [bf16]) {
        at.store_bfloat16(simd, v, out);
    }
}

impl Span {
    /// The numbers of these elements.
    #[inline(always)]
    pub fn range(self) -> Range<usize> {
        self.first..self.first + self.len
    }

    /// These elements of `x`; missing lanes are 0.
    #[inline(always)]
    pub fn load<S: Simd>(self, simd: S, x: &[S::Elem]) -> S::Vec {
        let x = &x[self.first..self.first + self.len];
        match x.first_chunk() {
            Some(whole) => simd.load(whole),
            None => simd.load_partial(x),
        }
    }

    /// Writes these elements of `out`.
    #[inline(always)]
    pub fn store<S: Simd>(self, simd: S, v: S::Vec, out: &mut [S::Elem]) {
        let out = &mut out[self.first..self.first + self.len];
        match out.first_chunk_mut() {
            Some(whole) => simd.store(v, whole),
            None => simd.store_partial(v, out),
        }
    }

    /// Writes these elements of `out`, as [`Simd::store_bfloat16`] does.
    #[inline(always)]
    pub fn store_bfloat16<S: Simd>(self, simd: S, v: S::Vec, out: &mut [bf16]) {
        let out = &mut out[self.first..self.first + self.len];
        match out.first_chunk_mut() {
            Some(whole) => simd.store_bfloat16(v, whole),
            None => {
                let mut lanes = [bf16::ZERO; LANES];
                simd.store_bfloat16(v, &mut lanes);
                out.copy_from_slice(&lanes[..out.len()]);
            }
        }
    }
}

/// Visits the spans of slices of `len` elements, in order.
#[inline(always)]
pub fn each_span(len: usize, mut visit: impl FnMut(Span)) {
    let whole = len / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        visit(Span { first, len: LANES });
    }
    if whole < len {
        visit(Span { first: whole, len: len - whole });
    }
}

/// Chains of a [`fold`], to hide the latency of an addition.
const CHAINS: usize = 4;

/// `init` joined with `term` of all spans of `len` elements, missing lanes being `init`. Spans go to [`CHAINS`] chains in
/// turn, which then take in each other: the order depends on `len` only, and further elements that are neutral (zeros of
/// a sum, such as the probabilities of masked keys) change no bit.
#[inline(always)]
fn fold<S: Simd>(
    simd: S,
    len: usize,
    init: S::Elem,
    join: impl Fn(S::Vec, S::Vec) -> S::Vec,
    mut term: impl FnMut(Span) -> S::Vec,
) -> S::Vec {
    let start = simd.splat(init);
    let mut chains = [start; CHAINS];
    let grouped = len / (CHAINS * LANES) * (CHAINS * LANES);
    for group in (0..grouped).step_by(CHAINS * LANES) {
        for (i, chain) in chains.iter_mut().enumerate() {
            *chain = join(*chain, term(Span { first: group + i * LANES, len: LANES }));
        }
    }
    let mut at = grouped;
    for chain in &mut chains {
        if at + LANES <= len {
            *chain = join(*chain, term(Span { first: at, len: LANES }));
        } else if at < len {
            let last = term(Span { first: at, len: len - at });
            *chain = join(*chain, simd.select(simd.first_lanes(len - at), last, start));
        }
        at += LANES;
    }
    let [first, second, third, fourth] = chains;
    join(join(first, second), join(third, fourth))
}

/// Sum of `term` over all elements.
#[inline(always)]
pub fn sum<S: Simd>(simd: S, len: usize, term: impl FnMut(Span) -> S::Vec) -> S::Elem {
    let lanes = fold(
        simd,
        len,
        S::Elem::ZERO,
        #[inline(always)]
        |a, b| simd.add(a, b),
        term,
    );
    simd.sum(lanes)
}

/// Largest value of `x`, which is not empty.
#[inline(always)]
pub fn largest<S: Simd>(simd: S, x: &[S::Elem]) -> S::Elem {
    let lanes = fold(
        simd,
        x.len(),
        x[0],
        #[inline(always)]
        |a, b| simd.max(a, b),
        #[inline(always)]
        |at| at.load(simd, x),
    );
    simd.largest(lanes)
}
