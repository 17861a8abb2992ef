//! The pass of an optimiser over weights: new values and moments, and the values' low-precision form while they are at
//! hand.

use super::layout::PANEL;
use super::low_precision::LowPrecision;
use super::pack_bfloat16_panel::round_two_rows;
use crate::kernels::isa::{Isa, LANES, Real, Simd, VectorLoop};

/// Rows of a gradient that are asked for ahead of time where rows are far apart: prefetching in hardware ends with a page.
const ROWS_AHEAD: usize = 32;

/// Elements after which values are stored in low precision where that is not done row by row; they are in the L1 cache.
const STORED_AT_ONCE: usize = 32 * PANEL;

/// The gradient of neighbouring elements of a weight, by the rows of [`PANEL`] elements in which the weight stores them.
#[derive(Clone, Copy, Debug)]
pub struct GradientRows<'a, R> {
    /// The rows, from the first one on.
    pub values: &'a [R],
    /// Elements of `values` from one row to the next.
    pub stride: usize,
    /// Elements of a row, at most [`PANEL`]; the weight's storage has padding after as many.
    pub width: usize,
}

/// What belongs to some neighbouring elements of a weight, each in slices of one length.
struct Update<'a, R, const SLOTS: usize, F> {
    values: &'a mut [R],
    moments: [&'a mut [R]; SLOTS],
    gradient: Option<GradientRows<'a, R>>,
    /// The part of a bfloat16 panel that `values` are the master of.
    panel: Option<&'a mut [half::bf16]>,
    rule: F,
}

/// Replaces every value and its moments by `rule(value, moments, gradient)`, and stores the values in `low_precision` if
/// they are its master. Padding stays as it is. Without a gradient the rule gets zeros.
///
/// `rule` is `#[inline(always)]`, to be compiled with the instructions of `isa`; the bits are the same for all of them.
///
/// # Panics
/// If lengths do not fit.
pub fn update_weights<R: Real, const SLOTS: usize>(
    isa: Isa,
    values: &mut [R],
    moments: [&mut [R]; SLOTS],
    gradient: Option<GradientRows<'_, R>>,
    low_precision: Option<&mut LowPrecision<'_>>,
    rule: impl Fn(R, [R; SLOTS], R) -> (R, [R; SLOTS]) + Copy,
) {
    let mut moments = moments;
    let panel = match low_precision {
        None => None,
        Some(LowPrecision::Bfloat16Panel { values, .. }) => Some(&mut values[..]),
        Some(other) => {
            let mut stored = other.reborrow();
            for (piece, values) in values.chunks_mut(STORED_AT_ONCE).enumerate() {
                let at = piece * STORED_AT_ONCE;
                let moments = moments.each_mut().map(|moment| &mut moment[at..at + values.len()]);
                let gradient = gradient.map(|rows| rows.skip(at / PANEL));
                let (mut part, rest) = stored.split_at(values.len());
                R::dispatch(isa, Update { values: &mut *values, moments, gradient, panel: None, rule });
                part.store(isa, values);
                stored = rest;
            }
            return;
        }
    };
    R::dispatch(isa, Update { values, moments, gradient, panel, rule });
}

impl<'a, R> GradientRows<'a, R> {
    /// Without the first `rows` rows.
    fn skip(self, rows: usize) -> Self {
        GradientRows { values: &self.values[rows * self.stride..], ..self }
    }
}

impl<R: Real, const SLOTS: usize, F> VectorLoop<R> for Update<'_, R, SLOTS, F>
where
    F: Fn(R, [R; SLOTS], R) -> (R, [R; SLOTS]) + Copy,
{
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<Elem = R>>(mut self, simd: S) {
        let rows = self.values.len().div_ceil(PANEL);
        let width = self.gradient.map_or(PANEL, |gradient| gradient.width);
        (0..ROWS_AHEAD.min(rows)).for_each(
            #[inline(always)]
            |row| self.prefetch(simd, row),
        );
        for first in (0..rows).step_by(2) {
            let mut new = [[R::ZERO; PANEL]; 2];
            for (row, new) in (first..rows).zip(&mut new) {
                if row + ROWS_AHEAD < rows {
                    self.prefetch(simd, row + ROWS_AHEAD);
                }
                let at = row * PANEL;
                // The usual case in a form of which the compiler knows the length.
                if width == PANEL && at + PANEL <= self.values.len() {
                    self.update_row(at, row, PANEL, new);
                } else {
                    self.update_row(at, row, width.min(self.values.len() - at), new);
                }
            }
            if let Some(panel) = &mut self.panel {
                round_two_rows(&new, &mut panel[first * PANEL..][..2 * PANEL]);
            }
        }
    }
}

