//! How weights are stored, the one list of types for matrices, tables, the router and the arguments of users.
//!
//! (The element types of files, [`checkpoint`](crate::checkpoint), are others: files hold integers and booleans, too, and
//! types that nobody reads.)

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Storage type of weights, and with it the arithmetic of the matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats, the type of the activations. (In gradient tests, whose activations are `f64`, so are these weights.)
    Float32,
    /// bfloat16 weights and activations of products, 32-bit sums.
    Bfloat16,
    /// float16 weights, widened as they are read; 32-bit products and sums.
    Float16,
    /// 8-bit weights with one scale per output column, 8-bit activations with one scale per row, 32-bit integer sums;
    /// inference only.
    Int8,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Dtype; 4] = [Dtype::Float32, Dtype::Bfloat16, Dtype::Float16, Dtype::Int8];

    /// The type called `name`; Keras policy names are understood.
    ///
    /// # Errors
    /// [`Error::Value`] that lists the names.
    pub fn parse(name: &str) -> Result<Dtype> {
        match name {
            "float32" => Ok(Dtype::Float32),
            "bfloat16" | "mixed_bfloat16" => Ok(Dtype::Bfloat16),
            "float16" | "mixed_float16" => Ok(Dtype::Float16),
            "int8" => Ok(Dtype::Int8),
            _ => Err(Error::value(
                "dtype",
                format!("got {name:?}, expected 'float32', 'bfloat16', 'float16' or 'int8'"),
            )),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Float32 => "float32",
            Dtype::Bfloat16 => "bfloat16",
            Dtype::Float16 => "float16",
            Dtype::Int8 => "int8",
        }
    }

    /// The type in which two activations are multiplied where the weights around are of this type.
    pub fn of_activations(self) -> Dtype {
        match self {
            Dtype::Float32 | Dtype::Float16 => Dtype::Float32,
            Dtype::Bfloat16 | Dtype::Int8 => Dtype::Bfloat16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_type() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::parse(dtype.name()).unwrap(), dtype);
            assert_eq!(serde_json::to_string(&dtype).unwrap(), format!("{:?}", dtype.name()));
        }
        assert_eq!(Dtype::parse("mixed_float16").unwrap(), Dtype::Float16);
        let message = Dtype::parse("float64").unwrap_err().to_string();
        assert!(message.contains("float64") && message.contains("'bfloat16'"), "{message}");
    }
}
