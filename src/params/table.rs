//! Matrices that are read by rows: embedding tables, and the matrices that mix along the sequence.

use half::{bf16, f16};

use crate::kernels::{Dtype, Lhs, LowPrecision, Real, lhs_stride};
use crate::sys::{AlignedVec, ParallelFor};

/// Rows of a piece of [`Table::low_precision_mut`].
const PIECE_ROWS: usize = 64;

#[derive(Clone, Debug)]
enum Storage<R> {
    FullPrecision(AlignedVec<R>),
    Bfloat16(AlignedVec<bf16>),
    Float16(Vec<f16>),
}

/// `rows` rows of `width` values.
#[derive(Clone, Debug)]
pub struct Table<R> {
    rows: usize,
    width: usize,
    /// Elements from one row to the next; bfloat16 rows are padded with zeros as left operands must be.
    stride: usize,
    storage: Storage<R>,
}

impl<R: Real> Table<R> {
    /// Stores row-major `values`, rounding to `dtype`; where that is [`Dtype::Int8`], to bfloat16, since neither rows that
    /// are looked up nor matrices along the sequence have a scale per token to hide 8-bit rounding in.
    pub fn new(rows: usize, width: usize, dtype: Dtype, values: &[R]) -> Self {
        Self::new_with(rows, width, dtype, values, ParallelFor::NONE)
    }

    /// As [`Table::new`], `parallel` running the loop that copies what is kept as it is.
    pub fn new_with(
        rows: usize,
        width: usize,
        dtype: Dtype,
        values: &[R],
        parallel: ParallelFor<'_>,
    ) -> Self {
        let mut stride = width;
        let storage = match dtype {
            Dtype::Float32 => Storage::FullPrecision(AlignedVec::copied(values, parallel)),
            Dtype::Bfloat16 | Dtype::Int8 => {
                stride = lhs_stride(width, Dtype::Bfloat16);
                let mut out = AlignedVec::<bf16>::zeros(rows * stride);
                for (out, row) in out.chunks_exact_mut(stride).zip(values.chunks_exact(width)) {
                    out.iter_mut().zip(row).for_each(|(o, x)| *o = bf16::from_f32(x.to_f32()));
                }
                Storage::Bfloat16(out)
            }
            Dtype::Float16 => Storage::Float16(values.iter().map(|x| f16::from_f32(x.to_f32())).collect()),
        };
        Table { rows, width, stride, storage }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::FullPrecision(v) => size_of_val(&v[..]),
            Storage::Bfloat16(v) => size_of_val(&v[..]),
            Storage::Float16(v) => size_of_val(&v[..]),
        }
    }

    /// Row-major values, widened.
    pub fn to_vec(&self) -> Vec<R> {
        if let Storage::FullPrecision(v) = &self.storage {
            return v.to_vec();
        }
        let mut out = vec![R::ZERO; self.rows * self.width];
        out.chunks_exact_mut(self.width).enumerate().for_each(|(i, out)| self.copy_row(i, out));
        out
    }

    /// The values, for updates in place; `None` unless in the activations' type.
    pub fn full_precision_mut(&mut self) -> Option<&mut [R]> {
        match &mut self.storage {
            Storage::FullPrecision(v) => Some(v),
            _ => None,
        }
    }

    /// The values in pieces, to be written beside masters; `None` if in the activations' type.
    pub fn low_precision_mut(&mut self) -> Option<Vec<LowPrecision<'_>>> {
        let (width, stride) = (self.width, self.stride);
        let piece = (PIECE_ROWS * stride).max(1);
        match &mut self.storage {
            Storage::FullPrecision(_) => None,
            Storage::Bfloat16(v) => {
                let pieces = v.chunks_mut(piece);
                Some(pieces.map(|values| LowPrecision::Bfloat16Rows { values, width, stride }).collect())
            }
            Storage::Float16(v) => Some(v.chunks_mut(piece).map(LowPrecision::Float16).collect()),
        }
    }

    /// The values; `None` unless in the activations' type.
    pub fn full_precision(&self) -> Option<&[R]> {
        match &self.storage {
            Storage::FullPrecision(v) => Some(v),
            _ => None,
        }
    }

    /// Copies row `i` to `out`.
    pub fn copy_row(&self, i: usize, out: &mut [R]) {
        let at = i * self.stride;
        match &self.storage {
            Storage::FullPrecision(v) => out.copy_from_slice(&v[at..at + self.width]),
            Storage::Bfloat16(v) => widen(&v[at..at + self.width], out),
            Storage::Float16(v) => widen(&v[at..at + self.width], out),
        }
    }

    /// Rows `first..first + rows` as a left operand of products with right operands in [`Dtype::Float32`] (or
    /// bfloat16 if this table is); `widened` is memory for `rows * width` values, used when the storage type needs it.
    pub fn lhs<'a>(&'a self, first: usize, rows: usize, widened: &'a mut [R]) -> Lhs<'a, R> {
        match &self.storage {
            Storage::FullPrecision(v) => {
                Lhs::FullPrecision { values: &v[first * self.stride..], stride: self.stride }
            }
            Storage::Bfloat16(v) => Lhs::Bfloat16 { values: &v[first * self.stride..], stride: self.stride },
            Storage::Float16(_) => {
                for (i, out) in widened.chunks_exact_mut(self.width).take(rows).enumerate() {
                    self.copy_row(first + i, out);
                }
                Lhs::FullPrecision { values: widened, stride: self.width }
            }
        }
    }
}

fn widen<T: Copy, R: Real>(source: &[T], out: &mut [R])
where
    f32: From<T>,
{
    for (o, x) in out.iter_mut().zip(source) {
        *o = R::from_f32(f32::from(*x));
    }
}
