//! Left operands of products, converted to what the right operand's storage type wants.

use half::bf16;

use super::layout::k_multiple;
use super::quantize::quantise_row;
use crate::kernels::dtype::Dtype;
use crate::kernels::isa::{Isa, Real};
use crate::kernels::rows::{
    Elementwise, elementwise, elementwise_to_bfloat16, exponentials, exponentials_to_bfloat16, transpose,
};
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

/// Prepares the transpose of `k` rows of `rows` values, `stride` apart, as [`prepare_lhs`] prepares rows of `k` values.
/// Without rounding it goes to `values`, which holds `rows` times [`full_precision_stride`] of `k` values.
pub fn prepare_transposed_lhs<'a, R: Real>(
    isa: Isa,
    source: &[R],
    (rows, k): (usize, usize),
    stride: usize,
    dtype: Dtype,
    values: &'a mut [R],
    buffer: &'a mut LhsBuffer,
) -> Lhs<'a, R> {
    let _time = timed(Work::Transpose);
    if dtype == Dtype::Bfloat16 {
        let (padded, own_stride) = (k.next_multiple_of(k_multiple(dtype)), lhs_stride(k, dtype));
        buffer.bfloat16.ensure_len(rows * own_stride);
        let values = &mut buffer.bfloat16[..rows * own_stride];
        transpose(isa, source, k, rows, stride, values, own_stride);
        values.chunks_exact_mut(own_stride).for_each(|row| row[k..padded].fill(bf16::ZERO));
        return Lhs::Bfloat16 { values, stride: own_stride };
    }
    let own_stride = full_precision_stride::<R>(k);
    transpose(isa, source, k, rows, stride, values, own_stride);
    prepare_lhs(isa, values, rows, k, own_stride, dtype, buffer)
}

/// Applies `function` to the rows of `k` values in `source` and prepares them as [`prepare_lhs`] does, each row while
/// it is in the L1 cache. What `source` holds afterwards is not specified.
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
                if let Some(out) = conversion.bfloat16_row(r) {
                    elementwise_to_bfloat16(isa, function, row, out);
                } else {
                    elementwise(isa, function, row);
                    conversion.row(isa, r, row);
                }
            }
            conversion.finish()
        }
    }
}

/// Replaces the rows of `k` values in `source` by what [`exponentials`] makes of them, with their `sums`, and prepares them as
/// [`prepare_lhs`] does. What `source` holds afterwards is not specified.
pub fn exponentials_lhs<'a, R: Real>(
    isa: Isa,
    source: &'a mut [R],
    k: usize,
    sums: &mut [R],
    dtype: Dtype,
    buffer: &'a mut LhsBuffer,
) -> Lhs<'a, R> {
    let _time = timed(Work::Softmax);
    let rows = source.len() / k.max(1);
    match Conversion::new(rows, k, dtype, buffer) {
        None => {
            exponentials(isa, source, k, sums);
            Lhs::FullPrecision { values: source, stride: k }
        }
        Some(mut conversion) => {
            for (r, (row, sum)) in source.chunks_exact_mut(k.max(1)).zip(sums).enumerate() {
                if let Some(out) = conversion.bfloat16_row(r) {
                    *sum = exponentials_to_bfloat16(isa, row, out);
                } else {
                    exponentials(isa, row, k, std::slice::from_mut(sum));
                    conversion.row(isa, r, row);
                }
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

    /// Where row `r` goes, padding included, if it only has to be rounded.
    fn bfloat16_row(&mut self, r: usize) -> Option<&mut [bf16]> {
        match self {
            Conversion::Bfloat16 { values, padded, stride } => Some(&mut values[r * *stride..][..*padded]),
            Conversion::Int8 { .. } => None,
        }
    }

    /// Converts row `r`, the one after the last converted, narrowed to `f32` if it is wider.
    fn row<R: Real>(&mut self, isa: Isa, r: usize, row: &[R]) {
        if let Some(out) = self.bfloat16_row(r) {
            return elementwise_to_bfloat16(isa, Elementwise::Linear, row, out);
        }
        let narrowed: Vec<f32>;
        let row = match R::f32_slice(row) {
            Some(row) => row,
            None => {
                narrowed = row.iter().map(|x| x.to_f32()).collect();
                &narrowed
            }
        };
        if let Conversion::Int8 { values, scales, padded, stride } = self {
            scales.push(quantise_row(isa, row, &mut values[r * *stride..][..*padded]));
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
    use crate::kernels::rows::softmax_in_place;
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
    fn exponentials_over_their_sums_are_the_softmax() {
        let (rows, k) = (5, 70);
        for isa in Isa::available() {
            for dtype in [Dtype::Float32, Dtype::Bfloat16, Dtype::Int8] {
                let mut expected = noise(rows * k, 1);
                let (mut scores, mut sums) = (expected.clone(), vec![0.0; rows]);
                softmax_in_place(isa, &mut expected, k);
                let mut buffer = LhsBuffer::default();
                let got = exponentials_lhs(isa, &mut scores, k, &mut sums, dtype, &mut buffer);
                for (i, &expected) in expected.iter().enumerate() {
                    let (r, c) = (i / k, i % k);
                    let (value, tolerance) = match got {
                        Lhs::FullPrecision { values, stride } => (values[r * stride + c], 1e-6),
                        Lhs::Bfloat16 { values, stride } => (values[r * stride + c].to_f32(), 1.0 / 256.0),
                        Lhs::Int8 { values, stride, scales } => {
                            (scales[r] * (f32::from(values[r * stride + c]) - 128.0), 1.0)
                        }
                    };
                    let error = (value / sums[r] - expected).abs();
                    assert!(error <= tolerance * expected.max(0.005), "{} {dtype:?} {error}", isa.name());
                }
            }
        }
    }

    #[test]
    fn a_transposed_operand_is_that_of_the_transpose() {
        for (rows, k) in [(1, 1), (16, 32), (5, 70), (33, 17)] {
            let stride = rows + 3;
            let source = noise(k * stride, 1);
            let own_stride = full_precision_stride::<f32>(k);
            for isa in Isa::available() {
                for dtype in [Dtype::Float32, Dtype::Bfloat16] {
                    let (mut turned, mut values) =
                        (vec![0.0; rows * own_stride], vec![0.0; rows * own_stride]);
                    transpose(isa, &source, k, rows, stride, &mut turned, own_stride);
                    let (mut buffer, mut other) = (LhsBuffer::default(), LhsBuffer::default());
                    let expected = prepare_lhs(isa, &turned, rows, k, own_stride, dtype, &mut buffer);
                    let shape = (rows, k);
                    let got =
                        prepare_transposed_lhs(isa, &source, shape, stride, dtype, &mut values, &mut other);
                    for r in 0..rows {
                        let row = |operand: Lhs<'_, f32>| match operand {
                            Lhs::FullPrecision { values, stride } => {
                                format!("{:?}", &values[r * stride..][..k])
                            }
                            Lhs::Bfloat16 { values, stride } => {
                                format!("{:?}", &values[r * stride..][..k.next_multiple_of(32)])
                            }
                            Lhs::Int8 { .. } => unreachable!("not asked for"),
                        };
                        assert_eq!(row(got), row(expected), "{} {dtype:?} {rows} x {k}", isa.name());
                    }
                }
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
