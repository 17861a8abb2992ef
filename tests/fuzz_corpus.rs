//! Replays the fuzzing corpus, and mutations of it, without the fuzzer: what it once found stays fixed.
//!
//! `SPARSE_MIXER_FUZZ_INPUTS` is the number of mutations per reader; `make fuzz` tries a million. The inputs of a run are
//! the same every time, so that an input that failed is found again by its number.

#[path = "../fuzz/inputs.rs"]
mod inputs;

use std::path::Path;
use std::time::{Duration, Instant};

use allocation_counter::measure;

/// Mutations tried of every reader's corpus where the environment does not say.
const MUTATIONS: u64 = 6_000;
/// Larger seeds are only replayed: mutating them finds little and takes long.
const LARGEST_MUTATED: usize = 64 << 10;
/// No input of these sizes may take longer, or have more memory at once.
const LONGEST: Duration = Duration::from_secs(1);
const MOST_BYTES: u64 = 64 << 20;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no seeds", folder.display());
    let mut seeds: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    seeds.iter().for_each(|seed| run(seed));
    seeds.retain(|seed| seed.len() <= LARGEST_MUTATED);
    let mutations = match std::env::var("SPARSE_MIXER_FUZZ_INPUTS") {
        Ok(text) => text.parse().expect("SPARSE_MIXER_FUZZ_INPUTS: a number"),
        Err(_) => MUTATIONS,
    };
    let start = Instant::now();
    let (mut slowest, mut most) = (Duration::ZERO, 0);
    for number in 0..mutations {
        let seed = &seeds[number as usize % seeds.len()];
        let other = &seeds[(number / 7) as usize % seeds.len()];
        let input = mutated(seed, other, number);
        let begun = Instant::now();
        let mut outcome = Ok(());
        let memory = measure(|| outcome = std::panic::catch_unwind(|| run(&input)));
        if let Err(panic) = outcome {
            let path = std::env::temp_dir().join(format!("sparse-mixer-{target}-{number}"));
            std::fs::write(&path, &input).unwrap();
            eprintln!("{target}: input {number} panics; it is in {}", path.display());
            std::panic::resume_unwind(panic);
        }
        let took = begun.elapsed();
        slowest = slowest.max(took);
        assert!(took < LONGEST, "{target}: input {number} takes {took:?}");
        most = most.max(memory.bytes_max);
        assert!(memory.bytes_max <= MOST_BYTES, "{target}: input {number} takes {} bytes", memory.bytes_max);
    }
    let seconds = start.elapsed().as_secs();
    println!(
        "{target}: {mutations} inputs in {seconds} s, slowest {slowest:?}, most memory {} KiB",
        most >> 10
    );
}

/// The seed with a few bytes changed, removed or repeated, or with a piece of `other`; the same for the same `number`.
fn mutated(seed: &[u8], other: &[u8], number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = |below: usize| {
        // Knuth's multiplier; the upper half is random enough to choose places.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    let mut bytes = seed.to_vec();
    for _ in 0..1 + draw(4) {
        if bytes.is_empty() {
            break;
        }
        // Half of the changes hit the first bytes, where the structure of most formats is.
        let reach = if draw(2) == 0 { bytes.len().min(256) } else { bytes.len() };
        let place = draw(reach);
        match draw(7) {
            0 => bytes[place] ^= 1 << draw(8),
            1 => bytes[place] = [0, 1, 0x7f, 0x80, 0xff][draw(5)],
            2 => bytes.truncate(place),
            3 => {
                bytes.remove(place);
            }
            4 => {
                // A piece of another seed, over or between.
                let from = draw(other.len());
                let piece = &other[from..(from + 1 + draw(64)).min(other.len())];
                let end = if draw(2) == 0 { place } else { (place + piece.len()).min(bytes.len()) };
                bytes.splice(place..end, piece.iter().copied());
            }
            5 => {
                // A number in little or big endian, where lengths and offsets are.
                let value = [0u64, 1, u64::MAX, 1 << 31, 1 << 63, draw(1 << 16) as u64][draw(6)];
                let width = [2, 4, 8][draw(3)].min(bytes.len() - place);
                let ends = if draw(2) == 0 { value.to_le_bytes() } else { value.to_be_bytes() };
                bytes[place..place + width].copy_from_slice(&ends[..width]);
            }
            _ => {
                let end = (place + 1 + draw(16)).min(bytes.len());
                let piece = bytes[place..end].to_vec();
                bytes.splice(place..place, piece);
            }
        }
    }
    bytes
}

#[test]
fn safetensors() {
    replay("safetensors", inputs::safetensors);
}

#[test]
fn packed() {
    replay("packed", inputs::packed);
}

#[test]
fn flax() {
    replay("flax", inputs::flax);
}

#[test]
fn tensor_bundle() {
    replay("tensor_bundle", inputs::tensor_bundle);
}

#[test]
fn npz() {
    replay("npz", inputs::npz);
}

#[test]
fn config() {
    replay("config", inputs::config);
}

#[test]
fn open() {
    replay("open", inputs::open);
}

#[test]
fn head() {
    replay("head", inputs::head);
}

#[test]
fn schedule() {
    replay("schedule", inputs::schedule);
}
