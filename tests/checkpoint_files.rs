//! Weight files written by TensorFlow, Flax and NumPy, read and matched without any of them.

use std::path::PathBuf;

use sparse_mixer::checkpoint::names::{Scheme, foreign_names};
use sparse_mixer::checkpoint::{Dtype, Entry, LoadPlan, Npz, TensorSource, Transform, Wanted, open};

fn golden(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/golden", path].iter().collect()
}

fn wanted_of(source: &dyn TensorSource) -> Vec<Wanted> {
    let wanted = |entry: &Entry| Wanted { name: entry.name.clone(), shape: entry.shape.clone() };
    source.entries().iter().map(wanted).collect()
}

fn read_f32(source: &dyn TensorSource, index: usize) -> Vec<f32> {
    source.read(index).unwrap().to_f32().unwrap()
}

#[test]
fn every_file_that_tensorflow_writes_has_the_same_weights() {
    let weights = Npz::open(&golden("checkpoints/weights.npz")).unwrap();
    let wanted = wanted_of(&weights);
    for (path, scheme, root) in [
        ("functional", Scheme::TfCheckpoint, "layer_with_weights-0"),
        ("functional/ckpt", Scheme::TfCheckpoint, "layer_with_weights-0"),
        ("functional/ckpt.index", Scheme::TfCheckpoint, "layer_with_weights-0"),
        ("encoder/ckpt", Scheme::TfCheckpoint, "encoder"),
        ("pretrainer/ckpt", Scheme::TfCheckpoint, "encoder"),
        ("saved_model", Scheme::SavedModel, ""),
        ("weights.npz", Scheme::Keras, ""),
    ] {
        let source = open(&golden("checkpoints").join(path)).unwrap();
        let plan = LoadPlan::new(source.entries(), &wanted, None).unwrap();
        plan.require_complete(path).unwrap();
        assert_eq!((plan.scheme, plan.root.as_str()), (scheme, root), "{path}");
        for (index, read) in plan.reads.iter().enumerate() {
            assert_eq!(read.wanted, index);
            let tensor = read.read(source.as_ref(), &wanted[index]).unwrap();
            assert_eq!(tensor.to_f32().unwrap(), read_f32(&weights, index), "{path}: {}", wanted[index].name);
            source.release(read.entry);
        }
    }
}

#[test]
fn an_encoder_inside_a_classifier_is_found() {
    let weights = Npz::open(&golden("checkpoints/weights.npz")).unwrap();
    let wanted = wanted_of(&weights);
    let source = open(&golden("checkpoints/classifier/ckpt")).unwrap();
    let plan = LoadPlan::new(source.entries(), &wanted, None).unwrap();
    plan.require_complete("classifier").unwrap();
    assert_eq!(plan.reads.len(), wanted.len());
    assert!(source.entries().len() > wanted.len() + 2, "the classifier has more than the encoder");
}

#[test]
fn flax_folders_match_their_merged_parameters() {
    for (folder, step) in [("ckpt_linear_2_devices", 3), ("ckpt_bert_replicated_only", 2)] {
        let folder = golden("jax").join(folder);
        let source = open(&folder).unwrap();
        let expected = Npz::open(&folder.join("expected.npz")).unwrap();
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
            assert_eq!(read_f32(source.as_ref(), found), read_f32(&expected, index), "{}", entry.name);
            compared += 1;
        }
        assert!(compared > 60, "{compared} tensors");
        let step_entry = source.entries().iter().position(|leaf| leaf.name == "step").unwrap();
        assert_eq!(source.read(step_entry).unwrap().bytes(), i32::to_le_bytes(step));
    }
}

