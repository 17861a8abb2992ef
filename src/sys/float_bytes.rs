//! Views of 32-bit floats as the little-endian bytes of files, and back, without copying.

/// The values of which `bytes` are the little-endian form; `None` where they would have to be copied: at an odd place in
/// memory, or on a big-endian machine.
pub fn f32s_of_bytes(bytes: &[u8]) -> Option<&[f32]> {
    if bytes.is_empty() {
        // Wherever they are.
        return Some(&[]);
    }
    if cfg!(target_endian = "little") { bytemuck::try_cast_slice(bytes).ok() } else { None }
}

/// The little-endian form of `values`; `None` on a big-endian machine.
pub fn bytes_of_f32s(values: &[f32]) -> Option<&[u8]> {
    cfg!(target_endian = "little").then(|| bytemuck::cast_slice(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn views_hold_the_same_values() {
        let values = [1.5f32, -0.0, f32::INFINITY];
        let bytes = bytes_of_f32s(&values).unwrap();
        assert_eq!(bytes[..4], 1.5f32.to_le_bytes());
        assert_eq!(f32s_of_bytes(bytes).unwrap(), values);
        assert_eq!(f32s_of_bytes(&bytes[1..5]), None);
        assert_eq!(f32s_of_bytes(&bytes[..6]), None);
        assert!(f32s_of_bytes(&[]).is_some_and(<[f32]>::is_empty));
    }
}
