//! Products of 8-bit operands with 32-bit integer sums.
//!
//! The left bytes carry an offset of 128, so that the instructions for unsigned times signed bytes apply; what it
//! adds, 128 times the sum of the panel's column, is taken off again. Sums are exact, so every instruction set gives
//! the same bits.

use super::block::Block;
use super::init::Init;
use super::layout::{INT8_K_BLOCK, PANEL, k_multiple, offset_in_panel};
use super::panel_product::{Initial, Kind, PanelKernel, PanelProduct, PanelScaling, ResultRows};
use super::quantize::INT8_ZERO;
use super::widened::Widened;
use crate::kernels::dtype::Dtype;
use crate::kernels::isa::{Isa, Real, Simd, VectorLoop};

/// Terms of an integer sum: as many as fit whatever the bytes, `255 * 127 * 65536 < 2^31`. Longer ones go on in
/// floating point.
const MAX_TERMS: usize = 65536;

/// Rows whose integer sums wait together for their scales.
const BUFFER_ROWS: usize = 128;

/// Rows `scales[r] * (values[r * stride + i] - 128)`.
#[derive(Clone, Copy)]
pub struct QuantisedRows<'a> {
    /// Bytes.
    pub values: &'a [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
    /// One per row.
    pub scales: &'a [f32],
}

/// Columns `scales[j] * values[i][j]`, with the sums of each column's bytes over blocks of [`INT8_K_BLOCK`] rows.
#[derive(Clone, Copy)]
pub struct QuantisedPanels<'a> {
    /// Bytes, in panels.
    pub values: &'a [i8],
    /// One per column.
    pub scales: &'a [f32],
    /// One per block of rows and column.
    pub block_sums: &'a [i32],
}

/// `out = init + a x b` for the block; the integer sums are exact.
pub fn matmul<R: Real>(
    isa: Isa,
    block: &Block<'_, R>,
    a: QuantisedRows<'_>,
    b: QuantisedPanels<'_>,
    out: &mut [R],
) {
    for first in (0..block.k.max(1)).step_by(MAX_TERMS) {
        let init = if first == 0 { block.init } else { Init::Accumulate };
        let part = Block { k: MAX_TERMS.min(block.k - first), init, cols: block.cols.clone(), ..*block };
        let skipped_sums = first / INT8_K_BLOCK * block.n.next_multiple_of(PANEL);
        let a = QuantisedRows { values: &a.values[first..], ..a };
        let b = QuantisedPanels {
            values: &b.values[first * PANEL..],
            block_sums: &b.block_sums[skipped_sums..],
            ..b
        };
        matmul_part(isa, &part, a, b, out);
    }
}

/// [`matmul`] of at most [`MAX_TERMS`] terms.
fn matmul_part<R: Real>(
    isa: Isa,
    block: &Block<'_, R>,
    a: QuantisedRows<'_>,
    b: QuantisedPanels<'_>,
    out: &mut [R],
) {
    if let (Some(block), Some(out)) = (block.as_f32(), R::f32_slice_mut(out)) {
        #[cfg(target_arch = "x86_64")]
        {
            use super::amx::Tiles;
            use super::dot_x86_64::{Avx2Int8, Avx512Vnni, Avx512WidenInt8};

            if let Some(mut tiles) = Tiles::new(isa) {
                return multiply_panels(isa, &mut tiles, &block, a, b, out);
            }
            if let Some(mut kernel) = Avx512Vnni::new(isa) {
                return multiply_panels(isa, &mut kernel, &block, a, b, out);
            }
            if let Some(mut kernel) = Avx512WidenInt8::new(isa) {
                return multiply_panels(isa, &mut kernel, &block, a, b, out);
            }
            if let Some(mut kernel) = Avx2Int8::new(isa) {
                return multiply_panels(isa, &mut kernel, &block, a, b, out);
            }
        }
        return multiply_panels(isa, &mut Widened::new(isa), &block, a, b, out);
    }
    matmul_portable(block, a, b, out);
}

