//! Left operands of products, converted to what the right operand's storage type wants.

use half::bf16;

use super::layout::k_multiple;
use super::quantize::{quantise_row, round_row};
use crate::kernels::dtype::Dtype;
use crate::kernels::isa::{Isa, Real};
use crate::kernels::rows::{Elementwise, elementwise};
use crate::sys::{AlignedVec, Work, timed};

/// A left operand in the form that products with a right operand of some [`Dtype`] want; made by
/// [`prepare_lhs`]. Row `r` begins at `r * stride`.
#[derive(Clone, Copy, Debug)]
pub enum Lhs<'a, R> {
    /// For `Float32` and `Float16`.
    FullPrecision {
        /// Rows of `k` values.
        values: &'a [R],
        /// Elements from one row to the next.
        stride: usize,
    },
    /// For `Bfloat16`: rows padded with zeros to a multiple of 32.
    Bfloat16 {
        /// Rows of `k` rounded values.
        values: &'a [bf16],
        /// Elements from one row to the next.
        stride: usize,
    },
    /// For `Int8`: `value = scale * (byte - 128)`, rows padded with 128 to a multiple of 64.
    Int8 {
        /// Rows of `k` quantised values.
        values: &'a [u8],
        /// Elements from one row to the next.
        stride: usize,
        /// One scale per row.
        scales: &'a [f32],
    },
}

/// Memory for a converted left operand, reused between products.
#[derive(Debug, Default)]
pub struct LhsBuffer {
    bfloat16: AlignedVec<bf16>,
    int8: AlignedVec<u8>,
    scales: Vec<f32>,
}

impl LhsBuffer {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.bfloat16[..])
            + size_of_val(&self.int8[..])
            + self.scales.capacity() * size_of::<f32>()
    }
}

impl<'a, R: Real> Lhs<'a, R> {
    /// The same operand without its first `rows` rows.
    pub fn skip_rows(self, rows: usize) -> Lhs<'a, R> {
        match self {
            Lhs::FullPrecision { values, stride } => {
                Lhs::FullPrecision { values: &values[rows * stride..], stride }
            }
            Lhs::Bfloat16 { values, stride } => Lhs::Bfloat16 { values: &values[rows * stride..], stride },
            Lhs::Int8 { values, stride, scales } => {
                Lhs::Int8 { values: &values[rows * stride..], stride, scales: &scales[rows..] }
            }
        }
    }
}

/// Elements from one row of a left operand to the next: `k` padded for `dtype`, and one step more where the rows
/// would otherwise lie a multiple of 512 bytes apart and compete for the same few sets of the L1 cache.
pub fn lhs_stride(k: usize, dtype: Dtype) -> usize {
    let step = k_multiple(dtype);
    let padded = k.next_multiple_of(step);
    if step > 1 && padded.is_multiple_of(8 * step) { padded + step } else { padded }
}

/// Elements from one row to the next of a left operand that is made as it is for a product: `k`, or a cache line more
/// where the rows would otherwise lie a multiple of 4 KiB apart and compete for one set of the L1 cache.
pub fn full_precision_stride<R: Real>(k: usize) -> usize {
    if (k * size_of::<R>()).is_multiple_of(4096) { k + 64 / size_of::<R>() } else { k }
}

/// Converts `rows` rows of `k` values, `stride` apart, for products with right operands of `dtype`.
///
/// A row with an infinity or a NaN makes every result that comes from it infinite or NaN, in 8 bits too.
pub fn prepare_lhs<'a, R: Real>(
    isa: Isa,
    source: &'a [R],
    rows: usize,
    k: usize,
    stride: usize,
    dtype: Dtype,
    buffer: &'a mut LhsBuffer,
) -> Lhs<'a, R> {
    let _time = timed(Work::Conversion);
    match Conversion::new(rows, k, dtype, buffer) {
        None => Lhs::FullPrecision { values: source, stride },
        Some(mut conversion) => {
            for r in 0..rows {
                conversion.row(isa, r, &source[r * stride..][..k]);
            }
            conversion.finish()
        }
    }
}

