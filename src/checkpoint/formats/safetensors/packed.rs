//! Weights in the layout in which products read them, in a safetensors file.
//!
//! Such a file is one of our own format ([`super::header`]) whose metadata have, beside the configuration,
//!
//! * `packed_layout`: the [`PANEL_LAYOUT_VERSION`] of all packed weights in it;
//! * `packed:<weight>`: what a weight is, as JSON: `shape` as Keras has it, `dtype`, and `rows` and `width` of a table or
//!   `count`, `k` and `n` of matrices.
//!
//! The tensor of that name has type `U8` and one dimension. It holds the bytes that the core has in memory, then zeros up to
//! a multiple of [`PAGE`] bytes, and begins at such a multiple, so that a map of the file can be used as it is. Vectors are
//! plain tensors behind the packed ones. Other tools can read such a file, but only see bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::header::Header;
use crate::checkpoint::error::FormatError;
use crate::checkpoint::io::limits::element_count;
use crate::checkpoint::tensor::{Dtype, Entry};
use crate::checkpoint::tensor_to_write::TensorToWrite;
use crate::error::Error;
use crate::kernels::{self, PANEL_LAYOUT_VERSION};
use crate::params::{Form, PackedForm, Spec, Weight};
use crate::runtime::Interrupt;

/// Packed tensors begin at a multiple of this, and are as long.
pub const PAGE: usize = 4096;
/// Metadata key of the layout's version.
pub const LAYOUT_KEY: &str = "packed_layout";
/// Metadata keys of descriptions begin so.
const DESCRIPTION_KEY: &str = "packed:";
/// Bytes written between two looks at the interrupt: a few milliseconds' worth.
const BYTES_PER_LOOK: usize = 4 << 20;

/// What the metadata say of a packed weight.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    shape: Vec<usize>,
    dtype: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<[usize; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    matrices: Option<[usize; 3]>,
}

/// Finds the packed weights of a file: replaces their entries by what they hold and gives the form of each. Their
/// descriptions are taken out of the metadata.
///
/// # Errors
/// The layout has another version, or a description does not fit its tensor.
pub(super) fn find_packed(header: &mut Header) -> Result<Vec<Option<PackedForm>>, FormatError> {
    let mut forms = vec![None; header.entries.len()];
    let Some(version) = header.metadata.get(LAYOUT_KEY) else { return Ok(forms) };
    if *version != PANEL_LAYOUT_VERSION.to_string() {
        let version: String = version.chars().take(32).collect();
        return Err(FormatError::new(format!(
            "its packed weights have layout {version}, and this version of the library reads layout \
             {PANEL_LAYOUT_VERSION}; write the file again from a plain one: SparseMixer.load(plain).save(path, packed=True)"
        )));
    }
    let mut descriptions: BTreeMap<String, String> = BTreeMap::new();
    header.metadata.retain(|key, value| match key.strip_prefix(DESCRIPTION_KEY) {
        Some(name) => {
            descriptions.insert(name.to_owned(), std::mem::take(value));
            false
        }
        None => true,
    });
    for (entry, form) in header.entries.iter_mut().zip(&mut forms) {
        if let Some(text) = descriptions.remove(&entry.name) {
            *form = Some(described(entry, &text).map_err(|error| error.at(&entry.name))?);
        }
    }
    match descriptions.pop_first() {
        None => Ok(forms),
        Some((name, _)) => {
            let name: String = name.chars().take(64).collect();
            Err(FormatError::new(format!(
                "a packed weight is described but there is no tensor called '{name}'"
            )))
        }
    }
}

/// The form that `text` describes, checked against the tensor `entry`, which becomes that of the values.
fn described(entry: &mut Entry, text: &str) -> Result<PackedForm, FormatError> {
    let damaged = |what: &str| FormatError::new(format!("the description of the packed weight {what}"));
    let Ok(Description { shape, dtype, table, matrices }) = serde_json::from_str(text) else {
        return Err(damaged("is damaged"));
    };
    let dtype = kernels::Dtype::parse(&dtype).map_err(|_| damaged("names an unknown type"))?;
    let form = match (table, matrices) {
        (Some([rows, width]), None) => Form::Table { rows, width },
        (None, Some([count, k, n])) => Form::Matrices { count, k, n, full_precision: false },
        _ => return Err(damaged("is neither that of a table nor that of matrices")),
    };
    let packed = PackedForm { form, dtype };
    if !packed.is_valid() || packed.values() != Some(element_count(&shape)?) {
        return Err(damaged("does not fit its shape"));
    }
    let stored = (entry.dtype == Dtype::U8 && entry.shape.len() == 1).then(|| entry.shape[0]);
    let expected = packed.file_bytes::<f32>().and_then(|bytes| bytes.checked_next_multiple_of(PAGE));
    if expected.is_none() || stored != expected {
        return Err(damaged("does not fit its bytes"));
    }
    (entry.dtype, entry.shape) = (Dtype::F32, shape);
    Ok(packed)
}

/// Adds the layout and the description of `weight` to `metadata`, and gives the tensor of its bytes; `None` for a vector.
///
/// # Errors
/// This machine's numbers are not those of files.
pub fn packed_tensor<'a>(
    spec: &Spec,
    weight: &'a Weight<f32>,
    metadata: &mut BTreeMap<String, String>,
    interrupt: Interrupt<'a>,
) -> Result<Option<TensorToWrite<'a>>, Error> {
    if cfg!(target_endian = "big") {
        return Err(Error::value("packed", "packed weights are not written on big-endian machines"));
    }
    let Some(PackedForm { form, dtype }) = PackedForm::of(spec, weight) else { return Ok(None) };
    let (table, matrices) = match form {
        Form::Table { rows, width } => (Some([rows, width]), None),
        Form::Matrices { count, k, n, .. } => (None, Some([count, k, n])),
        Form::Vector => (None, None),
    };
    let description = Description { shape: spec.shape.clone(), dtype: dtype.name().into(), table, matrices };
    let description =
        serde_json::to_string(&description).map_err(|error| Error::Internal(error.to_string()))?;
    metadata.insert(LAYOUT_KEY.into(), PANEL_LAYOUT_VERSION.to_string());
    metadata.insert(format!("{DESCRIPTION_KEY}{}", spec.name), description);
    let parts = weight.bytes_for_file();
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let padded = len.next_multiple_of(PAGE);
    Ok(Some(TensorToWrite {
        name: spec.name.clone(),
        dtype: Dtype::U8,
        shape: vec![padded],
        content: Box::new(move |sink| {
            for piece in parts.iter().flat_map(|part| part.chunks(BYTES_PER_LOOK)) {
                if interrupt() {
                    return Err(Error::Interrupted);
                }
                sink(piece)?;
            }
            sink(&[0; PAGE][..padded - len])
        }),
    }))
}
