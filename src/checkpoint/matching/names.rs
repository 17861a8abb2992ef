//! How each framework spells the weights of an encoder.
//!
//! Our own names are those of the reference's Keras variables without the layer's own name, such as
//! `transformer/layer_3/moe/experts/output/kernel`. Every scheme is a column of one table, a row per sublayer; the last
//! component (kernel, bias, ...) is spelled alike for all sublayers of a scheme. Foreign names are relative to the
//! *root* of the encoder in its file (`encoder/`, `bert.`, ...), which [`super::plan::LoadPlan`] finds.

use super::sublayers::{Parts, spellings};
use super::transform::Transform;

/// A framework's way of naming weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// Keras variable names, with or without `:0`: our own files, `.npz`, legacy `.h5`.
    Keras,
    /// Object paths of TensorFlow checkpoints.
    TfCheckpoint,
    /// Paths in Keras' `.weights.h5` and `.keras` files.
    WeightsH5,
    /// Parameter paths of the original JAX/Flax code.
    Flax,
    /// Hugging Face's BERT, its kin (RoBERTa, ELECTRA, DistilBERT) and FNet in PyTorch form.
    HuggingFace,
    /// The same in TensorFlow form, `tf_model.h5`.
    HuggingFaceTf,
    /// google-research/bert, written by TensorFlow 1.
    GoogleBert,
    /// KerasHub's BERT, `model.weights.h5`.
    KerasHub,
    /// `variables/<k>` in a SavedModel: the position in Keras' order. Only [`super::plan::LoadPlan`] resolves it.
    SavedModel,
}

impl Scheme {
    /// The schemes whose names say what they are, in the order of preference.
    pub const NAMED: [Scheme; 8] = [
        Scheme::Keras,
        Scheme::TfCheckpoint,
        Scheme::WeightsH5,
        Scheme::Flax,
        Scheme::HuggingFace,
        Scheme::HuggingFaceTf,
        Scheme::GoogleBert,
        Scheme::KerasHub,
    ];

    /// A short name for reports.
    pub fn label(self) -> &'static str {
        match self {
            Scheme::Keras => "keras",
            Scheme::TfCheckpoint => "tf_checkpoint",
            Scheme::WeightsH5 => "weights_h5",
            Scheme::Flax => "flax",
            Scheme::HuggingFace => "huggingface",
            Scheme::HuggingFaceTf => "huggingface_tf",
            Scheme::GoogleBert => "google_bert",
            Scheme::KerasHub => "keras_hub",
            Scheme::SavedModel => "saved_model",
        }
    }
}

/// One way a scheme may store a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignName {
    /// Name relative to the encoder's root.
    pub path: String,
    /// Shape in the file.
    pub shape: Vec<usize>,
    /// What turns it into ours.
    pub transform: Transform,
}

/// What every TensorFlow object path ends with.
pub const TF_SUFFIX: &str = "/.ATTRIBUTES/VARIABLE_VALUE";

/// The ways in which `scheme` may store the weight that we call `name` and that has `shape`, the usual one first. Empty
/// if the scheme has no such weight.
pub fn foreign_names(scheme: Scheme, name: &str, shape: &[usize]) -> Vec<ForeignName> {
    let keep = |path| ForeignName { path, shape: shape.to_vec(), transform: Transform::Keep };
    if scheme == Scheme::Keras {
        let mut names = vec![keep(name.to_owned()), keep(format!("{name}:0"))];
        if let Some(parts) = Parts::parse(name) {
            // A legacy .h5 keeps weights below the name of their layer, which Model Garden's first encoder has many of.
            let layer =
                parts.layer.map_or(parts.sublayer.keras.to_owned(), |i| format!("transformer/layer_{i}"));
            names.push(keep(format!("{layer}/{name}:0")));
        }
        return names;
    }
    let Some(parts) = Parts::parse(name) else { return Vec::new() };
    match scheme {
        Scheme::Keras | Scheme::SavedModel => Vec::new(),
        Scheme::TfCheckpoint => spellings(parts.sublayer.tf)
            .map(|path| {
                let prefix =
                    parts.layer.map_or(String::new(), |layer| format!("_transformer_layers/{layer}/"));
                keep(format!("{prefix}{path}/{}{TF_SUFFIX}", parts.leaf))
            })
            .collect(),
        Scheme::WeightsH5 => {
            // Numbers follow the class of the blocks, which Model Garden's encoders share with ours but for its name.
            let blocks =
                ["transformer_layers/transformer_scaffold", "transformer_layers/transformer_encoder_block"];
            weights_h5_paths(&parts, parts.sublayer.h5, "", &blocks).into_iter().map(keep).collect()
        }
        Scheme::KerasHub => {
            let paths =
                weights_h5_paths(&parts, parts.sublayer.hub, "layers/", &["layers/transformer_encoder"]);
            paths.into_iter().map(keep).collect()
        }
        Scheme::Flax => flax_names(&parts, shape),
        Scheme::HuggingFace => hugging_face_names(&parts, shape),
        Scheme::HuggingFaceTf => tensorflow_names(&parts, shape, "layer_._"),
        Scheme::GoogleBert => tensorflow_names(&parts, shape, "layer_"),
    }
}

