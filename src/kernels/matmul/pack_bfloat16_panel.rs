//! Filling of a bfloat16 panel from `f32`: two rows at a time, side by side.

use half::bf16;

use super::layout::PANEL;
use crate::kernels::isa::{Isa, Number, Real, Simd, VectorLoop, round_upper_half};

/// Fills a bfloat16 panel of `rows` (even) rows from `columns` columns of row-major `source`, which has `k` rows,
/// `stride` apart.
pub fn pack_bfloat16_panel(
    isa: Isa,
    source: &[f32],
    stride: usize,
    k: usize,
    columns: usize,
    panel: &mut [bf16],
) {
    struct Pack<'a> {
        source: &'a [f32],
        stride: usize,
        k: usize,
        columns: usize,
        panel: &'a mut [bf16],
    }

    impl VectorLoop<f32> for Pack<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd<Elem = f32>>(self, _simd: S) {
            for (pair, out) in self.panel.chunks_exact_mut(2 * PANEL).enumerate() {
                let mut rows = [[0f32; PANEL]; 2];
                for (i, row) in rows.iter_mut().enumerate() {
                    if 2 * pair + i < self.k {
                        let from = &self.source[(2 * pair + i) * self.stride..][..self.columns];
                        match from.first_chunk::<PANEL>() {
                            // The usual case, of a length that the compiler knows.
                            Some(from) => *row = *from,
                            None => row[..self.columns].copy_from_slice(from),
                        }
                    }
                }
                round_two_rows(&rows, out);
            }
        }
    }
    f32::dispatch(isa, Pack { source, stride, k, columns, panel });
}

/// Fills a bfloat16 panel as [`pack_bfloat16_panel`] does, from `columns` rows of `source`: the panel's columns.
pub fn pack_bfloat16_panel_transposed(
    isa: Isa,
    source: &[f32],
    stride: usize,
    k: usize,
    columns: usize,
    panel: &mut [bf16],
) {
    struct Pack<'a> {
        source: &'a [f32],
        stride: usize,
        k: usize,
        columns: usize,
        panel: &'a mut [bf16],
    }

    impl VectorLoop<f32> for Pack<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd<Elem = f32>>(self, _simd: S) {
            if self.columns < PANEL || self.k < self.panel.len() / PANEL {
                self.panel.fill(bf16::ZERO);
            }
            for c in 0..self.columns {
                let column = &self.source[c * self.stride..][..self.k];
                let groups =
                    self.panel.chunks_exact_mut(2 * PANEL).map(|groups| &mut groups[2 * c..2 * c + 2]);
                for (out, pair) in groups.zip(column.chunks(2)) {
                    write_group(out, round_pair(pair[0], pair.get(1).copied().unwrap_or(0.0)));
                }
            }
        }
    }
    f32::dispatch(isa, Pack { source, stride, k, columns, panel });
}

/// Rounds two rows to bfloat16 and writes them as a panel has them: side by side, `2 * PANEL` elements.
#[inline(always)]
pub fn round_two_rows<R: Number>(rows: &[[R; PANEL]; 2], out: &mut [bf16]) {
    for ((out, &first), &second) in out.chunks_exact_mut(2).zip(&rows[0]).zip(&rows[1]) {
        write_group(out, round_pair(first.to_f32(), second.to_f32()));
    }
}

#[inline(always)]
fn write_group(out: &mut [bf16], group: u32) {
    out[0] = bf16::from_bits(group as u16);
    out[1] = bf16::from_bits((group >> 16) as u16);
}

/// The nearest bfloat16s of `first` (lower half) and `second` (upper half): a group of 4 bytes of a panel.
#[inline(always)]
fn round_pair(first: f32, second: f32) -> u32 {
    (round_upper_half(first) >> 16) | (round_upper_half(second) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::dtype::Dtype;
    use crate::kernels::matmul::{pack_bfloat16, packed_len};
    use crate::kernels::testing::noise;

    #[test]
    fn packed_activations_are_those_of_the_plain_layout() {
        for isa in Isa::available() {
            for (k, n) in [(1, 1), (2, 32), (31, 33), (33, 64), (64, 70), (100, 5)] {
                let stride = k.max(n) + 3;
                let source = noise(k.max(n) * stride, 5);
                for transposed in [false, true] {
                    let mut out = vec![bf16::ONE; packed_len(k, n, Dtype::Bfloat16)];
                    pack_bfloat16(isa, &source, stride, transposed, k, 0..n, &mut out);
                    let padded_k = k.next_multiple_of(32);
                    for j in 0..n.next_multiple_of(PANEL) {
                        for i in 0..padded_k {
                            let at = if transposed { j * stride + i } else { i * stride + j };
                            let inside = i < k && j < n;
                            let expected = if inside { bf16::from_f32(source[at]) } else { bf16::ZERO };
                            let got =
                                out[j / PANEL * padded_k * PANEL + i / 2 * 2 * PANEL + j % PANEL * 2 + i % 2];
                            assert_eq!(got, expected, "{} {k} x {n} ({i}, {j})", isa.name());
                        }
                    }
                }
            }
        }
    }
}