/// Weights of the encoder in `jax/ckpt_linear_2_devices`: linear, linear + MoE, attention.
fn flax_wanted() -> Vec<Wanted> {
    let (v, s, y, w, h, f, x, e, n, d) = (40, 12, 4, 16, 16, 24, 20, 4, 2, 8);
    let mut wanted: Vec<(String, Vec<usize>)> = vec![
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
            wanted.push((format!("transformer/layer_{layer}/{name}"), shape.to_vec()));
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
    wanted.push(("pooler_transform/kernel".into(), vec![h, h]));
    wanted.push(("pooler_transform/bias".into(), vec![h]));
    wanted.into_iter().map(|(name, shape)| Wanted { name, shape }).collect()
}

#[test]
fn flax_parameters_take_our_names_and_layout() {
    let wanted = flax_wanted();
    let source = open(&golden("jax/ckpt_linear_2_devices")).unwrap();
    let plan = LoadPlan::new(source.entries(), &wanted, None).unwrap();
    plan.require_complete("flax").unwrap();
    assert_eq!((plan.scheme, plan.root.as_str()), (Scheme::Flax, "params/encoder"));
    let read = |name: &str| {
        let index = wanted.iter().position(|weight| weight.name == name).unwrap();
        plan.reads[index].read(source.as_ref(), &wanted[index]).unwrap().to_f32().unwrap()
    };
    let expected = Npz::open(&golden("jax/ckpt_linear_2_devices/expected.npz")).unwrap();
    let flax = |path: &str| {
        let name = format!("params/encoder/{path}");
        read_f32(&expected, expected.entries().iter().position(|entry| entry.name == name).unwrap())
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
        let (mut wanted, mut checkpoint, mut h5) = (Vec::new(), Vec::new(), Vec::new());
        for weight in manifest["weights"].as_array().unwrap() {
            let text = |key: &str| weight[key].as_str().unwrap();
            let shape: Vec<usize> = serde_json::from_value(weight["shape"].clone()).unwrap();
            let name = text("name");
            let entry = |name: String| Entry { name, dtype: Dtype::F32, shape: shape.clone() };
            checkpoint
                .push(entry(format!("model/net/{}/.ATTRIBUTES/VARIABLE_VALUE", text("checkpoint_key"))));
            h5.push(entry(format!("layers/sparse_mixer/{}", text("weights_h5_key"))));
            wanted.push(Wanted { name: name.to_owned(), shape });
        }
        for (entries, scheme, root) in
            [(checkpoint, Scheme::TfCheckpoint, "model/net"), (h5, Scheme::WeightsH5, "layers/sparse_mixer")]
        {
            let plan = LoadPlan::new(&entries, &wanted, None).unwrap();
            plan.require_complete("manifest").unwrap();
            assert_eq!((plan.scheme, plan.root.as_str()), (scheme, root));
            assert!(plan.reads.iter().all(|read| read.wanted == read.entry));
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
    let weights = Npz::open(&golden("checkpoints/weights.npz")).unwrap();
    let mut wanted = wanted_of(&weights);
    let mut entries = weights.entries().to_vec();
    entries.retain(|entry| entry.name != "pooler_transform/bias");
    entries[3].dtype = Dtype::I32;
    wanted[0].shape[0] += 1;
    entries.push(Entry { name: "transformer/layer_7/output/bias".into(), dtype: Dtype::F32, shape: vec![8] });
    let plan = LoadPlan::new(&entries, &wanted, None).unwrap();
    assert_eq!(plan.missing, ["pooler_transform/bias"]);
    assert_eq!(plan.unexpected, ["transformer/layer_7/output/bias"]);
    assert_eq!(plan.shape_mismatches[0].name, "word_embeddings/embeddings");
    assert_eq!(plan.dtype_mismatches[0].found, "int32");
    let error = plan.require_complete("some.npz").unwrap_err().to_string();
    for part in ["some.npz", "missing: pooler_transform/bias", "expected [21, 6]", "has int32"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn one_of_several_encoders_is_chosen_by_prefix() {
    let weights = Npz::open(&golden("checkpoints/weights.npz")).unwrap();
    let wanted = wanted_of(&weights);
    let mut entries = Vec::new();
    for tower in ["queries", "documents"] {
        entries.extend(
            weights.entries().iter().map(|entry| Entry {
                name: format!("{tower}/sparse_mixer/{}:0", entry.name),
                ..entry.clone()
            }),
        );
    }
    let error = format!("{:?}", LoadPlan::new(&entries, &wanted, None).unwrap_err());
    assert!(error.contains("documents/sparse_mixer, queries/sparse_mixer"), "{error}");
    let plan = LoadPlan::new(&entries, &wanted, Some("queries/sparse_mixer/")).unwrap();
    plan.require_complete("towers").unwrap();
    assert!(plan.reads.iter().all(|read| entries[read.entry].name.starts_with("queries/")));
}
