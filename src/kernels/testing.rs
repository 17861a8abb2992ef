//! Numbers and sizes for kernel tests.

use std::cell::Cell;

use super::isa::Real;

thread_local! {
    /// Multiply-adds of this thread's products so far.
    pub static MULTIPLY_ADDS: Cell<usize> = const { Cell::new(0) };
}

/// Whether Miri, which takes minutes for what others do at once, does without a product of these sizes.
pub fn too_much_for_miri(rows: usize, k: usize, n: usize) -> bool {
    cfg!(miri) && (rows % 8 != 1 || rows > 25 || rows * k * n > 3000)
}

/// `len` numbers in [-1, 1) that depend on `seed` only.
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Largest difference between `f32` results and the plain formula in `f64`.
const TOLERANCE: f64 = 2e-6;

pub const LENGTHS: [usize; 12] = [1, 2, 3, 15, 16, 17, 40, 63, 64, 65, 130, 512];

pub fn numbers(len: usize, seed: usize) -> Vec<f64> {
    (0..len).map(|i| f64::from((((i + seed * 977) * 7919) % 2003) as f32 / 1000.0 - 1.0)).collect()
}

pub fn cast<R: Real>(x: &[f64]) -> Vec<R> {
    x.iter().map(|&x| R::from_f64(x)).collect()
}

pub fn assert_close<R: Real>(got: &[R], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len());
    let tolerance = if R::f32_slice(got).is_some() { TOLERANCE } else { 1e-12 };
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got.to_f64() - expected).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "{what}: {got:?} not {expected} at {i}");
    }
}

/// Runs `check` for each instruction set in `f32`, and in `f64`.
macro_rules! for_all {
    ($check:ident) => {
        for isa in Isa::available() {
            $check::<f32>(isa);
        }
        $check::<f64>(Isa::PORTABLE);
    };
}
pub(crate) use for_all;
