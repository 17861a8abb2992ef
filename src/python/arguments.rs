//! The declarations of arguments, for Python.

use pyo3::prelude::*;

use super::enter::{guard, to_py_err};
use crate::config::{ARGUMENTS, Argument, Kind, Origin, SparseMixerConfig};
use crate::error::Error;

/// Name, kind, whether None stands for "not given", default as JSON, range in words, origin, and the names that it can be.
type Row = (&'static str, &'static str, bool, String, String, &'static str, &'static [&'static str]);

/// One row for each argument; `_native.pyi` describes it.
#[pyfunction]
pub fn arguments() -> PyResult<Vec<Row>> {
    guard(|| {
        let defaults = serde_json::to_value(SparseMixerConfig::default())
            .map_err(|error| to_py_err(Error::value("config", error.to_string())))?;
        let row = |argument: &Argument| {
            let (kind, names) = kind(argument.kind);
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

fn kind(kind: Kind) -> (&'static str, &'static [&'static str]) {
    let name = match kind {
        Kind::Count => "count",
        Kind::Integer => "integer",
        Kind::Seed => "seed",
        Kind::Number => "number",
        Kind::Flag => "flag",
        Kind::Layers => "layers",
        Kind::Dtype => "dtype",
        Kind::Name(names) => return ("name", names),
        Kind::Mixing => "mixing",
        Kind::Activation => "activation",
        Kind::Initializer => "initializer",
    };
    (name, &[])
}
