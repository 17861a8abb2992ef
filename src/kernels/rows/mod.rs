//! Work on rows, or on single elements, of activations.

mod add;
mod dropout;
mod elementwise;
mod formulas;
mod layer_norm;
mod softmax;
mod transpose;

pub use add::{add_in_place, axpy};
pub use dropout::{dropout, philox, unit};
pub use elementwise::{
    Elementwise, elementwise, elementwise_backward, elementwise_to_bfloat16, elementwise_with_backward,
};
pub use layer_norm::{layer_norm, layer_norm_backward};
pub use softmax::{
    dropped_softmax_backward, exponentials, exponentials_to_bfloat16, log_sum_exp, softmax_backward,
    softmax_in_place,
};
pub use transpose::transpose;
