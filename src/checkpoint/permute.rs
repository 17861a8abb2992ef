//! Arrays with their axes in another order.

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
}
