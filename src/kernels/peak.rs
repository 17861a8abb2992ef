//! The multiply-add rate of the machine, the yardstick of the products.

use super::isa::{Isa, LANES, Real, Simd, VectorLoop};

/// Independent chains, where a vector is one register: enough to hide the latency of a multiply-add. With two registers
/// to a vector half of them do.
const CHAINS: usize = 12;

/// Runs `steps` rounds of independent multiply-adds on registers of `isa`; returns the floating-point operations done
/// and a value that depends on all of them.
#[doc(hidden)]
pub fn multiply_adds<R: Real>(isa: Isa, steps: usize) -> (usize, R) {
    struct Chains(usize);
    impl<R: Real> VectorLoop<R> for Chains {
        type Output = (usize, R);
        #[inline(always)]
        fn run<S: Simd<Elem = R>>(self, simd: S) -> (usize, R) {
            let factor = simd.constant(0.999);
            let chains = CHAINS * S::TILE_VECS / 2;
            // Different starts, or the compiler would see that one chain is enough.
            let mut sums = std::array::from_fn::<_, CHAINS, _>(|i| simd.constant(i as f64));
            for _ in 0..self.0 {
                for s in &mut sums[..chains] {
                    *s = simd.mul_add(*s, factor, factor);
                }
            }
            let total = sums.into_iter().fold(simd.zero(), |a, b| simd.add(a, b));
            (2 * self.0 * chains * LANES, simd.sum(total))
        }
    }
    R::dispatch(isa, Chains(steps))
}
