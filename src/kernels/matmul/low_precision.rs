//! Weights that are stored in low precision, with masters: their values in full precision, which training updates.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::layout::{PANEL, offset_in_panel};
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
    },
    /// Any elements; the order is the master's.
    Float16(&'a mut [f16]),
}

impl LowPrecision<'_> {
    /// Elements of the master.
    pub fn len(&self) -> usize {
        match self {
            LowPrecision::Bfloat16Panel { k, .. } => k * PANEL,
            LowPrecision::Bfloat16Rows { values, width, stride } => values.len() / stride * width,
            LowPrecision::Float16(values) => values.len(),
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
            LowPrecision::Bfloat16Rows { values, width, stride } => {
                let rows =
                    master.chunks_exact((*width).max(1)).zip(values.chunks_exact_mut((*stride).max(1)));
                rows.for_each(|(row, out)| round_to_bfloat16(isa, row, out));
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
            LowPrecision::Bfloat16Rows { values, width, stride } => {
                let mut rounded = [bf16::ZERO; AT_ONCE];
                let rows =
                    values.chunks_exact((*stride).max(1)).zip(master.chunks_exact_mut((*width).max(1)));
                let pieces =
                    rows.flat_map(|(row, master)| row.chunks(AT_ONCE).zip(master.chunks_mut(AT_ONCE)));
                for (stored, master) in pieces {
                    let (stored, rounded) = (&stored[..master.len()], &mut rounded[..master.len()]);
                    round_to_bfloat16(isa, master, rounded);
                    let (stored, rounded) = (stored.reinterpret_cast(), rounded.reinterpret_cast());
                    take_changed(stored, rounded, master, |i| i, widen_bfloat16);
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
}
