//! Changes of layout between frameworks. Two suffice: keep, or swap the two leading axes; then reshape.

use std::borrow::Cow;

use super::entries::FormatError;
use super::tensor::Tensor;

/// How a foreign tensor becomes one of ours; a reshape to the wanted shape always follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// Same order of elements.
    Keep,
    /// `out[j, i, ...] = in[i, j, ...]`: the transpose of PyTorch's matrices, the expert axis of Flax.
    SwapLeadingAxes,
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

/// The row-major array `bytes` of `shape` with its axes reordered: axis `i` of the result is axis `axes[i]` of the
/// source. `axes` is a permutation; trailing axes that stay in place are copied as a block.
///
/// # Panics
/// `bytes` does not have the size that `shape` and `item_size` give, or `axes` is no permutation.
pub(super) fn permute_axes(bytes: &[u8], item_size: usize, shape: &[usize], axes: &[usize]) -> Vec<u8> {
    assert_eq!(bytes.len(), shape.iter().product::<usize>() * item_size, "size of the source");
    assert_eq!(axes.len(), shape.len(), "one place per axis");
    if bytes.is_empty() {
        return Vec::new();
    }
    let fixed = axes.iter().enumerate().rev().take_while(|&(place, &axis)| place == axis).count();
    let moved = axes.len() - fixed;
    let block = shape[moved..].iter().product::<usize>() * item_size;
    let mut out = Vec::with_capacity(bytes.len());

    // Bytes between neighbours along each axis of the source.
    let mut strides = vec![block; moved];
    for axis in (1..moved).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    let sizes: Vec<usize> = axes[..moved].iter().map(|&axis| shape[axis]).collect();
    let steps: Vec<usize> = axes[..moved].iter().map(|&axis| strides[axis]).collect();
    // Counts through the result's indices like an odometer, carrying the source offset along.
    let mut index = vec![0; moved];
    let mut offset = 0;
    loop {
        out.extend_from_slice(&bytes[offset..offset + block]);
        let mut axis = moved;
        loop {
            if axis == 0 {
                return out;
            }
            axis -= 1;
            index[axis] += 1;
            offset += steps[axis];
            if index[axis] < sizes[axis] {
                break;
            }
            offset -= steps[axis] * sizes[axis];
            index[axis] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;

    #[test]
    fn axes_move_as_the_index_formula_says() {
        let shape = [2, 3, 4, 2];
        let bytes: Vec<u8> = (0..48).collect();
        for axes in [[0, 1, 2, 3], [1, 0, 2, 3], [3, 2, 1, 0], [2, 0, 1, 3], [0, 1, 3, 2]] {
            let out = permute_axes(&bytes, 1, &shape, &axes);
            let sizes: Vec<usize> = axes.iter().map(|&axis| shape[axis]).collect();
            for (flat, &value) in out.iter().enumerate() {
                let mut rest = flat;
                let mut source = [0; 4];
                for place in (0..4).rev() {
                    source[axes[place]] = rest % sizes[place];
                    rest /= sizes[place];
                }
                let expected = ((source[0] * 3 + source[1]) * 4 + source[2]) * 2 + source[3];
                assert_eq!(usize::from(value), expected, "{axes:?} at {flat}");
            }
        }
        assert!(permute_axes(&[], 4, &[0, 3], &[1, 0]).is_empty());
    }

    #[test]
    fn swapping_transposes_and_reshapes() {
        let tensor = Tensor::new(Dtype::U8, vec![2, 3], Cow::Owned(vec![1, 2, 3, 4, 5, 6])).unwrap();
        let swapped = Transform::SwapLeadingAxes.apply(tensor.clone(), &[3, 1, 2]).unwrap();
        assert_eq!(swapped.shape(), [3, 1, 2]);
        assert_eq!(swapped.bytes(), [1, 4, 2, 5, 3, 6]);
        assert!(Transform::Keep.apply(tensor, &[5]).is_err());
        let vector = Tensor::new(Dtype::U8, vec![2], Cow::Owned(vec![1, 2])).unwrap();
        assert!(Transform::SwapLeadingAxes.apply(vector, &[2]).is_err());
    }
}