/// Paths of a weight in Keras' `.weights.h5`: the spellings of its sublayer in a `column` below `model`, or below the
/// `blocks`, of which the first has no number.
fn weights_h5_paths(parts: &Parts<'_>, column: &'static str, model: &str, blocks: &[&str]) -> Vec<String> {
    let position = match parts.leaf {
        "kernel" | "gamma" | "embeddings" | "hidden_kernel" => 0,
        "bias" | "beta" | "seq_kernel" => 1,
        _ => return Vec::new(),
    };
    let prefixes: Vec<String> = match parts.layer {
        None => vec![model.to_owned()],
        Some(0) => blocks.iter().map(|class| format!("{class}/")).collect(),
        Some(layer) => blocks.iter().map(|class| format!("{class}_{layer}/")).collect(),
    };
    let paths = |prefix| spellings(column).map(move |path| format!("{prefix}{path}/vars/{position}"));
    prefixes.iter().flat_map(paths).collect()
}

/// The names that TensorFlow gives the variables of BERT, with `layer` in front of each layer's number.
fn tensorflow_names(parts: &Parts<'_>, shape: &[usize], layer: &str) -> Vec<ForeignName> {
    let leaves: &[&str] = match parts.leaf {
        // google-research/bert has no layers for its tables.
        "embeddings" => &["", "/weight", "/embeddings", "/weight:0", "/embeddings:0"],
        "kernel" => &["/kernel", "/kernel:0"],
        "bias" => &["/bias", "/bias:0"],
        "gamma" => &["/gamma", "/gamma:0"],
        "beta" => &["/beta", "/beta:0"],
        _ => return Vec::new(),
    };
    // Stands for `layer`, which may have a dot of its own.
    const LAYER: &str = "{layer}";
    let shape = match parts.leaf {
        "kernel" => parts.matrix_shape(shape).to_vec(),
        "bias" => vec![shape.iter().product()],
        _ => shape.to_vec(),
    };
    parts
        .hugging_face_paths(LAYER)
        .map(|path| path.replace('.', "/").replace(LAYER, layer))
        .flat_map(|path| leaves.iter().map(move |leaf| format!("{path}{leaf}")))
        .map(|path| ForeignName { path, shape: shape.clone(), transform: Transform::Keep })
        .collect()
}

fn flax_names(parts: &Parts<'_>, shape: &[usize]) -> Vec<ForeignName> {
    let leaf = match parts.leaf {
        "gamma" => "scale",
        "beta" => "bias",
        "embeddings" => "embedding",
        "seq_kernel" => "input_kernel",
        other => other,
    };
    let (shape, transform) = match (parts.sublayer.keras, shape) {
        ("position_embedding", [positions, width]) => (vec![1, *positions, *width], Transform::Keep),
        // The expert axis is the second one; biases have no axis of size one.
        ("moe/experts/intermediate" | "moe/experts/output", [experts, 1, width]) if leaf == "bias" => {
            (vec![*width, *experts], Transform::SwapLeadingAxes)
        }
        ("moe/experts/intermediate" | "moe/experts/output", [experts, inputs, outputs]) => {
            (vec![*inputs, *experts, *outputs], Transform::SwapLeadingAxes)
        }
        _ => (shape.to_vec(), Transform::Keep),
    };
    spellings(parts.sublayer.flax)
        .map(|path| {
            let path = match parts.layer {
                Some(layer) => path.replace("{i}", &layer.to_string()),
                None => path.to_owned(),
            };
            ForeignName { path: format!("{path}/{leaf}"), shape: shape.clone(), transform }
        })
        .collect()
}

fn hugging_face_names(parts: &Parts<'_>, shape: &[usize]) -> Vec<ForeignName> {
    // Files from before 2019 keep TensorFlow's names for layer norms.
    let leaves: &[&str] = match parts.leaf {
        "kernel" | "embeddings" => &["weight"],
        "bias" => &["bias"],
        "gamma" => &["weight", "gamma"],
        "beta" => &["bias", "beta"],
        _ => return Vec::new(),
    };
    let (shape, transform) = match parts.leaf {
        // PyTorch keeps matrices as [outputs, inputs], the heads flattened.
        "kernel" => {
            let [inputs, outputs] = parts.matrix_shape(shape);
            (vec![outputs, inputs], Transform::SwapLeadingAxes)
        }
        "bias" => (vec![shape.iter().product()], Transform::Keep),
        _ => (shape.to_vec(), Transform::Keep),
    };
    parts
        .hugging_face_paths("layer.")
        .flat_map(|path| leaves.iter().map(move |leaf| format!("{path}.{leaf}")))
        .map(|path| ForeignName { path, shape: shape.clone(), transform })
        .collect()
}

/// Whether a file's tensor called `name` is no weight: state of a training run (optimiser moments, counters, metrics)
/// or another auxiliary tensor.
pub fn is_auxiliary(name: &str) -> bool {
    // Optimisers of TensorFlow 1 keep their state beside each variable.
    const BESIDE: [&str; 7] =
        ["adam_m", "adam_v", "Adam", "Adam_1", "Momentum", "ExponentialMovingAverage", "global_step"];
    let last = name.rsplit('/').next().unwrap_or(name);
    BESIDE.contains(&last)
        || name.starts_with("optimizer_weights/")
        || matches!(name, "beta1_power" | "beta2_power")
        || name.starts_with("opt_state/")
        || name.starts_with("optimizer/")
        || name.contains("/.OPTIMIZER_SLOT/")
        || name.contains("/optimizer/")
        || name.starts_with("_CHECKPOINTABLE_OBJECT_GRAPH")
        || name.starts_with("save_counter/")
        || name.starts_with("metrics/")
        || name.contains("/metrics/")
        // A buffer of older PyTorch BERTs: 0, 1, 2, ...
        || name.ends_with("embeddings.position_ids")
}
