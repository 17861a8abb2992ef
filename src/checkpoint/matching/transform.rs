//! Changes of layout between frameworks: keep, swap the two leading axes, or take some rows of a table; then reshape.

use std::borrow::Cow;

use crate::checkpoint::error::FormatError;
use crate::checkpoint::permute::permute_axes;
use crate::checkpoint::tensor::Tensor;

/// How a foreign tensor becomes one of ours; a reshape to the wanted shape always follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// Same order of elements.
    Keep,
    /// `out[j, i, ...] = in[i, j, ...]`: the transpose of PyTorch's matrices, the expert axis of Flax.
    SwapLeadingAxes,
    /// As many rows of a table as are wanted, from this one on.
    RowsFrom(usize),
}

impl Transform {
    /// Applies the change to `tensor` and gives the result the shape `wanted`.
    ///
    /// # Errors
    /// The tensor has too few dimensions, or another number of elements than `wanted`.
    pub fn apply<'a>(self, tensor: Tensor<'a>, wanted: &[usize]) -> Result<Tensor<'a>, FormatError> {
        let (dtype, shape, bytes) = tensor.into_parts();
        let bytes = match self {
            Transform::Keep => bytes,
            Transform::RowsFrom(first) => {
                let item_size = dtype.size().expect("a tensor with bytes has a known type");
                let wanted_bytes = wanted.iter().product::<usize>() * item_size;
                let skipped = first * wanted.last().copied().unwrap_or(1) * item_size;
                let too_few =
                    || FormatError::new(format!("expected {wanted:?} after {first} rows, got {shape:?}"));
                let range = skipped..skipped + wanted_bytes;
                match bytes {
                    Cow::Borrowed(bytes) => Cow::Borrowed(bytes.get(range).ok_or_else(too_few)?),
                    Cow::Owned(bytes) => Cow::Owned(bytes.get(range).ok_or_else(too_few)?.to_vec()),
                }
            }
            Transform::SwapLeadingAxes if shape.len() < 2 => {
                return Err(FormatError::new(format!("expected at least two dimensions, got {shape:?}")));
            }
            Transform::SwapLeadingAxes => {
                let mut axes: Vec<usize> = (0..shape.len()).collect();
                axes.swap(0, 1);
                let item_size = dtype.size().expect("a tensor with bytes has a known type");
                Cow::Owned(permute_axes(&bytes, item_size, &shape, &axes))
            }
        };
        Tensor::new(dtype, wanted.to_vec(), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;

    #[test]
    fn swapping_transposes_and_reshapes() {
        let tensor = Tensor::new(Dtype::U8, vec![2, 3], Cow::Owned(vec![1, 2, 3, 4, 5, 6])).unwrap();
        let swapped = Transform::SwapLeadingAxes.apply(tensor.clone(), &[3, 1, 2]).unwrap();
        assert_eq!(swapped.shape(), [3, 1, 2]);
        assert_eq!(swapped.bytes(), [1, 4, 2, 5, 3, 6]);
        assert!(Transform::Keep.apply(tensor, &[5]).is_err());
        let table = Tensor::new(Dtype::U8, vec![1, 3, 2], Cow::Owned(vec![1, 2, 3, 4, 5, 6])).unwrap();
        let rows = Transform::RowsFrom(1).apply(table.clone(), &[2, 2]).unwrap();
        assert_eq!((rows.shape(), rows.bytes()), (&[2, 2][..], &[3, 4, 5, 6][..]));
        assert!(Transform::RowsFrom(2).apply(table, &[2, 2]).is_err());
        let vector = Tensor::new(Dtype::U8, vec![2], Cow::Owned(vec![1, 2])).unwrap();
        assert!(Transform::SwapLeadingAxes.apply(vector, &[2]).is_err());
    }
}
