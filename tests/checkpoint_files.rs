//! Weight files written by TensorFlow, Flax and NumPy, read and matched without any of them.

use std::path::PathBuf;

use sparse_mixer::checkpoint::matching::names::{Scheme, foreign_names};
use sparse_mixer::checkpoint::{Dtype, Entry, LoadPlan, TargetWeight, TensorSource, Transform, open};
use sparse_mixer::runtime::never;

fn assert_complete(plan: &LoadPlan) {
    assert!(
        plan.missing.is_empty()
            && plan.unexpected.is_empty()
            && plan.shape_mismatches.is_empty()
            && plan.dtype_mismatches.is_empty(),
        "{plan:?}"
    );
}

fn golden(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/golden", path].iter().collect()
}

fn targets_of(source: &dyn TensorSource) -> Vec<TargetWeight> {
    let targets = |entry: &Entry| TargetWeight { name: entry.name.clone(), shape: entry.shape.clone() };
    source.entries().iter().map(targets).collect()
}

fn read_f32(source: &dyn TensorSource, index: usize) -> Vec<f32> {
    source.read(index, &never).unwrap().to_f32().unwrap()
}

#[test]
fn every_file_that_tensorflow_writes_has_the_same_weights() {
    let weights = open(&golden("checkpoints/weights.npz")).unwrap();
    let targets = targets_of(weights.as_ref());
    for (path, scheme, root) in [
        ("functional", Scheme::TfCheckpoint, "layer_with_weights-0"),
        ("functional/ckpt", Scheme::TfCheckpoint, "layer_with_weights-0"),
        ("functional/ckpt.index", Scheme::TfCheckpoint, "layer_with_weights-0"),
        ("encoder/ckpt", Scheme::TfCheckpoint, "encoder"),
        ("pretrainer/ckpt", Scheme::TfCheckpoint, "encoder"),
        ("saved_model", Scheme::SavedModel, "layer_with_weights-0"),
        ("weights.npz", Scheme::Keras, ""),
    ] {
        let source = open(&golden("checkpoints").join(path)).unwrap();
        let plan = LoadPlan::of_source(source.as_ref(), &targets, None).unwrap();
        assert_complete(&plan);
        assert_eq!((plan.scheme, plan.root.as_str()), (scheme, root), "{path}");
        for (index, read) in plan.reads.iter().enumerate() {
            assert_eq!(read.target, index);
            let tensor = read.read(source.as_ref(), &targets[index], &never).unwrap();
            assert_eq!(
                tensor.to_f32().unwrap(),
                read_f32(weights.as_ref(), index),
                "{path}: {}",
                targets[index].name
            );
            source.release(read.entry);
        }
    }
}

#[test]
fn an_encoder_inside_a_classifier_is_found() {
    let weights = open(&golden("checkpoints/weights.npz")).unwrap();
    let targets = targets_of(weights.as_ref());
    let source = open(&golden("checkpoints/classifier/ckpt")).unwrap();
    let plan = LoadPlan::of_source(source.as_ref(), &targets, None).unwrap();
    assert_complete(&plan);
    assert_eq!(plan.reads.len(), targets.len());
    assert!(source.entries().len() > targets.len() + 2, "the classifier has more than the encoder");
}

#[test]
fn flax_folders_match_their_merged_parameters() {
    for (folder, step) in [("ckpt_linear_2_devices", 3), ("ckpt_bert_replicated_only", 2)] {
        let folder = golden("jax").join(folder);
        let source = open(&folder).unwrap();
        let expected = open(&folder.join("expected.npz")).unwrap();
        let mut compared = 0;
        for (index, entry) in expected.entries().iter().enumerate() {
            // The moments are called opt/mu in the expectation and opt_state/<n>/mu in the file.
            let ending = entry.name.trim_start_matches("opt/").to_owned();
            let is_parameter = entry.name.starts_with("params/");
            if !is_parameter && !entry.name.starts_with("opt/mu/") && !entry.name.starts_with("opt/nu/") {
                continue;
            }
            let found = source
                .entries()
                .iter()
                .position(|leaf| {
                    leaf.name == entry.name
                        || !is_parameter
                            && leaf.name.starts_with("opt_state/")
                            && leaf.name.ends_with(&format!("/{ending}"))
                })
                .unwrap_or_else(|| panic!("{}", entry.name));
            let leaf = &source.entries()[found];
            assert_eq!(leaf.shape, entry.shape, "{}", entry.name);
            assert_eq!(
                read_f32(source.as_ref(), found),
                read_f32(expected.as_ref(), index),
                "{}",
                entry.name
            );
            compared += 1;
        }
        assert!(compared > 60, "{compared} tensors");
        let step_entry = source.entries().iter().position(|leaf| leaf.name == "step").unwrap();
        assert_eq!(source.read(step_entry, &never).unwrap().bytes(), i32::to_le_bytes(step));
    }
}

