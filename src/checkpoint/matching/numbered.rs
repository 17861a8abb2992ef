//! Model Garden's first BERT encoder (`official.nlp.modeling.networks.BertEncoder`) in a TensorFlow checkpoint, whose
//! layers have numbers for names: `layer_with_weights-0` to `-3` are the tables of words, positions and types and the
//! layer norm, then come the projection of the embeddings if there is one, the blocks, and the pooler.

use std::collections::BTreeMap;

use super::names::TF_SUFFIX;
use crate::checkpoint::tensor::Entry;

const LAYER: &str = "layer_with_weights-";
const TABLES: [&str; 3] = ["_embedding_layer", "_position_embedding_layer", "_type_embedding_layer"];
const NORM: &str = "_embedding_norm_layer";

/// The `entries` under the names of the newer encoder, which says what its layers are; `None` if no encoder among them
/// has numbered layers. Names of other entries stay.
pub(super) fn with_layers_named(entries: &[Entry]) -> Option<Vec<Entry>> {
    // By the place of a model, the numbers of its layers and what a weight of each is called.
    let mut models: BTreeMap<&str, BTreeMap<usize, &str>> = BTreeMap::new();
    for (root, number, weight) in entries.iter().filter_map(|entry| split(&entry.name)) {
        models.entry(root).or_default().insert(number, weight);
    }
    models.retain(|_, layers| is_encoder(layers));
    if models.is_empty() {
        return None;
    }
    let rename = |entry: &Entry| {
        let (root, number, weight) = split(&entry.name)?;
        let layers = models.get(root)?;
        Some(Entry { name: format!("{root}{}/{weight}", layer_name(layers, number)?), ..entry.clone() })
    };
    Some(entries.iter().map(|entry| rename(entry).unwrap_or_else(|| entry.clone())).collect())
}

/// What stands before the last numbered layer in a name, that layer's number, and what follows.
fn split(name: &str) -> Option<(&str, usize, &str)> {
    let at =
        name.rfind(LAYER).filter(|_| name.ends_with(TF_SUFFIX) && !name.contains("/.OPTIMIZER_SLOT/"))?;
    let (number, weight) = name[at + LAYER.len()..].split_once('/')?;
    Some((&name[..at], number.parse().ok()?, weight))
}

/// Whether a model with these `layers` begins like the encoder.
fn is_encoder(layers: &BTreeMap<usize, &str>) -> bool {
    let is = |number: usize, weights: &[&str]| {
        layers.get(&number).is_some_and(|name| weights.contains(&name.trim_end_matches(TF_SUFFIX)))
    };
    (0..TABLES.len()).all(|number| is(number, &["embeddings"]))
        && is(TABLES.len(), &["gamma", "beta"])
        && (first_block(layers).is_some_and(|first| first == 4 || (first == 5 && is(4, &["kernel", "bias"]))))
}

fn is_block(weight: &str) -> bool {
    weight.starts_with("_attention_layer")
        || weight.starts_with("_intermediate")
        || weight.starts_with("_output")
}

fn first_block(layers: &BTreeMap<usize, &str>) -> Option<usize> {
    layers.iter().find(|(_, weight)| is_block(weight)).map(|(&number, _)| number)
}

/// The newer encoder's name of layer `number`.
fn layer_name(layers: &BTreeMap<usize, &str>, number: usize) -> Option<String> {
    let first = first_block(layers)?;
    Some(match layers.get(&number)? {
        _ if number < TABLES.len() => TABLES[number].to_owned(),
        _ if number == TABLES.len() => NORM.to_owned(),
        weight if is_block(weight) => format!("_transformer_layers/{}", number - first),
        _ if number < first => "_embedding_projection".to_owned(),
        _ if layers.get(&(number - 1)).is_some_and(|weight| is_block(weight)) => "_pooler_layer".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tensor::Dtype;

    fn renamed(layers: &[&str]) -> Option<Vec<String>> {
        let entry = |name: String| Entry { name, dtype: Dtype::F32, shape: vec![] };
        let name =
            |(number, weight): (usize, &&str)| format!("a/{LAYER}1/{LAYER}{number}/{weight}{TF_SUFFIX}");
        let entries: Vec<Entry> =
            layers.iter().enumerate().map(name).chain(["a/other".to_owned()]).map(entry).collect();
        let strip = |entry: Entry| entry.name.trim_end_matches(TF_SUFFIX).to_owned();
        with_layers_named(&entries).map(|entries| entries.into_iter().map(strip).collect())
    }

    #[test]
    fn layers_are_told_by_number_and_content() {
        let blocks = ["_attention_layer/_key_dense/kernel", "_output_dense/bias", "kernel"];
        let begins = ["embeddings", "embeddings", "embeddings", "gamma"];
        let names = renamed(&[&begins[..], &["kernel"], &blocks].concat()).unwrap();
        let root = "a/layer_with_weights-1/";
        assert_eq!(names[1], format!("{root}_position_embedding_layer/embeddings"));
        assert_eq!(names[4], format!("{root}_embedding_projection/kernel"));
        assert_eq!(names[6], format!("{root}_transformer_layers/1/_output_dense/bias"));
        assert_eq!(names[7..], [format!("{root}_pooler_layer/kernel"), "a/other".to_owned()]);
        let names = renamed(&[&begins[..], &blocks].concat()).unwrap();
        assert_eq!(names[4], format!("{root}_transformer_layers/0/_attention_layer/_key_dense/kernel"));
        assert_eq!(renamed(&[&begins[..3], &["kernel"], &blocks].concat()), None);
        assert_eq!(renamed(&begins), None);
    }
}
