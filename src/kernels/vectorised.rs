//! Plain loops compiled for the machine's vectors.

use super::Isa;

/// A loop over numbers, simple enough for the compiler to vectorise.
pub trait Loop {
    /// Its result.
    type Output;
    /// Runs it. Implementations are `#[inline(always)]`, to be compiled with the features of their caller.
    fn run(self) -> Self::Output;
}

/// Runs `it` compiled for `isa`. Without fused multiply-add: the result has the same bits everywhere.
pub fn vectorised<L: Loop>(isa: Isa, it: L) -> L::Output {
    #[cfg(target_arch = "x86_64")]
    {
        use super::isa::Level;

        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
        fn avx512<L: Loop>(it: L) -> L::Output {
            it.run()
        }
        #[target_feature(enable = "avx2")]
        fn avx2<L: Loop>(it: L) -> L::Output {
            it.run()
        }
        if isa.level() >= Level::Avx512 {
            // SAFETY: the level proves the features.
            return unsafe { avx512(it) };
        }
        if isa.level() >= Level::Avx2 {
            // SAFETY: the level proves the features.
            return unsafe { avx2(it) };
        }
    }
    let _ = isa;
    it.run()
}
