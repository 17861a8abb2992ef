//! Replays the fuzzing corpus, and mutations of it, without the fuzzer: what it once found stays fixed.

#[path = "../fuzz/inputs.rs"]
mod inputs;

use std::path::Path;

/// Mutations tried of every corpus file.
const MUTATIONS: u64 = 2_000;
/// Larger seeds are only replayed: mutating them finds little and takes long.
const LARGEST_MUTATED: usize = 64 << 10;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no seeds", folder.display());
    for file in files {
        let seed = std::fs::read(&file).unwrap();
        run(&seed);
        if seed.len() <= LARGEST_MUTATED {
            for number in 0..MUTATIONS {
                run(&mutated(&seed, number));
            }
        }
    }
}

/// The seed with a few bytes changed, removed or repeated, the same for the same `number`.
fn mutated(seed: &[u8], number: u64) -> Vec<u8> {
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
        match draw(5) {
            0 => bytes[place] ^= 1 << draw(8),
            1 => bytes[place] = [0, 1, 0x7f, 0x80, 0xff][draw(5)],
            2 => bytes.truncate(place),
            3 => {
                bytes.remove(place);
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
