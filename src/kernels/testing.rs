//! Numbers and sizes for kernel tests.

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
