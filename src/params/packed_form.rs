//! Weights as files keep them without change: in the layout in which layers use them.

use super::spec::{Form, Spec};
use super::table::Table;
use super::weights::Weight;
use crate::kernels::{Dtype, PackedMatrix, Real};
use crate::sys::FilePart;

/// How a file holds a table or matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedForm {
    /// A table or matrices; a vector is never packed.
    pub form: Form,
    /// What the values are stored as.
    pub dtype: Dtype,
}

impl PackedForm {
    /// How `weight`, which `spec` describes, is written; `None` for a vector.
    pub fn of<R: Real>(spec: &Spec, weight: &Weight<R>) -> Option<Self> {
        let dtype = match weight {
            Weight::Vector(_) => return None,
            Weight::Table(table) => table.dtype(),
            Weight::Matrices(matrices) => matrices.first()?.dtype(),
        };
        Some(PackedForm { form: spec.form, dtype })
    }

    /// Whether there is such a form, of at least one value.
    pub fn is_valid(self) -> bool {
        match self.form {
            Form::Vector => false,
            Form::Table { rows, width } => rows > 0 && width > 0 && self.dtype != Dtype::Int8,
            Form::Matrices { count, k, n, .. } => count > 0 && k > 0 && n > 0,
        }
    }

    /// Whether `spec` describes such a weight.
    pub fn fits(self, spec: &Spec) -> bool {
        match (self.form, spec.form) {
            (
                Form::Matrices { count, k, n, .. },
                Form::Matrices { count: own_count, k: own_k, n: own_n, .. },
            ) => [count, k, n] == [own_count, own_k, own_n],
            (form, own) => form == own,
        }
    }

    /// Number of values; `None` if they are too many.
    pub fn values(self) -> Option<usize> {
        match self.form {
            Form::Vector => None,
            Form::Table { rows, width } => rows.checked_mul(width),
            Form::Matrices { count, k, n, .. } => count.checked_mul(k)?.checked_mul(n),
        }
    }

    /// Bytes in a file; `None` if they are too many.
    pub fn file_bytes<R: Real>(self) -> Option<usize> {
        match self.form {
            Form::Vector => None,
            Form::Table { rows, width } => Table::<R>::file_bytes(rows, width, self.dtype),
            Form::Matrices { count, k, n, .. } => {
                PackedMatrix::<R>::file_bytes(k, n, self.dtype)?.checked_mul(count)
            }
        }
    }
}

impl<R: Real> Weight<R> {
    /// The bytes that a file holds, one after the other; none of a vector.
    pub fn bytes_for_file(&self) -> Vec<&[u8]> {
        match self {
            Weight::Vector(_) => Vec::new(),
            Weight::Table(table) => vec![table.bytes_for_file()],
            Weight::Matrices(matrices) => matrices.iter().flat_map(PackedMatrix::bytes_for_file).collect(),
        }
    }

    /// The weight of `packed` form in `part`, which may be longer; `None` if it is too short. The values stay in a mapped file.
    pub fn of_file(packed: PackedForm, part: FilePart<'_>) -> Option<Self> {
        match packed.form {
            Form::Vector => None,
            Form::Table { rows, width } => Table::of_file(rows, width, packed.dtype, part).map(Weight::Table),
            Form::Matrices { count, k, n, .. } => {
                let mut rest = part;
                let mut matrices = Vec::new();
                for _ in 0..count {
                    let (matrix, after) = PackedMatrix::of_file(k, n, packed.dtype, rest)?;
                    matrices.push(matrix);
                    rest = after;
                }
                Some(Weight::Matrices(matrices))
            }
        }
    }

    /// Whether a file holds the values.
    pub fn is_mapped(&self) -> bool {
        match self {
            Weight::Vector(_) => false,
            Weight::Table(table) => table.is_mapped(),
            Weight::Matrices(matrices) => matrices.iter().any(PackedMatrix::is_mapped),
        }
    }

    /// Copies values of a file, so that they can be changed.
    pub fn make_owned(&mut self) {
        match self {
            Weight::Vector(_) => {}
            Weight::Table(table) => table.make_owned(),
            Weight::Matrices(matrices) => matrices.iter_mut().for_each(PackedMatrix::make_owned),
        }
    }
}
