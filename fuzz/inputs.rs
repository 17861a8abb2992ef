//! What each fuzz target does with its input. Shared with the replay of the corpus, `tests/fuzz_corpus.rs`.
#![allow(dead_code, reason = "each target uses one function")]

use sparse_mixer::checkpoint::{
    FileBytes, Flax, LoadPlan, Npz, Safetensors, TargetWeight, TensorBundle, TensorSource, open_bytes,
};
use sparse_mixer::config::SparseMixerConfig;
use sparse_mixer::heads::HeadConfig;
use sparse_mixer::optim::Schedule;
use sparse_mixer::params::Weight;
use sparse_mixer::runtime::never;
use sparse_mixer::{Error, Result};

const LABEL: &str = "input";

pub fn safetensors(data: &[u8]) {
    read_all(Safetensors::from_bytes(FileBytes::from(data.to_vec()), LABEL));
}

/// Packed weights are taken as layers use them, too.
pub fn packed(data: &[u8]) {
    let source = Safetensors::from_bytes(FileBytes::from(data.to_vec()), LABEL);
    if let Ok(source) = &source {
        for index in 0..source.entries().len() {
            if let Some((form, part)) = source.packed(index) {
                let weight = Weight::<f32>::of_file(form, part).expect("its length has been checked");
                assert_eq!(Some(weight.to_vec().len()), form.values());
                assert!(!weight.bytes_for_file().is_empty());
            }
        }
    }
    read_all(source);
}

pub fn npz(data: &[u8]) {
    read_all(Npz::from_bytes(FileBytes::from(data.to_vec()), LABEL));
}

/// The input is one or more files, each behind its length (u32): first the replicated one, then shards.
pub fn flax(data: &[u8]) {
    let files = split(data).into_iter().map(|file| FileBytes::from(file.to_vec())).collect();
    read_all(Flax::from_bytes(files, LABEL));
}

/// The input is the index and the data files, each behind its length (u32).
pub fn tensor_bundle(data: &[u8]) {
    let files = split(data);
    let Some((index, shards)) = files.split_first() else { return };
    let shards = shards.iter().map(|file| FileBytes::from(file.to_vec())).collect();
    read_all(TensorBundle::from_bytes(index, shards, LABEL));
}

pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(config) = SparseMixerConfig::from_json(text) {
        let again = SparseMixerConfig::from_json(&config.to_json()).expect("what is written can be read");
        assert_eq!(again.to_json(), config.to_json());
        assert!(!sparse_mixer::network::specs(&config).is_empty());
    }
}

/// A file of a format whose format is told by its content.
pub fn open(data: &[u8]) {
    match open_bytes(FileBytes::from(data.to_vec()), LABEL) {
        Ok(source) => read_source(&*source),
        Err(error) => check(&error),
    }
}

pub fn head(data: &[u8]) {
    if let Ok(config) = serde_json::from_slice::<HeadConfig>(data)
        && config.validate().is_ok()
    {
        assert!(!config.specs().expect("checked").is_empty());
    }
}

pub fn schedule(data: &[u8]) {
    if let Ok(schedule) = serde_json::from_slice::<Schedule>(data)
        && schedule.validate().is_ok()
    {
        for step in [0.0, 1.0, 1000.0, 1.8e19] {
            // Whether it is a rate is checked by every update.
            std::hint::black_box(schedule.at(step));
        }
    }
}

/// Joins files in the form that [`split`] takes apart.
pub fn join(files: &[&[u8]]) -> Vec<u8> {
    let mut joined = Vec::new();
    for file in files {
        joined.extend((file.len() as u32).to_le_bytes());
        joined.extend(*file);
    }
    joined
}

fn split(mut data: &[u8]) -> Vec<&[u8]> {
    let mut files = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        let (file, rest) = rest.split_at((u32::from_le_bytes(*length) as usize).min(rest.len()));
        files.push(file);
        data = rest;
    }
    files
}

/// Lists, matches and reads everything. Errors are fine if they name the file; panics are not.
fn read_all<T: TensorSource>(source: Result<T>) {
    match source {
        Ok(source) => read_source(&source),
        Err(error) => check(&error),
    }
}

/// Some weights of the encoder in `tests/golden/foreign`, which every scheme of names has.
fn of_a_bert() -> Vec<TargetWeight> {
    let weights: [(&str, &[usize]); 4] = [
        ("word_embeddings/embeddings", &[30, 16]),
        ("transformer/layer_0/self_attention/query/kernel", &[16, 2, 8]),
        ("transformer/layer_1/output_layer_norm/gamma", &[16]),
        ("pooler_transform/kernel", &[16, 16]),
    ];
    weights.iter().map(|&(name, shape)| TargetWeight { name: name.into(), shape: shape.into() }).collect()
}

fn read_source(source: &dyn TensorSource) {
    let targets: Vec<TargetWeight> = source
        .entries()
        .iter()
        .take(100)
        .map(|entry| TargetWeight { name: entry.name.clone(), shape: entry.shape.clone() })
        .collect();
    for targets in [targets, of_a_bert()] {
        let plan = LoadPlan::of_source(source, &targets, None);
        for read in plan.iter().flat_map(|plan| &plan.reads) {
            match read.read(source, &targets[read.target], &never) {
                Ok(tensor) => assert_eq!(tensor.shape(), targets[read.target].shape),
                Err(error) => check(&error),
            }
        }
    }
    for index in 0..source.entries().len() {
        match source.read(index, &never) {
            Ok(tensor) => {
                let _ = tensor.to_f32();
            }
            Err(error) => check(&error),
        }
        source.release(index);
    }
}

fn check(error: &Error) {
    assert!(matches!(error, Error::Checkpoint { path, .. } if path == LABEL), "{error}");
}
