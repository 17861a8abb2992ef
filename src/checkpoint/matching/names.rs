//! How each framework spells the weights of an encoder.
//!
//! Our own names are those of the reference's Keras variables without the layer's own name, such as
//! `transformer/layer_3/moe/experts/output/kernel`. Every scheme is a column of one table, a row per sublayer; the last
//! component (kernel, bias, ...) is spelled alike for all sublayers of a scheme. Foreign names are relative to the
//! *root* of the encoder in its file (`encoder/`, `bert.`, ...), which [`super::plan::LoadPlan`] finds.

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
    /// `variables/<k>` in a SavedModel: the position in Keras' order. Only [`super::plan::LoadPlan`] resolves it.
    SavedModel,
}

impl Scheme {
    /// The schemes whose names say what they are, in the order of preference.
    pub const NAMED: [Scheme; 5] =
        [Scheme::Keras, Scheme::TfCheckpoint, Scheme::WeightsH5, Scheme::Flax, Scheme::HuggingFace];

    /// A short name for reports.
    pub fn label(self) -> &'static str {
        match self {
            Scheme::Keras => "keras",
            Scheme::TfCheckpoint => "tf_checkpoint",
            Scheme::WeightsH5 => "weights_h5",
            Scheme::Flax => "flax",
            Scheme::HuggingFace => "huggingface",
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

/// One sublayer in each scheme, `{i}` standing for the layer's number. Empty: the scheme does not have it. A `|`
/// separates spellings, the usual one first; `@` stands in front of DistilBERT's, whose layers are called otherwise.
struct Sublayer {
    keras: &'static str,
    tf: &'static str,
    h5: &'static str,
    flax: &'static str,
    hf: &'static str,
}

const fn sublayer(
    keras: &'static str,
    tf: &'static str,
    h5: &'static str,
    flax: &'static str,
    hf: &'static str,
) -> Sublayer {
    Sublayer { keras, tf, h5, flax, hf }
}

const MODEL_SUBLAYERS: [Sublayer; 6] = [
    sublayer(
        "word_embeddings",
        "_embedding_layer",
        "_embedding_layer",
        "embedder/word",
        "embeddings.word_embeddings",
    ),
    sublayer(
        "position_embedding",
        "_position_embedding_layer",
        "_position_embedding_layer",
        "embedder/position",
        "embeddings.position_embeddings",
    ),
    sublayer(
        "type_embeddings",
        "_type_embedding_layer",
        "_type_embedding_layer",
        "embedder/type",
        "embeddings.token_type_embeddings",
    ),
    sublayer(
        "embeddings/layer_norm",
        "_embedding_norm_layer",
        "_embedding_norm_layer",
        "embedder/layer_norm",
        "embeddings.LayerNorm",
    ),
    sublayer(
        "embedding_projection",
        "_embedding_projection",
        "_embedding_projection",
        "embedder/hidden_mapping_in",
        "embeddings.projection|embeddings_project",
    ),
    sublayer("pooler_transform", "_pooler_layer", "pooler_layer", "pooler", "pooler.dense"),
];

/// Sublayers of one transformer layer; the first three columns are relative to the layer.
const LAYER_SUBLAYERS: [Sublayer; 14] = [
    sublayer(
        "linear_transform",
        "_attention_cls|_attention_layer",
        "_attention_layer",
        "linear_transform_{i}",
        "",
    ),
    sublayer("circulant_transform", "", "", "circulant_transform_{i}", ""),
    sublayer("toeplitz_transform", "", "", "toeplitz_transform_{i}", ""),
    sublayer(
        "self_attention/query",
        "_attention_cls/_query_dense|_attention_layer/_query_dense",
        "_attention_layer/_query_dense",
        "attention_{i}/self/query",
        "attention.self.query|@attention.q_lin",
    ),
    sublayer(
        "self_attention/key",
        "_attention_cls/_key_dense|_attention_layer/_key_dense",
        "_attention_layer/_key_dense",
        "attention_{i}/self/key",
        "attention.self.key|@attention.k_lin",
    ),
    sublayer(
        "self_attention/value",
        "_attention_cls/_value_dense|_attention_layer/_value_dense",
        "_attention_layer/_value_dense",
        "attention_{i}/self/value",
        "attention.self.value|@attention.v_lin",
    ),
    sublayer(
        "self_attention/attention_output",
        "_attention_cls/_output_dense|_attention_layer/_output_dense",
        "_attention_layer/_output_dense",
        "attention_{i}/self/out",
        "attention.output.dense|@attention.out_lin",
    ),
    sublayer(
        "moe/experts/intermediate",
        "_feedforward_cls/_experts/intermediate_layer|_feedforward_layer/_experts/intermediate_layer",
        "_feedforward_cls/_experts/intermediate_layer",
        "expert_{i}/intermediate",
        "",
    ),
    sublayer(
        "moe/experts/output",
        "_feedforward_cls/_experts/output_layer|_feedforward_layer/_experts/output_layer",
        "_feedforward_cls/_experts/output_layer",
        "expert_{i}/output",
        "",
    ),
    sublayer(
        "moe/router/router_weights",
        "_feedforward_cls/_router/router_weights|_feedforward_layer/_router/router_weights",
        "_feedforward_cls/_router/router_weights",
        "router_weights_{i}/DenseGeneral_0",
        "",
    ),
    sublayer(
        "self_attention_layer_norm",
        "_attention_layer_norm",
        "_attention_layer_norm",
        "encoder_{i}/mixing_layer_norm",
        "attention.output.LayerNorm|fourier.output.LayerNorm|@sa_layer_norm",
    ),
    sublayer(
        "intermediate",
        "_intermediate_dense",
        "_intermediate_dense",
        "feed_forward_{i}/intermediate",
        "intermediate.dense|@ffn.lin1",
    ),
    sublayer("output", "_output_dense", "_output_dense", "feed_forward_{i}/output", "output.dense|@ffn.lin2"),
    sublayer(
        "output_layer_norm",
        "_output_layer_norm",
        "_output_layer_norm",
        "encoder_{i}/output_layer_norm",
        "output.LayerNorm|@output_layer_norm",
    ),
];

/// One weight, taken apart: its sublayer's row, the layer's number, the last component.
struct Parts<'a> {
    sublayer: &'static Sublayer,
    layer: Option<usize>,
    leaf: &'a str,
}

impl<'a> Parts<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (path, leaf) = name.rsplit_once('/')?;
        let (layer, path, table) = match path.strip_prefix("transformer/layer_") {
            Some(rest) => {
                let (layer, path) = rest.split_once('/')?;
                (Some(layer.parse().ok()?), path, &LAYER_SUBLAYERS[..])
            }
            None => (None, path, &MODEL_SUBLAYERS[..]),
        };
        let sublayer = table.iter().find(|row| row.keras == path)?;
        Some(Self { sublayer, layer, leaf })
    }
}