/// The plain form.
fn matmul_portable<R: Real>(
    block: &Block<'_, R>,
    a: QuantisedRows<'_>,
    b: QuantisedPanels<'_>,
    out: &mut [R],
) {
    block.for_each_output(out, |start, r, j| {
        let panel = &b.values[block.panel_start(j)..];
        let at = |i| offset_in_panel(i, j % PANEL, Dtype::Int8);
        let product = |i: usize| i32::from(a.values[r * a.stride + i]) * i32::from(panel[at(i)]);
        let dot: i32 = (0..block.k).map(product).sum();
        let offset = i32::from(INT8_ZERO) * b.column_sum(block, j);
        start + R::from_f32((dot - offset) as f32 * (a.scales[r] * b.scales[j]))
    });
}

impl QuantisedPanels<'_> {
    /// The sum of column `j`.
    fn column_sum<R>(&self, block: &Block<'_, R>, j: usize) -> i32 {
        let padded_n = block.n.next_multiple_of(PANEL);
        (0..block.k.div_ceil(INT8_K_BLOCK)).map(|step| self.block_sums[step * padded_n + j]).sum()
    }
}

/// Panel by panel; whole ones straight to the results if the kernel can, else by way of a buffer for the integer sums.
fn multiply_panels<K: PanelKernel>(
    isa: Isa,
    kernel: &mut K,
    block: &Block<'_, f32>,
    a: QuantisedRows<'_>,
    b: QuantisedPanels<'_>,
    out: &mut [f32],
) {
    let padded_k = block.k.next_multiple_of(k_multiple(Dtype::Int8));
    block.assert_inside(a.values.len(), a.stride, b.values.len(), padded_k, out.len());
    assert!(a.scales.len() >= block.rows, "a scale per row");
    let zeros = [0f32; PANEL];
    let mut sums = [[0i32; PANEL]; BUFFER_ROWS];
    for first in block.cols.clone().step_by(PANEL) {
        let at = block.panel_start(first);
        let columns = first..block.cols.end.min(first + PANEL);
        // What the left operand's offset adds is taken off beforehand.
        let mut offsets = [0i32; PANEL];
        for (offset, j) in offsets.iter_mut().zip(columns.clone()) {
            *offset = -i32::from(INT8_ZERO) * b.column_sum(block, j);
        }
        let column_scales = b.scales[first..].first_chunk().expect("scales are padded to whole panels");
        let init = match block.init {
            Init::Bias(bias) => Init::Bias(&bias[columns.clone()]),
            other => other,
        };
        for first_row in (0..block.rows).step_by(BUFFER_ROWS) {
            let rows = BUFFER_ROWS.min(block.rows - first_row);
            let product = PanelProduct {
                kind: Kind::Int8,
                rows,
                left: a.values[first_row * a.stride..].as_ptr(),
                left_stride: a.stride,
                panel: b.values[at..].as_ptr().cast(),
                steps: padded_k / k_multiple(Dtype::Int8),
                initial: Initial::repeat(&offsets),
                result: ResultRows { start: sums.as_mut_ptr().cast(), stride: size_of_val(&offsets) },
                next_panel: b.values.as_ptr().wrapping_add(at + block.panel_stride).cast(),
            };
            let out = &mut out[first_row * block.out_stride + (first - block.cols.start)..];
            if K::SCALES && columns.len() == PANEL && product.steps > 0 {
                let stride = size_of::<f32>() * block.out_stride;
                let result = ResultRows { start: out.as_mut_ptr().cast(), stride };
                let scaling = PanelScaling {
                    row_scales: a.scales[first_row..].as_ptr(),
                    column_scales: column_scales.as_ptr().cast(),
                    initial: match init {
                        Init::Zero => Initial::repeat(&zeros),
                        Init::Bias(bias) => Initial { start: bias.as_ptr().cast(), stride: 0 },
                        Init::Accumulate => result.as_initial(),
                    },
                    result,
                };
                // SAFETY: `assert_inside` has found all rows, panels, results and the bias in their slices, and there
                // are as many scales; sums that wait go to the buffer, which holds as many rows.
                unsafe { kernel.multiply_scaled(&product, &scaling) };
                continue;
            }
            // SAFETY: as above.
            unsafe { kernel.multiply(&product) };
            let scaling = Scaling {
                sums: &sums[..rows],
                row_scales: &a.scales[first_row..][..rows],
                column_scales,
                init,
                columns: columns.len(),
                out_stride: block.out_stride,
            };
            f32::dispatch(isa, ScaleInto(scaling, out));
        }
    }
}

