//! Weights that are stored in low precision, with masters: their values in full precision, which training updates.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::layout::{PANEL, k_multiple, offset_in_panel};
use super::pack::pack_bfloat16;
use super::quantize::{round_to_bfloat16, round_to_float16};
use crate::kernels::dtype::Dtype;
use crate::kernels::isa::{Isa, Real};

/// A stretch of rounded weights. Its master has the same elements in the order of the `Float32` form, without rounding.
#[derive(Debug)]
pub enum LowPrecision<'a> {
    /// One panel of a matrix of `k` rows.
    Bfloat16Panel {
        /// The panel, padding included.
        values: &'a mut [bf16],
        /// Rows of the matrix.
        k: usize,
    },
    /// Some rows of a table.
    Bfloat16Rows {
        /// Rows of `stride` elements.
        values: &'a mut [bf16],
        /// Elements of a row.
        width: usize,
        /// Elements from one row to the next, the last ones zeros.
        stride: usize,
        /// Where in its row the first element is.
        column: usize,
    },
    /// Any elements; the order is the master's.
    Float16(&'a mut [f16]),
}

impl<'a> LowPrecision<'a> {
    /// Elements of the master.
    pub fn len(&self) -> usize {
        match self {
            LowPrecision::Bfloat16Panel { k, .. } => k * PANEL,
            LowPrecision::Bfloat16Rows { values, width, stride, column } => {
                let end = column + values.len();
                end / (*stride).max(1) * width + width.min(&(end % (*stride).max(1))) - column
            }
            LowPrecision::Float16(values) => values.len(),
        }
    }

    /// The same, borrowed anew.
    pub fn reborrow(&mut self) -> LowPrecision<'_> {
        match self {
            LowPrecision::Bfloat16Panel { values, k } => LowPrecision::Bfloat16Panel { values, k: *k },
            LowPrecision::Bfloat16Rows { values, width, stride, column } => {
                let (width, stride, column) = (*width, *stride, *column);
                LowPrecision::Bfloat16Rows { values, width, stride, column }
            }
            LowPrecision::Float16(values) => LowPrecision::Float16(values),
        }
    }

    /// The first `len` elements of the master, and the rest. A panel may be split after any multiple of 32 rows.
    ///
    /// # Panics
    /// If there are fewer, or that is inside a group of a panel's rows.
    pub fn split_at(self, len: usize) -> (LowPrecision<'a>, LowPrecision<'a>) {
        assert!(len <= self.len(), "{len} of {} elements", self.len());
        match self {
            LowPrecision::Bfloat16Panel { values, k } => {
                let rows = len / PANEL;
                assert_eq!(len, rows * PANEL, "whole rows");
                let stored = if rows == k { values.len() } else { len };
                assert!(rows == k || rows.is_multiple_of(k_multiple(Dtype::Bfloat16)), "{rows} of {k} rows");
                let (head, tail) = values.split_at_mut(stored);
                (
                    LowPrecision::Bfloat16Panel { values: head, k: rows },
                    LowPrecision::Bfloat16Panel { values: tail, k: k - rows },
                )
            }
            LowPrecision::Bfloat16Rows { values, width, stride, column } => {
                let end = column + len;
                let stored = end / width.max(1) * stride + end % width.max(1) - column;
                let (head, tail) = values.split_at_mut(stored);
                (
                    LowPrecision::Bfloat16Rows { values: head, width, stride, column },
                    LowPrecision::Bfloat16Rows { values: tail, width, stride, column: end % width.max(1) },
                )
            }
            LowPrecision::Float16(values) => {
                let (head, tail) = values.split_at_mut(len);
                (LowPrecision::Float16(head), LowPrecision::Float16(tail))
            }
        }
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stores the rounded `master`.
    pub fn store<R: Real>(&mut self, isa: Isa, master: &[R]) {
        match self {
            LowPrecision::Bfloat16Panel { values, .. } => round_panel(isa, master, values),
            LowPrecision::Bfloat16Rows { values, width, stride, column } => {
                for (stored, own) in row_parts(*width, *stride, *column, master.len()) {
                    round_to_bfloat16(isa, &master[own], &mut values[stored]);
                }
            }
            LowPrecision::Float16(values) => round_to_float16(master, values),
        }
    }

    /// Sets those elements of `master` to the stored ones that do not round to them: weights that somebody else has
    /// changed. Allocates nothing.
    pub fn sync_master<R: Real>(&self, isa: Isa, master: &mut [R]) {
        let widen_bfloat16 = |bits| bf16::from_bits(bits).to_f32();
        match self {
            LowPrecision::Bfloat16Panel { values, .. } => {
                let mut rounded = [bf16::ZERO; AT_ONCE];
                for (stored, master) in values.chunks(AT_ONCE).zip(master.chunks_mut(AT_ONCE)) {
                    let rounded = &mut rounded[..stored.len()];
                    round_panel(isa, master, rounded);
                    let place = |i: usize| offset_in_panel(i / PANEL, i % PANEL, Dtype::Bfloat16);
                    let (stored, rounded) = (stored.reinterpret_cast(), rounded.reinterpret_cast());
                    take_changed(stored, rounded, master, place, widen_bfloat16);
                }
            }
            LowPrecision::Bfloat16Rows { values, width, stride, column } => {
                let mut rounded = [bf16::ZERO; AT_ONCE];
                for (stored, own) in row_parts(*width, *stride, *column, master.len()) {
                    let pieces = values[stored].chunks(AT_ONCE).zip(master[own].chunks_mut(AT_ONCE));
                    for (stored, master) in pieces {
                        let rounded = &mut rounded[..master.len()];
                        round_to_bfloat16(isa, master, rounded);
                        let (stored, rounded) = (stored.reinterpret_cast(), rounded.reinterpret_cast());
                        take_changed(stored, rounded, master, |i| i, widen_bfloat16);
                    }
                }
            }
            LowPrecision::Float16(values) => {
                let mut rounded = [f16::ZERO; AT_ONCE];
                for (stored, master) in values.chunks(AT_ONCE).zip(master.chunks_mut(AT_ONCE)) {
                    let rounded = &mut rounded[..stored.len()];
                    round_to_float16(master, rounded);
                    let (stored, rounded) = (stored.reinterpret_cast(), rounded.reinterpret_cast());
                    take_changed(stored, rounded, master, |i| i, |bits| f16::from_bits(bits).to_f32());
                }
            }
        }
    }
}

