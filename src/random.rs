//! Random numbers as a function of (seed, stream, index): the same whatever the thread count, re-made at will.
//!
//! The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

use crate::kernels::philox;
pub use crate::kernels::unit;

/// One use of randomness: a key and the upper half of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RngStream {
    seed: u64,
    id: u64,
}

impl RngStream {
    /// The stream of `seed` for use number `id`; different pairs are independent.
    pub fn new(seed: u64, id: u64) -> Self {
        RngStream { seed, id }
    }

    /// Seed and number of the use.
    pub fn key(&self) -> [u64; 2] {
        [self.seed, self.id]
    }

    /// Four random words for counter `block`.
    fn words(&self, block: u64) -> [u32; 4] {
        let counter = [block as u32, (block >> 32) as u32, self.id as u32, (self.id >> 32) as u32];
        philox(counter.map(|part| [part]), [self.seed as u32, (self.seed >> 32) as u32]).map(|[word]| word)
    }

    /// Calls `visit(i, word)` for the words number `first + i`, `i < count`.
    pub fn for_each_word(&self, first: u64, count: usize, mut visit: impl FnMut(usize, u32)) {
        let mut done = 0;
        while done < count {
            let at = first + done as u64;
            let words = self.words(at / 4);
            let skip = (at % 4) as usize;
            let take = (4 - skip).min(count - done);
            for (i, &word) in words[skip..skip + take].iter().enumerate() {
                visit(done + i, word);
            }
            done += take;
        }
    }
}

/// A word as a number in `(0, 1)`, 32 bits.
pub fn open_unit(word: u32) -> f64 {
    (f64::from(word) + 0.5) * (1.0 / 4_294_967_296.0)
}

/// The quantile function of the standard normal distribution at `p` in `(0, 1)`, relative error below 1e-8.
///
/// Source: P. J. Acklam, "An algorithm for computing the inverse normal cumulative distribution function" (2003).
pub fn normal_quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    const B: [f64; 5] = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
    ];
    const C: [f64; 6] = [
        -7.784_894_002_430_293e-3,
        -3.223_964_580_411_365e-1,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 4] =
        [7.784_695_709_041_462e-3, 3.224_671_290_700_398e-1, 2.445_134_137_142_996, 3.754_408_661_907_416];
    const LOW: f64 = 0.024_25;
    let horner = |coefficients: &[f64], x: f64| coefficients.iter().fold(0.0, |sum, c| sum * x + c);
    if (LOW..=1.0 - LOW).contains(&p) {
        let q = p - 0.5;
        let r = q * q;
        horner(&A, r) * q / (horner(&B, r) * r + 1.0)
    } else {
        let q = (-2.0 * p.min(1.0 - p).ln()).sqrt();
        let x = horner(&C, q) / (horner(&D, q) * q + 1.0);
        if p < LOW { x } else { -x }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_do_not_depend_on_where_a_run_begins() {
        let stream = RngStream::new(7, 3);
        let mut whole = [0; 41];
        stream.for_each_word(0, 41, |i, w| whole[i] = w);
        for first in 0..20 {
            stream.for_each_word(first, 21, |i, w| assert_eq!(w, whole[first as usize + i]));
        }
    }

    #[test]
    fn normal_quantile_inverts_known_points() {
        for (p, x) in
            [(0.5, 0.0), (0.975, 1.959_963_985), (0.001, -3.090_232_306), (0.999_999, 4.753_424_309)]
        {
            assert!((normal_quantile(p) - x).abs() < 1e-7, "{p}: {}", normal_quantile(p));
        }
    }
}
