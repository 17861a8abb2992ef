//! Panels of bfloat16 and bytes where no instruction multiplies them: widened to `f32`, slice by slice, for the kernels
//! of that type.
//!
//! A slice of a panel waits in the L1 cache while the rows pass by. Sums of bytes are whole numbers that `f32` holds
//! exactly for as long as a slice lasts.

use half::bf16;

use super::block::Block;
use super::full_precision;
use super::init::Init;
use super::layout::{PANEL, offset_in_panel};
use super::panel_product::{Kind, PANEL_STEP_BYTES, PanelKernel, PanelProduct, STEP_BYTES};
use crate::kernels::dtype::Dtype;
use crate::kernels::isa::Isa;

/// Terms of a slice: `255 * 127 * 256 < 2^24`, and whole steps of both kinds.
const SLICE: usize = 256;
/// Rows that are widened at a time.
const ROWS: usize = 24;

/// Multiplies with the `f32` kernels of `isa`.
pub struct Widened {
    isa: Isa,
    panel: [f32; SLICE * PANEL],
    left: [f32; ROWS * SLICE],
}

impl Widened {
    /// For every instruction set.
    pub fn new(isa: Isa) -> Self {
        Widened { isa, panel: [0.0; SLICE * PANEL], left: [0.0; ROWS * SLICE] }
    }
}

impl PanelKernel for Widened {
    unsafe fn multiply(&mut self, product: &PanelProduct) {
        let terms_per_step = match product.kind {
            Kind::Bfloat16 => STEP_BYTES / size_of::<bf16>(),
            Kind::Int8 => STEP_BYTES,
        };
        let steps_per_slice = SLICE / terms_per_step;
        for first in (0..product.steps).step_by(steps_per_slice) {
            let steps = steps_per_slice.min(product.steps - first);
            let initial = if first == 0 { product.initial } else { product.result.as_initial() };
            let k = steps * terms_per_step;
            let (panel_bytes, left_bytes) = (steps * PANEL_STEP_BYTES, steps * STEP_BYTES);
            // SAFETY: `product` has so many steps of the panel, from `first` on.
            let panel = unsafe {
                std::slice::from_raw_parts(product.panel.add(first * PANEL_STEP_BYTES), panel_bytes)
            };
            for (i, row) in self.panel[..k * PANEL].chunks_exact_mut(PANEL).enumerate() {
                for (c, out) in row.iter_mut().enumerate() {
                    *out = match product.kind {
                        Kind::Bfloat16 => {
                            let at = 2 * offset_in_panel(i, c, Dtype::Bfloat16);
                            bf16::from_ne_bytes([panel[at], panel[at + 1]]).to_f32()
                        }
                        Kind::Int8 => f32::from(panel[offset_in_panel(i, c, Dtype::Int8)] as i8),
                    };
                }
            }
            for first_row in (0..product.rows).step_by(ROWS) {
                let rows = ROWS.min(product.rows - first_row);
                let mut sums = [[0f32; PANEL]; ROWS];
                for (r, (out, sums)) in
                    self.left.chunks_exact_mut(SLICE).zip(&mut sums).take(rows).enumerate()
                {
                    let row = first_row + r;
                    // SAFETY: `product` has so many rows, each with so many steps from `first` on.
                    let left = unsafe {
                        let start = product.left.add(row * product.left_stride + first * STEP_BYTES);
                        std::slice::from_raw_parts(start, left_bytes)
                    };
                    if product.kind == Kind::Int8 {
                        out.iter_mut().zip(left).for_each(|(out, &byte)| *out = f32::from(byte));
                        continue;
                    }
                    for (out, pair) in out.iter_mut().zip(left.chunks_exact(2)) {
                        *out = bf16::from_ne_bytes([pair[0], pair[1]]).to_f32();
                    }
                    // SAFETY: rows of `initial` are a panel's width of 4-byte numbers, here `f32`.
                    *sums = unsafe { initial.skip(row).start.cast::<[f32; PANEL]>().read_unaligned() };
                }
                let block = Block {
                    rows,
                    k,
                    n: PANEL,
                    panel_stride: 0,
                    cols: 0..PANEL,
                    out_stride: PANEL,
                    init: Init::Accumulate,
                };
                let out = sums.as_flattened_mut();
                full_precision::matmul(self.isa, &block, &self.left, SLICE, &self.panel, out);
                for (r, sums) in sums.iter().take(rows).enumerate() {
                    let result = product.result.skip(first_row + r).start;
                    // SAFETY: rows of `initial` and of the result are a panel's width of 4-byte numbers, of the sums'
                    // type.
                    unsafe {
                        if product.kind == Kind::Bfloat16 {
                            result.cast::<[f32; PANEL]>().write_unaligned(*sums);
                        } else {
                            let start =
                                initial.skip(first_row + r).start.cast::<[i32; PANEL]>().read_unaligned();
                            let sums = std::array::from_fn(|c| start[c] + sums[c] as i32);
                            result.cast::<[i32; PANEL]>().write_unaligned(sums);
                        }
                    }
                }
            }
        }
    }
}
