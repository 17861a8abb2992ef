//! Matrices in panels as bytes of files, in which they keep the layout that products read ([`layout`](super::layout)).
//!
//! The bytes are those of the panels, padding included, as little-endian numbers; of an `Int8` matrix, the scales (`f32`)
//! and the sums of blocks (`i32`) follow. Every part is a multiple of 64 bytes long, so that each can be mapped where the
//! first can. The layout does not depend on
//! the instruction set; a change of it must raise [`PANEL_LAYOUT_VERSION`].

use super::layout::{INT8_K_BLOCK, PANEL, padded_k};
use super::packed::{PackedMatrix, Storage};
use crate::kernels::dtype::Dtype;
use crate::kernels::isa::Real;
use crate::sys::FilePart;

/// Version of the panels' layout.
pub const PANEL_LAYOUT_VERSION: u32 = 1;

/// Bytes of the parts of a `k x n` matrix of `dtype`: panels, scales, sums of blocks. `None` if they are too many.
fn part_bytes<R>(k: usize, n: usize, dtype: Dtype) -> Option<[usize; 3]> {
    // Before anything is rounded up.
    let limit = |size: usize| (size <= isize::MAX as usize / 1024).then_some(size);
    let (padded_k, padded_n) = (padded_k(limit(k)?, dtype), limit(n)?.next_multiple_of(PANEL));
    let size = match dtype {
        Dtype::Float32 => size_of::<R>(),
        Dtype::Bfloat16 | Dtype::Float16 => 2,
        Dtype::Int8 => 1,
    };
    let panels = limit(padded_k.checked_mul(padded_n)?.checked_mul(size)?)?;
    if dtype != Dtype::Int8 {
        return Some([panels, 0, 0]);
    }
    let row = padded_n * size_of::<f32>();
    Some([panels, row, limit(row.checked_mul(k.div_ceil(INT8_K_BLOCK))?)?])
}

impl<R: Real> PackedMatrix<R> {
    /// Bytes that a `k x n` matrix of `dtype` takes in a file; `None` if they are too many.
    pub fn file_bytes(k: usize, n: usize, dtype: Dtype) -> Option<usize> {
        part_bytes::<R>(k, n, dtype).map(|parts| parts.iter().sum())
    }

    /// The parts of the matrix that a file holds, one after the other, as this machine keeps them.
    pub fn bytes_for_file(&self) -> [&[u8]; 3] {
        match &self.storage {
            Storage::FullPrecision(v) => [bytemuck::cast_slice(v), &[], &[]],
            Storage::Bfloat16(v) => [bytemuck::cast_slice(v), &[], &[]],
            Storage::Float16(v) => [bytemuck::cast_slice(v), &[], &[]],
            Storage::Int8 { values, scales, block_sums } => {
                [bytemuck::cast_slice(values), bytemuck::cast_slice(scales), bytemuck::cast_slice(block_sums)]
            }
        }
    }

    /// The `k x n` matrix of `dtype` that `part` begins with, and what follows it; `None` if that is too short. Panels stay
    /// in a mapped file. Any bytes are some matrix.
    pub fn of_file(k: usize, n: usize, dtype: Dtype, part: FilePart<'_>) -> Option<(Self, FilePart<'_>)> {
        let [panels, scales, sums] = part_bytes::<R>(k, n, dtype)?;
        let (panels, rest) = part.split(panels)?;
        let (scales, rest) = rest.split(scales)?;
        let (block_sums, rest) = rest.split(sums)?;
        let storage = match dtype {
            Dtype::Float32 => Storage::FullPrecision(panels.numbers()),
            Dtype::Bfloat16 => Storage::Bfloat16(panels.numbers()),
            Dtype::Float16 => Storage::Float16(panels.numbers()),
            Dtype::Int8 => {
                let (scales, block_sums) = (scales.numbers::<f32>(), block_sums.numbers::<i32>());
                Storage::Int8 {
                    values: panels.numbers(),
                    scales: scales.to_vec(),
                    block_sums: block_sums.to_vec(),
                }
            }
        };
        Some((PackedMatrix { k, n, storage }, rest))
    }

    /// Whether a file holds the panels.
    pub fn is_mapped(&self) -> bool {
        match &self.storage {
            Storage::FullPrecision(v) => v.is_mapped(),
            Storage::Bfloat16(v) => v.is_mapped(),
            Storage::Float16(v) => v.is_mapped(),
            Storage::Int8 { values, .. } => values.is_mapped(),
        }
    }

    /// Copies panels of a file, so that they can be changed.
    pub fn make_owned(&mut self) {
        match &mut self.storage {
            Storage::FullPrecision(v) => drop(v.make_owned()),
            Storage::Bfloat16(v) => drop(v.make_owned()),
            Storage::Float16(v) => drop(v.make_owned()),
            Storage::Int8 { values, .. } => drop(values.make_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::noise;

    #[test]
    fn matrices_come_back_from_their_bytes_and_short_files_are_none() {
        for dtype in Dtype::ALL {
            let mut file = Vec::new();
            let shapes = [(1, 1), (3, 33), (70, 65), (300, 40)];
            let matrices = shapes.map(|(k, n)| PackedMatrix::<f32>::pack(k, n, dtype, &noise(k * n, 3)));
            for (matrix, (k, n)) in matrices.iter().zip(shapes) {
                let before = file.len();
                matrix.bytes_for_file().iter().for_each(|part| file.extend_from_slice(part));
                assert_eq!(PackedMatrix::<f32>::file_bytes(k, n, dtype), Some(file.len() - before));
                assert!(file.len().is_multiple_of(64), "{dtype:?}: the next part could not be mapped");
            }
            let mut rest = FilePart::of_bytes(&file);
            for (matrix, (k, n)) in matrices.iter().zip(shapes) {
                let (read, after) = PackedMatrix::<f32>::of_file(k, n, dtype, rest).expect("long enough");
                assert_eq!(format!("{read:?}"), format!("{matrix:?}"), "{dtype:?}");
                rest = after;
            }
            assert!(rest.is_empty());
            assert!(PackedMatrix::<f32>::of_file(1, 1, dtype, rest).is_none());
            for (k, n) in [(usize::MAX, 1), (1, usize::MAX), (usize::MAX / 2, 3), (1 << 40, 1 << 40)] {
                assert_eq!(PackedMatrix::<f32>::file_bytes(k, n, dtype), None, "{k} x {n}");
            }
        }
    }
}