/// Weights of the encoder in `jax/ckpt_linear_2_devices`: linear, linear + MoE, attention.
fn flax_targets() -> Vec<TargetWeight> {
    let (v, s, y, w, h, f, x, e, n, d) = (40, 12, 4, 16, 16, 24, 20, 4, 2, 8);
    let mut targets: Vec<(String, Vec<usize>)> = vec![
        ("word_embeddings/embeddings".into(), vec![v, w]),
        ("position_embedding/embeddings".into(), vec![s, w]),
        ("type_embeddings/embeddings".into(), vec![y, w]),
        ("embeddings/layer_norm/gamma".into(), vec![w]),
        ("embeddings/layer_norm/beta".into(), vec![w]),
        ("embedding_projection/kernel".into(), vec![w, h]),
        ("embedding_projection/bias".into(), vec![h]),
    ];
    for layer in 0..3 {
        let mut add = |name: &str, shape: &[usize]| {
            targets.push((format!("transformer/layer_{layer}/{name}"), shape.to_vec()));
        };
        if layer == 2 {
            for part in ["query", "key", "value"] {
                add(&format!("self_attention/{part}/kernel"), &[h, n, d]);
                add(&format!("self_attention/{part}/bias"), &[n, d]);
            }
            add("self_attention/attention_output/kernel", &[n, d, h]);
            add("self_attention/attention_output/bias", &[h]);
        } else {
            add("linear_transform/hidden_kernel", &[h, h]);
            add("linear_transform/seq_kernel", &[s, s]);
        }
        if layer == 1 {
            add("moe/experts/intermediate/kernel", &[e, h, x]);
            add("moe/experts/intermediate/bias", &[e, 1, x]);
            add("moe/experts/output/kernel", &[e, x, h]);
            add("moe/experts/output/bias", &[e, 1, h]);
            add("moe/router/router_weights/kernel", &[h, e]);
            add("moe/router/router_weights/bias", &[e]);
        } else {
            add("intermediate/kernel", &[h, f]);
            add("intermediate/bias", &[f]);
            add("output/kernel", &[f, h]);
            add("output/bias", &[h]);
        }
        for norm in ["self_attention_layer_norm", "output_layer_norm"] {
            add(&format!("{norm}/gamma"), &[h]);
            add(&format!("{norm}/beta"), &[h]);
        }
    }
    targets.push(("pooler_transform/kernel".into(), vec![h, h]));
    targets.push(("pooler_transform/bias".into(), vec![h]));
    targets.into_iter().map(|(name, shape)| TargetWeight { name, shape }).collect()
}

#[test]
fn flax_parameters_take_our_names_and_layout() {
    let targets = flax_targets();
    let source = open(&golden("jax/ckpt_linear_2_devices")).unwrap();
    let plan = LoadPlan::of_source(source.as_ref(), &targets, None).unwrap();
    assert_complete(&plan);
    assert_eq!((plan.scheme, plan.root.as_str()), (Scheme::Flax, "params/encoder"));
    let read = |name: &str| {
        let index = targets.iter().position(|weight| weight.name == name).unwrap();
        plan.reads[index].read(source.as_ref(), &targets[index], &never).unwrap().to_f32().unwrap()
    };
    let expected = open(&golden("jax/ckpt_linear_2_devices/expected.npz")).unwrap();
    let flax = |path: &str| {
        let name = format!("params/encoder/{path}");
        read_f32(expected.as_ref(), expected.entries().iter().position(|entry| entry.name == name).unwrap())
    };
    let (ours, theirs) =
        (read("transformer/layer_1/moe/experts/intermediate/kernel"), flax("expert_1/intermediate/kernel"));
    let (h, e, x) = (16, 4, 20);
    for (expert, row, column) in [(0, 0, 0), (3, 15, 19), (1, 7, 4), (2, 0, 19)] {
        assert_eq!(ours[(expert * h + row) * x + column], theirs[(row * e + expert) * x + column]);
    }
    let (ours, theirs) = (read("transformer/layer_1/moe/experts/output/bias"), flax("expert_1/output/bias"));
    for (expert, column) in [(0, 0), (3, 15), (1, 7)] {
        assert_eq!(ours[expert * h + column], theirs[column * e + expert]);
    }
}

