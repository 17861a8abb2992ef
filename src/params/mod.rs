//! The weights of a part (an encoder, a head): which there are, their values, their gradients.
//!
//! A layer declares each of its weights once, in its constructor, in a [`WeightList`]: name, shape, and how it is used. It
//! gets a key and keeps that. All the rest follows from the list:
//!
//! | what | from |
//! |---|---|
//! | names and shapes, the order of Keras | [`WeightList::specs`] |
//! | loading, reading, saving, writing in place | [`Weights`], which holds the values |
//! | the gradients' memory | [`Gradients`] |
//! | the moments of optimisers | one entry per weight of [`Weights`] |
//! | the number of a weight, for bindings | its place in the list |
//!
//! A layer finds its values by key in the [`Weights`] of the pass, and its gradients by the same key in [`Gradients`].

mod exchange;
mod gradients;
mod initialize;
mod list;
mod packed_form;
mod spec;
mod table;
#[cfg(test)]
mod testing;
mod values;
mod weights;

pub use exchange::{Wire, pack_bfloat16, tree_sum, unpack_bfloat16};
pub use gradients::{GradientLease, GradientMatrix, GradientSlice, GradientView, GradientViewMut, Gradients};
pub use initialize::{initial_values, sample};
pub use list::{MatrixKey, TableKey, VectorKey, WeightKey, WeightList};
pub use packed_form::PackedForm;
pub use spec::{Form, Role, Spec};
pub use table::Table;
pub use weights::{ChosenWeight, Source, Version, Weight, Weights};
