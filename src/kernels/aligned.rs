//! A vector whose first element sits on a 64-byte boundary (a cache line, a 512-bit register).

use std::ops::{Deref, DerefMut};

/// A vector of plain numbers aligned to 64 bytes.
#[derive(Clone, Debug, Default)]
pub struct AlignedVec<T>(Vec<T>);

impl<T: Copy + Default> AlignedVec<T> {
    /// `len` default values (zeros).
    pub fn zeros(len: usize) -> Self {
        AlignedVec(vec![T::default(); len])
    }

    /// Makes room for at least `len` elements, keeping the allocation when it is large enough; the contents are
    /// unspecified (old values or zeros).
    pub fn ensure_len(&mut self, len: usize) {
        if self.0.len() < len {
            self.0.resize(len, T::default());
        }
    }
}

impl<T> Deref for AlignedVec<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