/// From the integer sums of one panel to results.
struct Scaling<'a> {
    sums: &'a [[i32; PANEL]],
    row_scales: &'a [f32],
    column_scales: &'a [f32; PANEL],
    /// A bias has `columns` elements.
    init: Init<'a, f32>,
    columns: usize,
    out_stride: usize,
}

/// `out = init + sum * (row scale * column scale)`
struct ScaleInto<'a>(Scaling<'a>, &'a mut [f32]);

impl VectorLoop<f32> for ScaleInto<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<Elem = f32>>(self, _simd: S) {
        let ScaleInto(scaling, out) = self;
        // What a row begins with, decided before the loop over rows.
        match scaling.init {
            Init::Zero => scaling.rows(out, [0.0; PANEL], false),
            Init::Accumulate => scaling.rows(out, [0.0; PANEL], true),
            Init::Bias(bias) => {
                let mut start = [0f32; PANEL];
                start[..bias.len()].copy_from_slice(bias);
                scaling.rows(out, start, false);
            }
        }
    }
}

impl Scaling<'_> {
    #[inline(always)]
    fn rows(&self, out: &mut [f32], start: [f32; PANEL], accumulate: bool) {
        for (r, (sums, &row_scale)) in self.sums.iter().zip(self.row_scales).enumerate() {
            let out = &mut out[r * self.out_stride..][..self.columns];
            let mut values = start;
            if accumulate {
                copy(out, &mut values);
            }
            for c in 0..PANEL {
                values[c] += sums[c] as f32 * (row_scale * self.column_scales[c]);
            }
            copy(&values[..self.columns], out);
        }
    }
}

