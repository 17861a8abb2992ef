//! Matrices that are read by rows: embedding tables, and the matrices that mix along the sequence.

use half::{bf16, f16};

use crate::kernels::{Dtype, Isa, Lhs, LowPrecision, Real, lhs_stride, round_to_bfloat16, round_to_float16};
use crate::sys::{AlignedVec, FilePart, MaybeMapped, ParallelFor};

/// Rows that one task fills.
const PIECE_ROWS: usize = 64;

#[derive(Clone, Debug)]
enum Storage<R> {
    FullPrecision(MaybeMapped<R>),
    Bfloat16(MaybeMapped<bf16>),
    Float16(MaybeMapped<f16>),
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

    /// As [`Table::new`], `parallel` running the loop over the rows.
    pub fn new_with(
        rows: usize,
        width: usize,
        dtype: Dtype,
        values: &[R],
        parallel: ParallelFor<'_>,
    ) -> Self {
        if dtype == Dtype::Float32 {
            let storage = Storage::FullPrecision(AlignedVec::copied(values, parallel).into());
            return Table { rows, width, stride: width, storage };
        }
        Self::rounded(rows, width, dtype, parallel, |i, row| {
            row.copy_from_slice(&values[i * width..][..width]);
        })
    }

    /// The same table stored as `dtype`, see [`Table::new`]; `parallel` runs the loop over the rows.
    pub fn to_dtype(&self, dtype: Dtype, parallel: ParallelFor<'_>) -> Self {
        let (rows, width) = (self.rows, self.width);
        match (&self.storage, dtype) {
            (Storage::FullPrecision(values), _) => Self::new_with(rows, width, dtype, values, parallel),
            (_, Dtype::Float32) => {
                let fill = |part: usize, out: &mut [R]| {
                    for (i, out) in out.chunks_exact_mut(width).enumerate() {
                        self.copy_row(part * PIECE_ROWS + i, out);
                    }
                };
                let values = AlignedVec::zeros_in_parts(rows * width, PIECE_ROWS * width, parallel, fill);
                Table { rows, width, stride: width, storage: Storage::FullPrecision(values.into()) }
            }
            _ => Self::rounded(rows, width, dtype, parallel, |i, row| self.copy_row(i, row)),
        }
    }

    /// A table in a rounded type, whose row `i` is what `row` writes.
    fn rounded(
        rows: usize,
        width: usize,
        dtype: Dtype,
        parallel: ParallelFor<'_>,
        row: impl Fn(usize, &mut [R]) + Sync,
    ) -> Self {
        // Calls `store` with the values and the memory of each row.
        fn fill<R: Real, T>(
            (part, out): (usize, &mut [T]),
            (width, stride): (usize, usize),
            row: &impl Fn(usize, &mut [R]),
            store: impl Fn(&[R], &mut [T]),
        ) {
            let mut values = vec![R::ZERO; width];
            for (i, out) in out.chunks_exact_mut(stride).enumerate() {
                row(part * PIECE_ROWS + i, &mut values);
                store(&values, out);
            }
        }
        let stride = Self::stride(width, dtype);
        let (len, part_len, isa) = (rows * stride, PIECE_ROWS * stride, Isa::fastest());
        let storage = if dtype == Dtype::Float16 {
            Storage::Float16(
                AlignedVec::zeros_in_parts(len, part_len, parallel, |part, out| {
                    fill((part, out), (width, stride), &row, round_to_float16);
                })
                .into(),
            )
        } else {
            Storage::Bfloat16(
                AlignedVec::zeros_in_parts(len, part_len, parallel, |part, out| {
                    fill((part, out), (width, stride), &row, |values, out| {
                        round_to_bfloat16(isa, values, out)
                    });
                })
                .into(),
            )
        };
        Table { rows, width, stride, storage }
    }

    /// Elements from one row to the next of a table stored as `dtype`.
    fn stride(width: usize, dtype: Dtype) -> usize {
        match dtype {
            Dtype::Float32 | Dtype::Float16 => width,
            Dtype::Bfloat16 | Dtype::Int8 => lhs_stride(width, Dtype::Bfloat16),
        }
    }

    /// Bytes of a table of `dtype` in a file: its rows as this machine keeps them. `None` if they are too many.
    pub fn file_bytes(rows: usize, width: usize, dtype: Dtype) -> Option<usize> {
        // Before anything is rounded up.
        let limit = |size: usize| (size <= isize::MAX as usize / 1024).then_some(size);
        let size = if dtype == Dtype::Float32 { size_of::<R>() } else { size_of::<bf16>() };
        limit(rows.checked_mul(Self::stride(limit(width)?, dtype))?.checked_mul(size)?)
    }

    /// The bytes that a file holds.
    pub fn bytes_for_file(&self) -> &[u8] {
        match &self.storage {
            Storage::FullPrecision(v) => bytemuck::cast_slice(v),
            Storage::Bfloat16(v) => bytemuck::cast_slice(v),
            Storage::Float16(v) => bytemuck::cast_slice(v),
        }
    }

    /// The table of `dtype`, which is not [`Dtype::Int8`], that `part` begins with; `None` if that is too short. Rows stay in
    /// a mapped file.
    pub fn of_file(rows: usize, width: usize, dtype: Dtype, part: FilePart<'_>) -> Option<Self> {
        let (part, _) = part.split(Self::file_bytes(rows, width, dtype)?)?;
        let storage = match dtype {
            Dtype::Float32 => Storage::FullPrecision(part.numbers()),
            Dtype::Bfloat16 => Storage::Bfloat16(part.numbers()),
            Dtype::Float16 => Storage::Float16(part.numbers()),
            Dtype::Int8 => return None,
        };
        Some(Table { rows, width, stride: Self::stride(width, dtype), storage })
    }

    /// Whether a file holds the rows.
    pub fn is_mapped(&self) -> bool {
        match &self.storage {
            Storage::FullPrecision(v) => v.is_mapped(),
            Storage::Bfloat16(v) => v.is_mapped(),
            Storage::Float16(v) => v.is_mapped(),
        }
    }

    /// Copies rows of a file, so that they can be changed.
    pub fn make_owned(&mut self) {
        match &mut self.storage {
            Storage::FullPrecision(v) => drop(v.make_owned()),
            Storage::Bfloat16(v) => drop(v.make_owned()),
            Storage::Float16(v) => drop(v.make_owned()),
        }
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

    /// What tables of a part of `dtype` are stored as, see [`Table::new`].
    pub fn stored_as(dtype: Dtype) -> Dtype {
        if dtype == Dtype::Int8 { Dtype::Bfloat16 } else { dtype }
    }

    /// Storage type.
    pub fn dtype(&self) -> Dtype {
        match &self.storage {
            Storage::FullPrecision(_) => Dtype::Float32,
            Storage::Bfloat16(_) => Dtype::Bfloat16,
            Storage::Float16(_) => Dtype::Float16,
        }
    }

    /// The values, for updates in place; `None` unless in the activations' type.
    pub fn full_precision_mut(&mut self) -> Option<&mut [R]> {
        match &mut self.storage {
            Storage::FullPrecision(v) => Some(v),
            _ => None,
        }
    }

    /// The values, to be written beside masters; `None` if in the activations' type.
    pub fn low_precision_mut(&mut self) -> Option<LowPrecision<'_>> {
        let (width, stride) = (self.width, self.stride);
        match &mut self.storage {
            Storage::FullPrecision(_) => None,
            Storage::Bfloat16(values) => {
                Some(LowPrecision::Bfloat16Rows { values, width, stride, column: 0 })
            }
            Storage::Float16(values) => Some(LowPrecision::Float16(values)),
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