/// The parts of `len` elements that are in one row each, the first beginning at `column`: where they are stored in rows of
/// `width` elements that begin `stride` elements after one another, and which of the elements they are.
fn row_parts(
    width: usize,
    stride: usize,
    column: usize,
    len: usize,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let (mut stored, mut done, mut column) = (0, 0, column);
    std::iter::from_fn(move || {
        let count = (width - column).min(len - done);
        let part = (stored..stored + count, done..done + count);
        (stored, done, column) = (stored + count + stride - width, done + count, 0);
        (count > 0).then_some(part)
    })
}

/// Elements that are rounded at a time for comparison: rows of a panel in pairs, on the stack.
const AT_ONCE: usize = 64 * PANEL;

fn round_panel<R: Real>(isa: Isa, master: &[R], out: &mut [bf16]) {
    pack_bfloat16(isa, master, PANEL, false, master.len() / PANEL, 0..PANEL, out);
}

/// Widens the elements of `stored` that differ from `rounded` into `master`, whose element `i` is at `place(i)`.
fn take_changed<R: Real>(
    stored: &[u16],
    rounded: &[u16],
    master: &mut [R],
    place: impl Fn(usize) -> usize,
    widen: impl Fn(u16) -> f32,
) {
    if stored == rounded {
        return;
    }
    for (i, x) in master.iter_mut().enumerate() {
        let at = place(i);
        if stored[at] != rounded[at] {
            *x = R::from_f32(widen(stored[at]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::matmul::{PackedMatrix, packed_len};
    use crate::kernels::testing::noise;

    #[test]
    fn masters_take_over_what_was_changed_and_only_that() {
        let (k, n) = (35, 40);
        for dtype in [Dtype::Bfloat16, Dtype::Float16] {
            let mut matrix = PackedMatrix::pack(k, n, dtype, &noise(k * n, 1));
            let mut master = vec![0f32; packed_len(k, n, Dtype::Float32)];
            let panels = || k * PANEL;
            let sync_master = |matrix: &mut PackedMatrix<f32>, master: &mut [f32]| {
                let pieces = matrix.low_precision_mut().expect("rounded");
                for (piece, master) in pieces.into_iter().zip(master.chunks_exact_mut(panels())) {
                    piece.sync_master(Isa::fastest(), master);
                }
            };
            // Zeros become the widened weights, ...
            sync_master(&mut matrix, &mut master);
            let widened = PackedMatrix::pack(k, n, Dtype::Float32, &matrix.unpack());
            assert_eq!(widened.view().get(34, 39), master[panels() + 34 * PANEL + 7]);
            // ... what lies between two rounded numbers stays, ...
            master.iter_mut().for_each(|x| *x *= 1.0 + 1e-4);
            for (mut piece, master) in
                matrix.low_precision_mut().expect("rounded").into_iter().zip(master.chunks_exact(panels()))
            {
                piece.store(Isa::fastest(), master);
            }
            let before = master.clone();
            sync_master(&mut matrix, &mut master);
            assert_eq!(before, master, "{dtype:?}");
            // ... and a new weight is taken over.
            let mut values = matrix.unpack();
            values[3 * n + 5] = 4.0;
            sync_master(&mut PackedMatrix::pack(k, n, dtype, &values), &mut master);
            let changed: Vec<_> = (0..master.len()).filter(|&i| before[i] != master[i]).collect();
            assert_eq!((changed, master[3 * PANEL + 5]), (vec![3 * PANEL + 5], 4.0), "{dtype:?}");
        }
    }

    /// Stores `master` in the parts that end at `ends`, each of which has its own share of it.
    fn store_in_parts(whole: LowPrecision<'_>, master: &[f32], ends: &[usize]) {
        let (mut rest, mut done) = (whole, 0);
        for &end in ends.iter().chain([&master.len()]) {
            let (mut part, after) = rest.split_at(end - done);
            assert_eq!((part.len(), after.len()), (end - done, master.len() - end));
            part.reborrow().store(Isa::fastest(), &master[done..end]);
            let mut synced = vec![0.0; part.len()];
            part.sync_master(Isa::fastest(), &mut synced);
            assert!(synced.iter().zip(&master[done..]).all(|(x, master)| (x - master).abs() <= 0.004));
            (rest, done) = (after, end);
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn what_is_stored_in_parts_is_as_if_stored_at_once() {
        let (width, stride, rows) = (40, 64, 5);
        let master = noise(rows * width, 3);
        let ends = [0, 7, 40, 41, 80, 133, 199, 200];
        let at_once = |master| {
            let mut stored = vec![bf16::ZERO; rows * stride];
            let mut whole = LowPrecision::Bfloat16Rows { values: &mut stored, width, stride, column: 0 };
            whole.store(Isa::fastest(), master);
            stored
        };
        let mut stored = vec![bf16::ZERO; rows * stride];
        let whole = LowPrecision::Bfloat16Rows { values: &mut stored, width, stride, column: 0 };
        store_in_parts(whole, &master, &ends);
        assert_eq!(stored, at_once(&master));
        assert!(stored.chunks(stride).zip(master.chunks(width)).all(|(row, master)| {
            row[..width].iter().zip(master).all(|(x, y)| *x == bf16::from_f32(*y))
                && row[width..].iter().all(|x| *x == bf16::ZERO)
        }));

        let mut stored = vec![f16::ONE; 200];
        store_in_parts(LowPrecision::Float16(&mut stored), &master, &ends);
        assert!(stored.iter().zip(&master).all(|(x, y)| *x == f16::from_f32(*y)));

        let k = 77;
        let master = noise(k * PANEL, 4);
        let mut stored = vec![bf16::ONE; packed_len(k, PANEL, Dtype::Bfloat16)];
        let panel = LowPrecision::Bfloat16Panel { values: &mut stored, k };
        store_in_parts(panel, &master, &[32 * PANEL, 64 * PANEL]);
        let mut expected = vec![bf16::ZERO; stored.len()];
        LowPrecision::Bfloat16Panel { values: &mut expected, k }.store(Isa::fastest(), &master);
        assert_eq!(stored, expected);
    }

    #[test]
    #[should_panic(expected = "16 of 77 rows")]
    fn a_panel_is_not_split_inside_a_group_of_rows() {
        let mut stored = vec![bf16::ONE; packed_len(77, PANEL, Dtype::Bfloat16)];
        LowPrecision::Bfloat16Panel { values: &mut stored, k: 77 }.split_at(16 * PANEL);
    }
}