/// The names in the manifests were observed in files that TensorFlow wrote.
#[test]
fn foreign_names_are_those_of_the_manifests() {
    let mut manifests = 0;
    for file in std::fs::read_dir(golden("manifests")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        let (mut targets, mut checkpoint, mut h5) = (Vec::new(), Vec::new(), Vec::new());
        for weight in manifest["weights"].as_array().unwrap() {
            let text = |key: &str| weight[key].as_str().unwrap();
            let shape: Vec<usize> = serde_json::from_value(weight["shape"].clone()).unwrap();
            let name = text("name");
            let entry = |name: String| Entry { name, dtype: Dtype::F32, shape: shape.clone() };
            checkpoint
                .push(entry(format!("model/net/{}/.ATTRIBUTES/VARIABLE_VALUE", text("checkpoint_key"))));
            h5.push(entry(format!("layers/sparse_mixer/{}", text("weights_h5_key"))));
            targets.push(TargetWeight { name: name.to_owned(), shape });
        }
        for (entries, scheme, root) in
            [(checkpoint, Scheme::TfCheckpoint, "model/net"), (h5, Scheme::WeightsH5, "layers/sparse_mixer")]
        {
            let plan = LoadPlan::new(&entries, &targets, None).unwrap();
            assert_complete(&plan);
            assert_eq!((plan.scheme, plan.root.as_str()), (scheme, root));
            assert!(plan.reads.iter().all(|read| read.target == read.entry));
        }
        manifests += 1;
    }
    assert!(manifests >= 14);
}

#[test]
fn hugging_face_names_and_layouts() {
    let one = |name: &str, shape: &[usize]| foreign_names(Scheme::HuggingFace, name, shape).remove(0);
    let query = one("transformer/layer_3/self_attention/query/kernel", &[16, 2, 8]);
    assert_eq!(query.path, "encoder.layer.3.attention.self.query.weight");
    assert_eq!((query.shape, query.transform), (vec![16, 16], Transform::SwapLeadingAxes));
    let output = one("transformer/layer_0/self_attention/attention_output/kernel", &[2, 8, 12]);
    assert_eq!(output.path, "encoder.layer.0.attention.output.dense.weight");
    assert_eq!(output.shape, [12, 16]);
    let norm =
        foreign_names(Scheme::HuggingFace, "transformer/layer_0/self_attention_layer_norm/gamma", &[12]);
    assert!(norm.iter().any(|name| name.path == "encoder.layer.0.fourier.output.LayerNorm.weight"));
    assert!(
        foreign_names(Scheme::HuggingFace, "transformer/layer_0/moe/experts/output/bias", &[2, 1, 4])
            .is_empty()
    );
}

#[test]
fn what_does_not_fit_is_reported_by_name() {
    let weights = open(&golden("checkpoints/weights.npz")).unwrap();
    let mut targets = targets_of(weights.as_ref());
    let mut entries = weights.entries().to_vec();
    entries.retain(|entry| entry.name != "pooler_transform/bias");
    entries[3].dtype = Dtype::I32;
    targets[0].shape[0] += 1;
    entries.push(Entry { name: "transformer/layer_7/output/bias".into(), dtype: Dtype::F32, shape: vec![8] });
    let plan = LoadPlan::new(&entries, &targets, None).unwrap();
    assert_eq!(plan.missing, ["pooler_transform/bias"]);
    assert_eq!(plan.unexpected, ["transformer/layer_7/output/bias"]);
    assert_eq!(plan.shape_mismatches[0].name, "word_embeddings/embeddings");
    assert_eq!(plan.dtype_mismatches[0].found, "int32");
    assert_eq!(plan.shape_mismatches[0].expected, "[21, 6]");
    assert!(!plan.reads.iter().any(|read| read.entry == 3), "a tensor of integers is not read");
}

#[test]
fn one_of_several_encoders_is_chosen_by_prefix() {
    let weights = open(&golden("checkpoints/weights.npz")).unwrap();
    let targets = targets_of(weights.as_ref());
    let mut entries = Vec::new();
    for tower in ["queries", "documents"] {
        entries.extend(
            weights.entries().iter().map(|entry| Entry {
                name: format!("{tower}/sparse_mixer/{}:0", entry.name),
                ..entry.clone()
            }),
        );
    }
    let error = format!("{:?}", LoadPlan::new(&entries, &targets, None).unwrap_err());
    assert!(error.contains("documents/sparse_mixer, queries/sparse_mixer"), "{error}");
    let plan = LoadPlan::new(&entries, &targets, Some("queries/sparse_mixer/")).unwrap();
    assert_complete(&plan);
    assert!(plan.reads.iter().all(|read| entries[read.entry].name.starts_with("queries/")));
}
