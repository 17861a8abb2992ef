//! The graph of objects that TensorFlow stores beside variables. A SavedModel calls its variables `variables/0`,
//! `variables/1`, ..., those of frozen layers last; the graph tells which attribute of which layer each one is.
//! Source: `tensorflow/core/protobuf/trackable_object_graph.proto`.

use std::collections::{HashMap, VecDeque};

use super::protobuf::{Value, fields};
use crate::checkpoint::error::FormatError;

/// Name of the tensor that holds the graph.
pub(super) const GRAPH_NAME: &str = "_CHECKPOINTABLE_OBJECT_GRAPH";
/// Stands between the path of an object and the name of its attribute.
const ATTRIBUTES: &str = "/.ATTRIBUTES/";
/// Most objects: two hundred belong to one transformer layer.
const MAX_OBJECTS: usize = 500_000;
/// Deepest path that is followed.
const MAX_DEPTH: usize = 32;
/// Edges to lists and bookkeeping, through which every variable can be reached by a number.
const SKIPPED: [&str; 7] = [
    "variables",
    "trainable_variables",
    "non_trainable_variables",
    "regularization_losses",
    "keras_api",
    "signatures",
    "optimizer",
];

/// The name of every variable in the form of a training checkpoint, `layer_with_weights-0/_pooler_layer/kernel/...`, by
/// the name it has in the file. Of several paths the shortest counts; variables without one are left out.
pub(super) fn names_by_path(graph: &[u8]) -> Result<HashMap<&str, String>, FormatError> {
    let mut objects = Vec::new();
    for field in fields(graph) {
        if let (1, Value::Bytes(object)) = field? {
            if objects.len() == MAX_OBJECTS {
                return Err(FormatError::new(format!("there are more than {MAX_OBJECTS} objects")));
            }
            objects.push(object);
        }
    }
    let mut names = HashMap::new();
    if objects.is_empty() {
        return Ok(names);
    }
    let mut seen = vec![false; objects.len()];
    seen[0] = true;
    let mut pending = VecDeque::from([(0, Vec::<&str>::new())]);
    while let Some((number, path)) = pending.pop_front() {
        for field in fields(objects[number]) {
            match field? {
                (1, Value::Bytes(child)) if path.len() < MAX_DEPTH => {
                    let (child, name) = read_child(child)?;
                    let is_skipped = name.starts_with("__") || SKIPPED.contains(&name);
                    if !is_skipped && seen.get(child) == Some(&false) {
                        seen[child] = true;
                        pending.push_back((child, path.iter().copied().chain([name]).collect()));
                    }
                }
                (2, Value::Bytes(attribute)) => {
                    if let Some(key) = read_key(attribute)?
                        && let Some((_, kind)) = key.split_once(ATTRIBUTES)
                    {
                        names.entry(key).or_insert_with(|| format!("{}{ATTRIBUTES}{kind}", path.join("/")));
                    }
                }
                _ => {}
            }
        }
    }
    Ok(names)
}

/// Reads an `ObjectReference`: the object's number and what its owner calls it.
fn read_child(message: &[u8]) -> Result<(usize, &str), FormatError> {
    let (mut number, mut name) = (0, "");
    for field in fields(message) {
        match field? {
            (1, Value::Varint(value)) => number = value,
            (2, Value::Bytes(bytes)) => name = text(bytes)?,
            _ => {}
        }
    }
    Ok((usize::try_from(number).unwrap_or(usize::MAX), name))
}

/// Reads of a `SerializedTensor` the name of its tensor in the file.
fn read_key(message: &[u8]) -> Result<Option<&str>, FormatError> {
    let mut key = None;
    for field in fields(message) {
        if let (3, Value::Bytes(bytes)) = field? {
            key = Some(text(bytes)?);
        }
    }
    Ok(key)
}

fn text(bytes: &[u8]) -> Result<&str, FormatError> {
    std::str::from_utf8(bytes).map_err(|_| FormatError::new("a name in the graph of objects is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8][..], content].concat()
    }

    fn child(number: u8, name: &str) -> Vec<u8> {
        field(1, &[vec![8, number], field(2, name.as_bytes())].concat())
    }

    fn variable(key: &str) -> Vec<u8> {
        field(2, &field(3, key.as_bytes()))
    }

    #[test]
    fn the_shortest_path_beside_lists_names_a_variable() {
        let graph = [
            field(1, &[child(1, "variables"), child(2, "encoder"), child(2, "layer-1")].concat()),
            field(1, &child(3, "0")),
            // An object may refer to its owner.
            field(1, &[child(0, "parent"), child(3, "kernel"), child(9, "absent")].concat()),
            field(1, &variable("variables/0/.ATTRIBUTES/VARIABLE_VALUE")),
        ]
        .concat();
        let names = names_by_path(&graph).unwrap();
        assert_eq!(names.len(), 1);
        assert_eq!(
            names["variables/0/.ATTRIBUTES/VARIABLE_VALUE"],
            "encoder/kernel/.ATTRIBUTES/VARIABLE_VALUE"
        );
        assert!(names_by_path(&graph[..graph.len() - 1]).is_err());
        assert!(names_by_path(&[]).unwrap().is_empty());
    }
}
