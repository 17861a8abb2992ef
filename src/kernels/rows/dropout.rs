//! Random words, and dropout by them, for many elements at once.
//!
//! The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): words number
//! `4 b` to `4 b + 3` of a stream are a function of its key, its identity and `b`.

use crate::kernels::isa::{Isa, Real, Simd, VectorLoop};

/// Blocks of four words that are made side by side.
const LANES: usize = 16;

/// The four words of each of `N` counters, lane by lane.
#[inline(always)]
pub fn philox<const N: usize>(counter: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    const M: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const W: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    const LOW: u64 = 0xffff_ffff;
    // In lanes of 64 bits, as the products are; what stands above the lower half does not count.
    let [mut c0, mut c1, mut c2, mut c3] = counter.map(|part| part.map(u64::from));
    for _ in 0..10 {
        for lane in 0..N {
            let p0 = M[0] * (c0[lane] & LOW);
            let p1 = M[1] * (c2[lane] & LOW);
            c0[lane] = (p1 >> 32) ^ c1[lane] ^ u64::from(key[0]);
            c1[lane] = p1;
            c2[lane] = (p0 >> 32) ^ c3[lane] ^ u64::from(key[1]);
            c3[lane] = p0;
        }
        key = [key[0].wrapping_add(W[0]), key[1].wrapping_add(W[1])];
    }
    [c0, c1, c2, c3].map(|part| part.map(|word| word as u32))
}

/// A word as a number in `[0, 1)`, 24 bits.
#[inline(always)]
pub fn unit(word: u32) -> f32 {
    // Below 2^24: signed conversion, which every instruction set has, is the same.
    (word >> 8) as i32 as f32 * (1.0 / 16_777_216.0)
}

/// Sets elements of `x` to 0 where their word is below `rate`, and multiplies the others by `keep`. Element `i` belongs
/// to word `first + i` of the stream `id` of `seed`.
pub fn dropout<R: Real>(isa: Isa, [seed, id]: [u64; 2], first: u64, rate: f32, keep: R, x: &mut [R]) {
    f32::dispatch(isa, Dropout { seed, id, first, rate, keep, x });
}

struct Dropout<'a, R> {
    seed: u64,
    id: u64,
    first: u64,
    rate: f32,
    keep: R,
    x: &'a mut [R],
}

impl<R: Real> VectorLoop<f32> for Dropout<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<Elem = f32>>(self, _simd: S) {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        // `unit(word) >= rate`, in whole numbers: both sides times 2^24 are exact.
        let least = (f64::from(self.rate) * 16_777_216.0).ceil() as u32;
        let choose = |x: &mut R, word: u32| {
            *x = if word >> 8 >= least { *x * self.keep } else { R::ZERO };
        };
        let mut done = 0;
        while done < self.x.len() {
            let at = self.first + done as u64;
            let blocks: [u64; LANES] = std::array::from_fn(|lane| at / 4 + lane as u64);
            let counter = [
                blocks.map(|block| block as u32),
                blocks.map(|block| (block >> 32) as u32),
                [self.id as u32; LANES],
                [(self.id >> 32) as u32; LANES],
            ];
            let by_place = philox(counter, key);
            let mut words = [0; 4 * LANES];
            for (lane, four) in words.chunks_exact_mut(4).enumerate() {
                four.iter_mut().zip(&by_place).for_each(|(word, place)| *word = place[lane]);
            }
            let skip = (at % 4) as usize;
            let rest = &mut self.x[done..];
            if let (0, Some(whole)) = (skip, rest.first_chunk_mut::<{ 4 * LANES }>()) {
                whole.iter_mut().zip(words).for_each(|(x, word)| choose(x, word));
                done += words.len();
            } else {
                let count = rest.len().min(words.len() - skip);
                rest.iter_mut().zip(&words[skip..]).for_each(|(x, &word)| choose(x, word));
                done += count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Element by element, from the scalar generator.
    fn plain(first: u64, x: &mut [f32]) {
        for (at, x) in (first..).zip(x) {
            let counter = [[(at / 4) as u32], [((at / 4) >> 32) as u32], [5], [6]];
            let [word] = philox(counter, [3, 4])[(at % 4) as usize];
            *x = if unit(word) >= 0.25 { *x * 2.0 } else { 0.0 };
        }
    }

    #[test]
    fn philox_gives_the_published_vectors() {
        let word = |counter: [u32; 4], key| philox(counter.map(|part| [part]), key).map(|[word]| word);
        assert_eq!(word([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(word([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            word([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn every_run_of_elements_gets_its_own_words() {
        let (seed, id) = (3 | 4 << 32, 5 | 6 << 32);
        for isa in Isa::available() {
            for first in [0, 1, 62, 4 * u64::from(u32::MAX) - 9] {
                for len in [0, 1, 3, 64, 130, 257] {
                    let mut expected: Vec<f32> = (0..len).map(|i| i as f32 + 1.0).collect();
                    let mut got = expected.clone();
                    plain(first, &mut expected);
                    dropout(isa, [seed, id], first, 0.25, 2.0, &mut got);
                    assert_eq!(got, expected, "{} {first} {len}", isa.name());
                }
            }
        }
    }
}