impl<R: Real, const SLOTS: usize, F: Fn(R, [R; SLOTS], R) -> (R, [R; SLOTS]) + Copy> Update<'_, R, SLOTS, F> {
    /// Asks for the gradient's row `row` if rows are far apart.
    #[inline(always)]
    fn prefetch<S: Simd<Elem = R>>(&self, simd: S, row: usize) {
        if let Some(gradient) = self.gradient
            && gradient.stride > PANEL
        {
            for vector in (0..gradient.width).step_by(LANES) {
                simd.prefetch(gradient.values.as_ptr().wrapping_add(row * gradient.stride + vector));
            }
        }
    }

    /// Updates the `len` elements of row `row`, which begins at `at`, and writes the new values to `new`, too.
    #[inline(always)]
    fn update_row(&mut self, at: usize, row: usize, len: usize, new: &mut [R; PANEL]) {
        let values = load(&self.values[at..at + len]);
        let old = self.moments.each_ref().map(
            #[inline(always)]
            |moment| load(&moment[at..at + len]),
        );
        let gradient = match self.gradient {
            Some(gradient) => load(&gradient.values[row * gradient.stride..][..len]),
            None => [R::ZERO; PANEL],
        };
        let (mut out, mut moments) = (values, old);
        for i in 0..PANEL {
            let (value, after) =
                (self.rule)(values[i], std::array::from_fn(|slot| old[slot][i]), gradient[i]);
            out[i] = value;
            for slot in 0..SLOTS {
                moments[slot][i] = after[slot];
            }
        }
        new[..len].copy_from_slice(&out[..len]);
        store(&out, &mut self.values[at..at + len]);
        for (new, moment) in moments.iter().zip(&mut self.moments) {
            store(new, &mut moment[at..at + len]);
        }
    }
}

/// Up to [`PANEL`] numbers; missing ones are 0.
#[inline(always)]
fn load<R: Real>(from: &[R]) -> [R; PANEL] {
    match from.first_chunk() {
        Some(whole) => *whole,
        None => {
            let mut row = [R::ZERO; PANEL];
            row[..from.len()].copy_from_slice(from);
            row
        }
    }
}

/// Writes the first numbers of `row`.
#[inline(always)]
fn store<R: Real>(row: &[R; PANEL], out: &mut [R]) {
    match out.first_chunk_mut() {
        Some(whole) => *whole = *row,
        None => out.copy_from_slice(&row[..out.len()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Dtype;
    use crate::kernels::matmul::{PackedMatrix, packed_len};
    use crate::kernels::testing::{cast, for_all, numbers};

    /// A rule with every operation of the optimisers.
    #[inline(always)]
    fn rule<R: Real>(value: R, [m, v]: [R; 2], gradient: R) -> (R, [R; 2]) {
        let m = m + (gradient - m) * R::from_f64(0.1);
        let v = v + (gradient * gradient - v) * R::from_f64(0.01);
        (value - m / (v.sqrt() + R::from_f64(1e-3)), [m, v])
    }

    /// Values and moments of `k` rows of `width` columns in a panel, and the gradient in rows of `stride`.
    fn check<R: Real>(isa: Isa) {
        for (k, width, stride) in [(1, 32, 32), (2, 32, 40), (67, 32, 96), (67, 5, 33), (40, 31, 31)] {
            let padded = |seed| {
                let mut values: Vec<R> = cast(&numbers(k * PANEL, seed));
                values.chunks_mut(PANEL).for_each(|row| row[width..].fill(R::ZERO));
                values
            };
            let gradient: Vec<R> = cast(&numbers((k - 1) * stride + width, 3));
            let rows = GradientRows { values: &gradient, stride, width };
            let mut expected = [padded(1), padded(2), padded(4).iter().map(|x| x.abs()).collect()];
            let mut got = expected.clone();
            for at in (0..k * PANEL).filter(|at| at % PANEL < width) {
                let [p, m, v] = expected.each_ref().map(|values| values[at]);
                let (p, [m, v]) = rule(p, [m, v], gradient[at / PANEL * stride + at % PANEL]);
                (expected[0][at], expected[1][at], expected[2][at]) = (p, m, v);
            }
            let [values, m, v] = &mut got;
            let mut stored = vec![half::bf16::NAN; packed_len(k, PANEL, Dtype::Bfloat16)];
            let mut panel = LowPrecision::Bfloat16Panel { values: &mut stored, k };
            update_weights(isa, values, [m, v], Some(rows), Some(&mut panel), rule);
            assert!(got == expected, "{} {k} x {width}", isa.name());
            let master: Vec<f32> = expected[0].iter().map(|x| x.to_f32()).collect();
            let rounded = PackedMatrix::<f32>::pack(k, PANEL, Dtype::Bfloat16, &master).unpack();
            for (at, x) in rounded.iter().enumerate() {
                let place = at / PANEL / 2 * 2 * PANEL + 2 * (at % PANEL) + at / PANEL % 2;
                assert_eq!(stored[place].to_f32().to_bits(), x.to_bits(), "{} {at}", isa.name());
            }
        }
    }

    #[test]
    fn every_element_is_updated_once_with_the_same_bits_everywhere() {
        for_all!(check);
    }

    #[test]
    fn without_a_gradient_the_rule_gets_zeros() {
        let (mut values, mut seen) = (numbers(70, 1), [0.0; 70]);
        let before = values.clone();
        update_weights(Isa::PORTABLE, &mut values, [&mut seen], None, None, |x, _, g| (x + 1.0, [x + g]));
        assert!(values.iter().zip(&before).all(|(after, before)| *after == before + 1.0));
        assert_eq!(seen[..], before[..]);
    }
}