/// Applies `function` to the rows of `k` values in `source` and prepares them as [`prepare_lhs`] does, each row while
/// it is in the L1 cache. `source` holds the function's values afterwards.
pub fn activate_lhs<'a, R: Real>(
    isa: Isa,
    function: Elementwise,
    source: &'a mut [R],
    k: usize,
    dtype: Dtype,
    buffer: &'a mut LhsBuffer,
) -> Lhs<'a, R> {
    let _time = timed(Work::Activation);
    match Conversion::new(source.len() / k.max(1), k, dtype, buffer) {
        None => {
            elementwise(isa, function, source);
            Lhs::FullPrecision { values: source, stride: k }
        }
        Some(mut conversion) => {
            for (r, row) in source.chunks_exact_mut(k.max(1)).enumerate() {
                elementwise(isa, function, row);
                conversion.row(isa, r, row);
            }
            conversion.finish()
        }
    }
}

/// A left operand being converted row by row.
enum Conversion<'a> {
    Bfloat16 { values: &'a mut [bf16], padded: usize, stride: usize },
    Int8 { values: &'a mut [u8], scales: &'a mut Vec<f32>, padded: usize, stride: usize },
}

impl<'a> Conversion<'a> {
    /// Memory for `rows` rows of `k` values; `None` if `dtype` takes them as they are.
    fn new(rows: usize, k: usize, dtype: Dtype, buffer: &'a mut LhsBuffer) -> Option<Self> {
        let (padded, stride) = (k.next_multiple_of(k_multiple(dtype)), lhs_stride(k, dtype));
        match dtype {
            Dtype::Float32 | Dtype::Float16 => None,
            Dtype::Bfloat16 => {
                buffer.bfloat16.ensure_len(rows * stride);
                Some(Conversion::Bfloat16 { values: &mut buffer.bfloat16, padded, stride })
            }
            Dtype::Int8 => {
                buffer.int8.ensure_len(rows * stride);
                buffer.scales.clear();
                let (values, scales) = (&mut buffer.int8[..], &mut buffer.scales);
                Some(Conversion::Int8 { values, scales, padded, stride })
            }
        }
    }

    /// Converts row `r`, the one after the last converted, narrowed to `f32` if it is wider.
    fn row<R: Real>(&mut self, isa: Isa, r: usize, row: &[R]) {
        let narrowed: Vec<f32>;
        let row = match R::f32_slice(row) {
            Some(row) => row,
            None => {
                narrowed = row.iter().map(|x| x.to_f32()).collect();
                &narrowed
            }
        };
        match self {
            Conversion::Bfloat16 { values, padded, stride } => {
                round_row(isa, row, &mut values[r * *stride..][..*padded]);
            }
            Conversion::Int8 { values, scales, padded, stride } => {
                scales.push(quantise_row(isa, row, &mut values[r * *stride..][..*padded]));
            }
        }
    }

    fn finish<R>(self) -> Lhs<'a, R> {
        match self {
            Conversion::Bfloat16 { values, stride, .. } => Lhs::Bfloat16 { values, stride },
            Conversion::Int8 { values, scales, stride, .. } => Lhs::Int8 { values, stride, scales },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::noise;

    #[test]
    fn activating_and_preparing_in_one_pass_gives_the_same_operand() {
        let (rows, k) = (5, 70);
        for isa in Isa::available() {
            for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Int8] {
                let mut apart = noise(rows * k, 1);
                let mut at_once = apart.clone();
                elementwise(isa, Elementwise::GeluTanh, &mut apart);
                let (mut buffer, mut other) = (LhsBuffer::default(), LhsBuffer::default());
                let expected = prepare_lhs(isa, &apart, rows, k, k, dtype, &mut buffer);
                let got = activate_lhs(isa, Elementwise::GeluTanh, &mut at_once, k, dtype, &mut other);
                assert_eq!(format!("{got:?}"), format!("{expected:?}"), "{}", isa.name());
            }
        }
    }

    #[test]
    fn rows_do_not_lie_a_large_power_of_two_apart() {
        assert_eq!(lhs_stride(512, Dtype::Float32), 512);
        assert_eq!((full_precision_stride::<f32>(512), full_precision_stride::<f32>(4096)), (512, 4112));
        assert_eq!((full_precision_stride::<f64>(513), full_precision_stride::<f64>(512)), (513, 520));
        assert_eq!(lhs_stride(512, Dtype::Bfloat16), 544);
        assert_eq!(lhs_stride(64, Dtype::Bfloat16), 64);
        assert_eq!(lhs_stride(33, Dtype::Bfloat16), 64);
        assert_eq!(lhs_stride(2048, Dtype::Int8), 2112);
    }
}
