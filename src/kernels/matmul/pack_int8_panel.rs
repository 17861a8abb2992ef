//! Filling of a panel of bytes: a scale per column, rows in groups of four side by side.

use super::layout::{INT8_K_BLOCK, PANEL};
use super::quantize::INT8_MAX;
use crate::kernels::isa::{Isa, Real, Simd, VectorLoop};

/// What is known of the columns of a panel of bytes.
#[derive(Clone, Debug)]
pub struct PanelScales {
    /// What a byte is multiplied by.
    pub scales: [f32; PANEL],
    /// Sums of bytes over each block of [`INT8_K_BLOCK`] rows.
    pub block_sums: Vec<[i32; PANEL]>,
}

impl Default for PanelScales {
    fn default() -> Self {
        PanelScales { scales: [1.0; PANEL], block_sums: Vec::new() }
    }
}

/// Fills a panel of zeros from `columns` columns of row-major `source`, which has `k` rows, `stride` apart.
///
/// A column with an infinity or a NaN gets a scale that is not finite, so that its values, and all products with it, are
/// NaN: what cannot be stored must not turn into a number.
pub fn quantise_panel<R: Real>(
    isa: Isa,
    source: &[R],
    stride: usize,
    k: usize,
    columns: usize,
    panel: &mut [i8],
) -> PanelScales {
    R::dispatch(isa, QuantisePanel { source, stride, k, columns, panel })
}

struct QuantisePanel<'a, R> {
    source: &'a [R],
    stride: usize,
    k: usize,
    columns: usize,
    panel: &'a mut [i8],
}

impl<R: Real> QuantisePanel<'_, R> {
    /// Row `i`, with zeros for missing rows and columns.
    #[inline(always)]
    fn row(&self, i: usize) -> [f32; PANEL] {
        let mut row = [0f32; PANEL];
        if i < self.k {
            let from = &self.source[i * self.stride..][..self.columns];
            match from.first_chunk::<PANEL>() {
                // The usual case, of a length that the compiler knows.
                Some(from) => row.iter_mut().zip(from).for_each(|(o, x)| *o = x.to_f32()),
                None => row.iter_mut().zip(from).for_each(|(o, x)| *o = x.to_f32()),
            }
        }
        row
    }
}

impl<R: Real> VectorLoop<R> for QuantisePanel<'_, R> {
    type Output = PanelScales;
    #[inline(always)]
    fn run<S: Simd<Elem = R>>(self, _simd: S) -> PanelScales {
        // Bits of magnitudes compare like the magnitudes, with infinity and NaN above all others.
        let mut largest = [0u32; PANEL];
        for i in 0..self.k {
            for (largest, x) in largest.iter_mut().zip(self.row(i)) {
                *largest = (*largest).max(x.to_bits() & 0x7fff_ffff);
            }
        }
        let scales = largest.map(|bits| if bits == 0 { 1.0 } else { f32::from_bits(bits) / INT8_MAX });
        let mut block_sums = vec![[0i32; PANEL]; self.k.div_ceil(INT8_K_BLOCK)];
        for first in (0..self.k).step_by(4) {
            let sums = &mut block_sums[first / INT8_K_BLOCK];
            let mut rows = [[0i32; PANEL]; 4];
            for (r, row) in rows.iter_mut().enumerate() {
                for (((byte, sum), x), scale) in
                    row.iter_mut().zip(&mut *sums).zip(self.row(first + r)).zip(scales)
                {
                    // As `as i8` would: NaN, of columns that are NaN anyway, becomes 0.
                    *byte = (x / scale).round_ties_even().clamp(-128.0, 127.0) as i32;
                    *sum += *byte;
                }
            }
            let out = &mut self.panel[first * PANEL..][..4 * PANEL];
            for (c, group) in out.chunks_exact_mut(4).enumerate() {
                for (out, row) in group.iter_mut().zip(&rows) {
                    *out = row[c] as i8;
                }
            }
        }
        PanelScales { scales, block_sums }
    }
}
