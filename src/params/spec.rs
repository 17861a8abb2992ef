//! What there is to know of a weight before it has values.

/// What a weight is initialised with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A kernel or a table: sampled by the initialiser.
    Kernel,
    /// A kernel that is sampled by LeCun's rule, whatever the initialiser.
    LecunKernel,
    /// A bias or beta: zeros.
    Bias,
    /// A gamma: ones.
    Scale,
}

/// How a weight is used, which decides how it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Values in a row, always in the activations' type.
    Vector,
    /// A table that is read by rows.
    Table {
        /// Number of rows.
        rows: usize,
        /// Values per row.
        width: usize,
    },
    /// Right operands of products, one after the other.
    Matrices {
        /// Number of matrices (experts; else 1).
        count: usize,
        /// Rows of one matrix.
        k: usize,
        /// Columns of one matrix.
        n: usize,
        /// Whether they stay in the activations' type whatever the encoder's `dtype`.
        full_precision: bool,
    },
}

/// One weight: its Keras name (without layer prefix and `:0`), shape, role and form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// For example `transformer/layer_0/linear_transform/hidden_kernel`.
    pub name: String,
    /// Sizes, outermost first; values are row-major.
    pub shape: Vec<usize>,
    /// How it starts.
    pub role: Role,
    /// How it is used.
    pub form: Form,
}

impl Spec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it is rounded to the storage type of the part.
    pub fn is_low_precision(&self) -> bool {
        match self.form {
            Form::Vector => false,
            Form::Table { .. } => true,
            Form::Matrices { full_precision, .. } => !full_precision,
        }
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