/// The ways in which `scheme` may store the weight that we call `name` and that has `shape`, the usual one first. Empty
/// if the scheme has no such weight.
pub fn foreign_names(scheme: Scheme, name: &str, shape: &[usize]) -> Vec<ForeignName> {
    let keep = |path| ForeignName { path, shape: shape.to_vec(), transform: Transform::Keep };
    if scheme == Scheme::Keras {
        return vec![keep(name.to_owned()), keep(format!("{name}:0"))];
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
        Scheme::WeightsH5 => spellings(parts.sublayer.h5)
            .filter_map(|path| {
                let prefix = match parts.layer {
                    None => String::new(),
                    Some(0) => "transformer_layers/transformer_scaffold/".to_owned(),
                    Some(layer) => format!("transformer_layers/transformer_scaffold_{layer}/"),
                };
                let position = match parts.leaf {
                    "kernel" | "gamma" | "embeddings" | "hidden_kernel" => 0,
                    "bias" | "beta" | "seq_kernel" => 1,
                    _ => return None,
                };
                Some(keep(format!("{prefix}{path}/vars/{position}")))
            })
            .collect(),
        Scheme::Flax => flax_names(&parts, shape),
        Scheme::HuggingFace => hugging_face_names(&parts, shape),
    }
}

fn spellings(column: &'static str) -> impl Iterator<Item = &'static str> {
    column.split('|').filter(|path| !path.is_empty())
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
            let input_axes = if parts.sublayer.keras == "self_attention/attention_output" { 2 } else { 1 };
            let (inputs, outputs) = shape.split_at(input_axes.min(shape.len()));
            (vec![outputs.iter().product(), inputs.iter().product()], Transform::SwapLeadingAxes)
        }
        "bias" => (vec![shape.iter().product()], Transform::Keep),
        _ => (shape.to_vec(), Transform::Keep),
    };
    spellings(parts.sublayer.hf)
        .map(|path| match (parts.layer, path.strip_prefix('@')) {
            (Some(layer), None) => format!("encoder.layer.{layer}.{path}"),
            (Some(layer), Some(path)) => format!("transformer.layer.{layer}.{path}"),
            (None, _) => path.to_owned(),
        })
        .flat_map(|path| leaves.iter().map(move |leaf| format!("{path}.{leaf}")))
        .map(|path| ForeignName { path, shape: shape.clone(), transform })
        .collect()
}

/// Whether a file's tensor called `name` is no weight: state of a training run (optimiser moments, counters, metrics)
/// or another auxiliary tensor.
pub fn is_auxiliary(name: &str) -> bool {
    name.starts_with("opt_state/")
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
