//! The declarations of arguments, for Python.

use pyo3::prelude::*;

use super::enter::{guard, to_py_err};
use crate::config::{ARGUMENTS, Argument, Kind, Origin, Range, SparseMixerConfig};
use crate::error::Error;

/// Name, kind, whether None stands for "not given", default as JSON, range in words, origin, and the names that it can be.
type Row = (&'static str, &'static str, bool, String, String, &'static str, Vec<&'static str>);

/// One row for each argument; `_native.pyi` describes it.
#[pyfunction]
pub fn arguments() -> PyResult<Vec<Row>> {
    guard(|| {
        let defaults = serde_json::to_value(SparseMixerConfig::default())
            .map_err(|error| to_py_err(Error::value("config", error.to_string())))?;
        let row = |argument: &Argument| {
            let (kind, names) = kind(argument);
            let origin = match argument.origin {
                Origin::Required => "required",
                Origin::Keras => "keras",
                Origin::Extension => "extension",
            };
            let default = defaults[argument.name].to_string();
            (argument.name, kind, argument.optional, default, argument.range.text(), origin, names)
        };
        Ok(ARGUMENTS.iter().map(row).collect())
    })
}

/// The kind as Python knows it, and the names if it is one of names.
fn kind(argument: &Argument) -> (&'static str, Vec<&'static str>) {
    let name = match argument.kind {
        _ if matches!(argument.range, Range::Dtypes(_)) => "name",
        Kind::Count => "count",
        Kind::Integer => "integer",
        Kind::Seed => "seed",
        Kind::Number => "number",
        Kind::Flag => "flag",
        Kind::Layers => "layers",
        Kind::Dtype => "dtype",
        Kind::Name(_) => "name",
        Kind::Mixing => "mixing",
        Kind::Activation => "activation",
        Kind::Initializer => "initializer",
    };
    let names = match (argument.kind, argument.range) {
        (_, Range::Dtypes(dtypes)) => dtypes.iter().map(|dtype| dtype.name()).collect(),
        (Kind::Name(names), _) => names.to_vec(),
        _ => Vec::new(),
    };
    (name, names)
}
