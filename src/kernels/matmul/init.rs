//! What sums begin with.

/// What the product is added to.
#[derive(Clone, Copy, Debug)]
pub enum Init<'a, R> {
    /// Nothing.
    Zero,
    /// A row, one value per column of the whole right operand.
    Bias(&'a [R]),
    /// What `out` holds.
    Accumulate,
}
