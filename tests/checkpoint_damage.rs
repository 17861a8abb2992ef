//! Damaged and hostile weight files: an error that names the file, never a panic.

use std::path::PathBuf;

use proptest::prelude::*;
use sparse_mixer::checkpoint::{
    Dtype, FileBytes, Flax, LoadPlan, Npz, Safetensors, TargetWeight, TensorBundle, TensorSource,
    TensorToWrite, send_f32, write_safetensors,
};
use sparse_mixer::runtime::never;
use sparse_mixer::{Error, Result};

const LABEL: &str = "the-file";

fn golden(path: &str) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/golden", path].iter().collect();
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

type Open = fn(Vec<Vec<u8>>) -> Result<Box<dyn TensorSource>>;

/// A reader and valid input for it, made of one or more files.
struct Case {
    name: &'static str,
    files: Vec<Vec<u8>>,
    open: Open,
}

fn single<T: TensorSource + 'static>(
    mut files: Vec<Vec<u8>>,
    open: impl Fn(FileBytes, &str) -> Result<T>,
) -> Result<Box<dyn TensorSource>> {
    Ok(Box::new(open(FileBytes::from(files.remove(0)), LABEL)?))
}

fn cases() -> Vec<Case> {
    let flax = |files: Vec<Vec<u8>>| -> Result<Box<dyn TensorSource>> {
        Ok(Box::new(Flax::from_bytes(files.into_iter().map(FileBytes::from).collect(), LABEL)?))
    };
    let linear = "jax/ckpt_linear_2_devices";
    vec![
        Case {
            name: "safetensors",
            files: vec![safetensors_file()],
            open: |files| single(files, Safetensors::from_bytes),
        },
        Case {
            name: "npz, stored",
            files: vec![golden("checkpoints/weights.npz")],
            open: |files| single(files, Npz::from_bytes),
        },
        Case {
            name: "npz, deflated",
            files: vec![golden("jax/f_net_dft.npz")],
            open: |files| single(files, Npz::from_bytes),
        },
        Case {
            name: "flax, sharded",
            files: vec![
                golden(&format!("{linear}/replicated_checkpoint_3")),
                golden(&format!("{linear}/shard-00000-of-00001_checkpoint_3")),
            ],
            open: flax,
        },
        Case {
            name: "tensor bundle",
            files: vec![
                golden("checkpoints/encoder/ckpt.index"),
                golden("checkpoints/encoder/ckpt.data-00000-of-00001"),
            ],
            open: |mut files| {
                let data = files.split_off(1).into_iter().map(FileBytes::from).collect();
                Ok(Box::new(TensorBundle::from_bytes(&files[0], data, LABEL)?))
            },
        },
    ]
}

/// The weights of `checkpoints/weights.npz` in our own format.
fn safetensors_file() -> Vec<u8> {
    let npz = Npz::from_bytes(FileBytes::from(golden("checkpoints/weights.npz")), LABEL).unwrap();
    let values: Vec<_> =
        (0..npz.entries().len()).map(|i| npz.read(i, &never).unwrap().to_f32().unwrap()).collect();
    let tensors = npz
        .entries()
        .iter()
        .zip(&values)
        .map(|(entry, values)| TensorToWrite {
            name: entry.name.clone(),
            dtype: Dtype::F32,
            shape: entry.shape.clone(),
            content: Box::new(|sink| send_f32(values, sink)),
        })
        .collect();
    let name = format!("sparse-mixer-damage-{}-{:?}", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name);
    write_safetensors(&path, &Default::default(), tensors, &never).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    bytes
}

/// Opens the files, lists, matches and reads everything. The only failures allowed are errors that name the file.
fn exercise(case: &Case, files: Vec<Vec<u8>>) -> Result<Vec<(String, Vec<u8>)>> {
    let outcome = (case.open)(files).and_then(|source| {
        let targets: Vec<_> = source
            .entries()
            .iter()
            .map(|entry| TargetWeight { name: entry.name.clone(), shape: entry.shape.clone() })
            .collect();
        // Any answer will do, as long as there is one.
        drop(LoadPlan::new(source.entries(), &targets, None));
        let mut contents = Vec::new();
        for (index, entry) in source.entries().iter().enumerate() {
            match source.read(index, &never) {
                Ok(tensor) => {
                    assert_eq!(tensor.shape(), entry.shape);
                    contents.push((entry.name.clone(), tensor.bytes().to_vec()));
                }
                Err(_) if entry.dtype.size().is_none() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(contents)
    });
    if let Err(error) = &outcome {
        assert!(matches!(error, Error::Checkpoint { .. }), "{}: {error}", case.name);
        assert!(error.to_string().starts_with(LABEL), "{}: {error}", case.name);
    }
    outcome
}

#[test]
fn undamaged_files_are_read() {
    for case in cases() {
        assert!(exercise(&case, case.files.clone()).unwrap().len() > 20, "{}", case.name);
    }
}

#[test]
fn truncated_files_are_refused() {
    for case in cases() {
        for file in 0..case.files.len() {
            for percent in 0..100 {
                let mut files = case.files.clone();
                let length = files[file].len() * percent / 100;
                files[file].truncate(length);
                assert!(exercise(&case, files).is_err(), "{}: file {file} cut at {percent}%", case.name);
            }
        }
    }
}

#[test]
fn formats_with_checksums_notice_every_flipped_byte_of_content() {
    for case in cases().into_iter().filter(|case| !case.name.starts_with("flax")) {
        let file = case.files.len() - 1;
        let good = exercise(&case, case.files.clone()).unwrap();
        for place in (0..case.files[file].len()).step_by(101) {
            let mut files = case.files.clone();
            files[file][place] ^= 0x10;
            // Unused bytes (times, padding, other objects) may change without harm, and a tensor may become one of a
            // kind that is not read; what is read must be right.
            for tensor in exercise(&case, files).unwrap_or_default() {
                assert!(good.contains(&tensor), "{}: byte {place} in {}", case.name, tensor.0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bits_never_panic(seed in any::<u64>(), flips in 1usize..6, near_start in any::<bool>()) {
        let mut state = seed | 1;
        let mut next = move || {
            // Knuth's multiplier; the upper half is random enough to choose places.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        for case in cases() {
            let mut files = case.files.clone();
            for _ in 0..flips {
                let file = next() % files.len();
                // Structure is at the start or at the end, content in between.
                let reach = if near_start { files[file].len().min(600) } else { files[file].len() };
                let from_end = next() % 2 == 0;
                let place = next() % reach;
                let place = if from_end { files[file].len() - 1 - place } else { place };
                files[file][place] ^= 1 << (next() % 8);
            }
            let _ = exercise(&case, files);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), keep in 0usize..64) {
        for case in cases() {
            // Random bytes behind an honest beginning get further than random bytes alone.
            let mut files = case.files.clone();
            files[0].truncate(keep);
            files[0].extend(&bytes);
            let _ = exercise(&case, files);
        }
    }
}