/// Copies `from`, at most a panel's row, to the beginning of `to`.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    match (from.first_chunk::<PANEL>(), to.first_chunk_mut::<PANEL>()) {
        // The usual case, of a length that the compiler knows.
        (Some(from), Some(to)) => *to = *from,
        _ => to[..from.len()].copy_from_slice(from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::matmul::{LhsBuffer, PackedMatrix, Panels, matmul, prepare_lhs};
    use crate::kernels::testing::{noise, too_much_for_miri};

    struct Case {
        rows: usize,
        k: usize,
        n: usize,
        left: Vec<f32>,
        right: PackedMatrix<f32>,
        bias: Vec<f32>,
    }

    impl Case {
        fn new(rows: usize, k: usize, n: usize) -> Case {
            let right = PackedMatrix::pack(k, n, Dtype::Int8, &noise(k * n, 2));
            Case { rows, k, n, left: noise(rows * k, 1), right, bias: noise(n, 3) }
        }

        fn run(&self, isa: Isa, rows: std::ops::Range<usize>, init: Init<'_, f32>) -> Vec<f32> {
            let mut buffer = LhsBuffer::default();
            // Quantised by plain code, so that what is compared is the product alone.
            let (plain, dtype) = (Isa::PORTABLE, Dtype::Int8);
            let lhs = prepare_lhs(plain, &self.left, self.rows, self.k, self.k, dtype, &mut buffer);
            let mut out: Vec<f32> = (0..rows.len()).flat_map(|_| self.bias.iter().copied()).collect();
            matmul(
                isa,
                rows.len(),
                lhs.skip_rows(rows.start),
                self.right.view(),
                0..self.n,
                &mut out,
                self.n,
                init,
            );
            out
        }
    }

    #[test]
    fn doubles_take_the_plain_code_and_agree() {
        for (rows, k, n) in [(1, 1, 1), (5, 70, 33), (25, 600, 64)] {
            if too_much_for_miri(rows, k, n) {
                continue;
            }
            let case = Case::new(rows, k, n);
            let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            let right = PackedMatrix::<f64>::pack(k, n, Dtype::Int8, &wide(&noise(k * n, 2)));
            let mut buffer = LhsBuffer::default();
            let left = wide(&case.left);
            let lhs = prepare_lhs(Isa::PORTABLE, &left, rows, k, k, Dtype::Int8, &mut buffer);
            let mut plain = vec![0f64; rows * n];
            matmul(Isa::PORTABLE, rows, lhs, right.view(), 0..n, &mut plain, n, Init::Zero);
            let widened = case.run(Isa::PORTABLE, 0..rows, Init::Zero);
            assert_eq!(plain.iter().map(|&x| x as f32).collect::<Vec<_>>(), widened, "{rows} x {k} x {n}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too much for Miri")]
    fn every_instruction_set_gives_the_bits_of_the_plain_code() {
        for rows in (1..=33).chain([64, 130]) {
            for (k, n) in [(1, 1), (3, 32), (64, 33), (65, 31), (100, 96), (257, 64), (1100, 72)] {
                let case = Case::new(rows, k, n);
                for init in [Init::Zero, Init::Bias(&case.bias[..]), Init::Accumulate] {
                    let plain = case.run(Isa::PORTABLE, 0..rows, init);
                    for isa in Isa::available() {
                        let message = format!("{} {rows} x {k} x {n}", isa.name());
                        assert!(case.run(isa, 0..rows, init) == plain, "{message}");
                    }
                }
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too much for Miri")]
    fn the_product_is_that_of_the_dequantised_operands() {
        let case = Case::new(5, 300, 40);
        let right = case.right.unpack();
        let out = case.run(Isa::PORTABLE, 0..5, Init::Zero);
        for r in 0..5 {
            for j in 0..40 {
                let term = |i: usize| f64::from(case.left[r * 300 + i]) * f64::from(right[i * 40 + j]);
                let sum: f64 = (0..300).map(term).sum();
                // Half a step of 1/127 per term, in random directions: 300^0.5 / 254 is one standard deviation or so.
                assert!((f64::from(out[r * 40 + j]) - sum).abs() < 0.2, "({r}, {j})");
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too much for Miri")]
    fn a_row_has_the_same_bits_among_any_others() {
        for isa in Isa::available() {
            let case = Case::new(140, 320, 45);
            let all = case.run(isa, 0..140, Init::Bias(&case.bias));
            for rows in [0..1, 3..20, 16..32, 7..39, 100..140] {
                let some = case.run(isa, rows.clone(), Init::Bias(&case.bias));
                assert_eq!(some, all[rows.start * 45..rows.end * 45], "{} {rows:?}", isa.name());
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too much for Miri")]
    fn the_largest_bytes_do_not_overflow() {
        let k = MAX_TERMS + INT8_K_BLOCK;
        for isa in Isa::available() {
            let right = PackedMatrix::pack(k, 1, Dtype::Int8, &vec![1f32; k]);
            let mut buffer = LhsBuffer::default();
            let left = vec![-1f32; k];
            let lhs = prepare_lhs(isa, &left, 1, k, k, Dtype::Int8, &mut buffer);
            let mut out = [0f32];
            matmul(isa, 1, lhs, right.view(), 0..1, &mut out, 1, Init::Zero);
            assert!((out[0] + k as f32).abs() < 1.0, "{}: {}", isa.name(), out[0]);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too much for Miri")]
    fn ranges_of_rows_add_up() {
        for isa in Isa::available() {
            let case = Case::new(20, 600, 64);
            let mut out = vec![0f32; 20 * 64];
            for range in [0..256, 256..512, 512..600] {
                let left: Vec<f32> =
                    (0..20).flat_map(|r| &case.left[r * 600..][range.clone()]).copied().collect();
                let panels: Panels<'_, f32> = case.right.view().k_range(range.clone());
                let mut buffer = LhsBuffer::default();
                let k = range.len();
                let lhs = prepare_lhs(isa, &left, 20, k, k, Dtype::Int8, &mut buffer);
                matmul(isa, 20, lhs, panels, 0..64, &mut out, 64, Init::Accumulate);
            }
            let whole = case.run(isa, 0..20, Init::Zero);
            let worst = out.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            // Each range has its own row scales, so roundings differ: as above, 600^0.5 / 254 and its tail.
            assert!(worst < 0.3, "{}: {worst}", isa.name());
        }
    }
}
