//! The one table of foreign names: each sublayer of an encoder in each scheme.

/// One sublayer in each scheme, `{i}` standing for the layer's number. Empty: the scheme does not have it. A `|`
/// separates spellings, the usual one first; `@` stands in front of DistilBERT's, whose layers are called otherwise.
pub(super) struct Sublayer {
    pub(super) keras: &'static str,
    pub(super) tf: &'static str,
    pub(super) h5: &'static str,
    pub(super) flax: &'static str,
    pub(super) hf: &'static str,
    pub(super) hub: &'static str,
}

const fn sublayer(
    keras: &'static str,
    tf: &'static str,
    h5: &'static str,
    flax: &'static str,
    hf: &'static str,
    hub: &'static str,
) -> Sublayer {
    Sublayer { keras, tf, h5, flax, hf, hub }
}

const MODEL_SUBLAYERS: [Sublayer; 7] = [
    sublayer(
        "word_embeddings",
        "_embedding_layer",
        "_embedding_layer|layers/on_device_embedding",
        "embedder/word",
        "embeddings.word_embeddings",
        "reversible_embedding",
    ),
    sublayer(
        "position_embedding",
        "_position_embedding_layer",
        "_position_embedding_layer|layers/position_embedding",
        "embedder/position",
        "embeddings.position_embeddings",
        "position_embedding",
    ),
    sublayer(
        "type_embeddings",
        "_type_embedding_layer",
        "_type_embedding_layer|layers/on_device_embedding_1",
        "embedder/type",
        "embeddings.token_type_embeddings",
        "embedding",
    ),
    sublayer(
        "embeddings/layer_norm",
        "_embedding_norm_layer",
        "_embedding_norm_layer|layers/layer_normalization",
        "embedder/layer_norm",
        "embeddings.LayerNorm",
        "layer_normalization",
    ),
    sublayer(
        "embedding_projection",
        "_embedding_projection",
        "_embedding_projection|layers/einsum_dense",
        "embedder/hidden_mapping_in",
        "embeddings.projection|embeddings_project",
        "",
    ),
    sublayer("relative_attention_bias", "", "", "", "encoder.relative_attention_bias", ""),
    sublayer("pooler_transform", "_pooler_layer", "pooler_layer", "pooler", "pooler.dense", "dense"),
];

/// Sublayers of one transformer layer; the first three columns are relative to the layer.
const LAYER_SUBLAYERS: [Sublayer; 14] = [
    sublayer(
        "linear_transform",
        "_attention_cls|_attention_layer",
        "_attention_layer",
        "linear_transform_{i}",
        "",
        "",
    ),
    sublayer("circulant_transform", "", "", "circulant_transform_{i}", "", ""),
    sublayer("toeplitz_transform", "", "", "toeplitz_transform_{i}", "", ""),
    sublayer(
        "self_attention/query",
        "_attention_cls/_query_dense|_attention_layer/_query_dense",
        "_attention_layer/_query_dense",
        "attention_{i}/self/query",
        "attention.self.query|attention.attn.q|@attention.q_lin",
        "_self_attention_layer/query_dense|_self_attention_layer/_query_dense",
    ),
    sublayer(
        "self_attention/key",
        "_attention_cls/_key_dense|_attention_layer/_key_dense",
        "_attention_layer/_key_dense",
        "attention_{i}/self/key",
        "attention.self.key|attention.attn.k|@attention.k_lin",
        "_self_attention_layer/key_dense|_self_attention_layer/_key_dense",
    ),
    sublayer(
        "self_attention/value",
        "_attention_cls/_value_dense|_attention_layer/_value_dense",
        "_attention_layer/_value_dense",
        "attention_{i}/self/value",
        "attention.self.value|attention.attn.v|@attention.v_lin",
        "_self_attention_layer/value_dense|_self_attention_layer/_value_dense",
    ),
    sublayer(
        "self_attention/attention_output",
        "_attention_cls/_output_dense|_attention_layer/_output_dense",
        "_attention_layer/_output_dense",
        "attention_{i}/self/out",
        "attention.output.dense|attention.attn.o|@attention.out_lin",
        "_self_attention_layer/output_dense|_self_attention_layer/_output_dense",
    ),
    sublayer(
        "moe/experts/intermediate",
        "_feedforward_cls/_experts/intermediate_layer|_feedforward_layer/_experts/intermediate_layer",
        "_feedforward_cls/_experts/intermediate_layer",
        "expert_{i}/intermediate",
        "",
        "",
    ),
    sublayer(
        "moe/experts/output",
        "_feedforward_cls/_experts/output_layer|_feedforward_layer/_experts/output_layer",
        "_feedforward_cls/_experts/output_layer",
        "expert_{i}/output",
        "",
        "",
    ),
    sublayer(
        "moe/router/router_weights",
        "_feedforward_cls/_router/router_weights|_feedforward_layer/_router/router_weights",
        "_feedforward_cls/_router/router_weights",
        "router_weights_{i}/DenseGeneral_0",
        "",
        "",
    ),
    sublayer(
        "self_attention_layer_norm",
        "_attention_layer_norm",
        "_attention_layer_norm|_attention_layer_norm_kv",
        "encoder_{i}/mixing_layer_norm",
        "attention.output.LayerNorm|attention.LayerNorm|fourier.output.LayerNorm|@sa_layer_norm",
        "_self_attention_layer_norm",
    ),
    sublayer(
        "intermediate",
        "_intermediate_dense",
        "_intermediate_dense",
        "feed_forward_{i}/intermediate",
        "intermediate.dense|@ffn.lin1",
        "_feedforward_intermediate_dense",
    ),
    sublayer(
        "output",
        "_output_dense",
        "_output_dense",
        "feed_forward_{i}/output",
        "output.dense|@ffn.lin2",
        "_feedforward_output_dense",
    ),
    sublayer(
        "output_layer_norm",
        "_output_layer_norm",
        "_output_layer_norm",
        "encoder_{i}/output_layer_norm",
        "output.LayerNorm|@output_layer_norm",
        "_feedforward_layer_norm",
    ),
];

/// One weight, taken apart: its sublayer's row, the layer's number, the last component.
pub(super) struct Parts<'a> {
    pub(super) sublayer: &'static Sublayer,
    pub(super) layer: Option<usize>,
    pub(super) leaf: &'a str,
}

impl<'a> Parts<'a> {
    pub(super) fn parse(name: &'a str) -> Option<Self> {
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

    /// Inputs and outputs of a kernel of `shape`, the heads of attention flattened.
    pub(super) fn matrix_shape(&self, shape: &[usize]) -> [usize; 2] {
        let input_axes = if self.sublayer.keras == "self_attention/attention_output" { 2 } else { 1 };
        let (inputs, outputs) = shape.split_at(input_axes.min(shape.len()));
        [inputs.iter().product(), outputs.iter().product()]
    }

    /// Hugging Face's paths of the sublayer, with `layer` in front of its layer's number.
    pub(super) fn hugging_face_paths(&self, layer: &str) -> impl Iterator<Item = String> {
        spellings(self.sublayer.hf).map(move |path| match (self.layer, path.strip_prefix('@')) {
            (Some(number), None) => format!("encoder.{layer}{number}.{path}"),
            (Some(number), Some(path)) => format!("transformer.{layer}{number}.{path}"),
            (None, _) => path.to_owned(),
        })
    }
}

/// The spellings in a column of the table, the usual one first.
pub(super) fn spellings(column: &'static str) -> impl Iterator<Item = &'static str> {
    column.split('|').filter(|path| !path.is_empty())
}
