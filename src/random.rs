//! Random numbers as a function of (seed, purpose, place, index): the same whatever the thread count, re-made at will.
//!
//! The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). Its key is the
//! seed. The upper half of its counter says what the numbers are for: the purpose in 8 bits, and in 56 bits which layer
//! or weight. So no two uses see the same numbers, even where all have the same seed.

use crate::kernels::philox;
pub use crate::kernels::unit;

/// Declares [`Purpose`] and the list of all of them from one place: a purpose cannot be missing from the list, and two of
/// the same number do not compile.
macro_rules! purposes {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What random numbers are for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Purpose { $($(#[$doc])* $name = $number,)* }

        impl Purpose {
            /// Every purpose.
            #[cfg(test)]
            const ALL: &[Purpose] = &[$(Purpose::$name),*];
        }
    };
}

purposes! {
    /// Initial values of an encoder's weight; the place is [`place_of`] its name.
    EncoderWeight = 1,
    /// Initial values of a head's weight; the place is [`place_of`] its name.
    HeadWeight = 2,
    /// Dropout of the embeddings, after their norm.
    EmbeddingDropout = 3,
    /// Dropout of attention weights; the place is the layer, here and below.
    AttentionDropout = 4,
    /// Dropout of the output of mixing or attention.
    MixingDropout = 5,
    /// Dropout of the output of the dense feed-forward.
    FeedForwardDropout = 6,
    /// Dropout of expert outputs.
    ExpertDropout = 7,
    /// Jitter of the router's inputs.
    RouterJitter = 8,
    /// Dropout of a head's features; the place is [`place_of`] the name of the head's last layer, here and below.
    HeadFeatureDropout = 9,
    /// Dropout before a head's last layer.
    HeadDropout = 10,
}

/// Bits of a stream's place.
const PLACE_BITS: u32 = 56;

/// The place of a weight or head in a stream, from its name: 56 bits of FNV-1a (64 bits), folded as its authors advise.
pub fn place_of(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> PLACE_BITS) ^ (hash & ((1 << PLACE_BITS) - 1))
}

/// One use of randomness: a key and the upper half of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RngStream {
    seed: u64,
    id: u64,
}

impl RngStream {
    /// The stream of `seed` for a purpose at a place, of which 56 bits count. Different triples are independent.
    pub fn new(seed: u64, purpose: Purpose, place: u64) -> Self {
        debug_assert!(place >> PLACE_BITS == 0, "place {place} has more than {PLACE_BITS} bits");
        RngStream { seed, id: ((purpose as u64) << PLACE_BITS) | place }
    }

    /// Seed, and purpose with place.
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
        let stream = RngStream::new(7, Purpose::MixingDropout, 3);
        let mut whole = [0; 41];
        stream.for_each_word(0, 41, |i, w| whole[i] = w);
        for first in 0..20 {
            stream.for_each_word(first, 21, |i, w| assert_eq!(w, whole[first as usize + i]));
        }
    }

    /// Every purpose at a few places of one seed: no pair shares words, and no pair goes together in rank.
    #[test]
    fn all_pairs_of_uses_are_unrelated() {
        const COUNT: usize = 4096;
        let places = [0, 1, 5, place_of("word_embeddings/embeddings"), place_of("predictions/logits/kernel")];
        for seed in [0, 1 << 40] {
            let mut uses = Vec::new();
            for &purpose in Purpose::ALL {
                for place in places {
                    let mut words = vec![0; COUNT];
                    RngStream::new(seed, purpose, place).for_each_word(0, COUNT, |i, word| words[i] = word);
                    uses.push(((purpose, place), words));
                }
            }
            let pairs_of_words: Vec<std::collections::HashSet<[u32; 2]>> =
                uses.iter().map(|(_, words)| words.windows(2).map(|w| [w[0], w[1]]).collect()).collect();
            let ranks: Vec<Vec<f64>> = uses.iter().map(|(_, words)| centred_ranks(words)).collect();
            for i in 0..uses.len() {
                for j in 0..i {
                    let (one, other) = (uses[i].0, uses[j].0);
                    let shared = pairs_of_words[i].intersection(&pairs_of_words[j]).count();
                    assert_eq!(shared, 0, "{one:?} and {other:?} share words");
                    let [xy, xx] =
                        [j, i].map(|k| ranks[i].iter().zip(&ranks[k]).map(|(x, y)| x * y).sum::<f64>());
                    // Six standard deviations: once in a billion pairs, and the streams are fixed.
                    let correlation = xy / xx;
                    assert!(
                        correlation.abs() < 6.0 / (COUNT as f64).sqrt(),
                        "{one:?}, {other:?}: {correlation}"
                    );
                }
            }
        }
    }

    /// Ranks less their mean.
    fn centred_ranks(words: &[u32]) -> Vec<f64> {
        let mut order: Vec<usize> = (0..words.len()).collect();
        order.sort_by_key(|&i| words[i]);
        let mut ranks = vec![0.0; words.len()];
        for (rank, i) in order.into_iter().enumerate() {
            ranks[i] = rank as f64 - (words.len() - 1) as f64 / 2.0;
        }
        ranks
    }

    #[test]
    fn every_weight_of_the_largest_encoder_has_a_place_of_its_own() {
        let layers: Vec<usize> = (0..4096).collect();
        let config = crate::config::SparseMixerConfig {
            num_layers: layers.len(),
            attention_layers: layers.iter().copied().filter(|layer| layer % 2 == 0).collect(),
            moe_layers: layers.iter().copied().filter(|layer| layer % 4 < 2).collect(),
            ..Default::default()
        };
        let specs = crate::network::specs(&config);
        let places: std::collections::HashSet<u64> = specs.iter().map(|spec| place_of(&spec.name)).collect();
        assert_eq!(places.len(), specs.len());
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
