//! The list in which layers declare their weights, and the keys that they get for them.

use super::spec::{Form, Role, Spec};

/// The weights of a part, in the order in which its layers declare them: the order of Keras.
#[derive(Clone, Debug, Default)]
pub struct WeightList {
    specs: Vec<Spec>,
}

/// Which weight of its list a key stands for.
pub trait WeightKey: Copy {
    /// Its place in the list.
    fn index(self) -> usize;
}

/// A weight by number, for callers that know no layers.
impl WeightKey for usize {
    fn index(self) -> usize {
        self
    }
}

/// Stands for a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorKey(usize);

/// Stands for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableKey(usize);

/// Stands for one right operand or several of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixKey(usize);

impl WeightKey for VectorKey {
    fn index(self) -> usize {
        self.0
    }
}

impl WeightKey for TableKey {
    fn index(self) -> usize {
        self.0
    }
}

impl WeightKey for MatrixKey {
    fn index(self) -> usize {
        self.0
    }
}

impl WeightList {
    /// An empty list.
    pub fn new() -> Self {
        WeightList::default()
    }

    /// What has been declared.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// The same, without the list.
    pub fn into_specs(self) -> Vec<Spec> {
        self.specs
    }

    /// Declares a vector; `shape` as Keras has it.
    pub fn vector(&mut self, name: impl Into<String>, role: Role, shape: &[usize]) -> VectorKey {
        VectorKey(self.push(name.into(), role, shape, Form::Vector))
    }

    /// Declares a table of `rows` rows of `width`.
    pub fn table(&mut self, name: impl Into<String>, rows: usize, width: usize) -> TableKey {
        TableKey(self.push(name.into(), Role::Kernel, &[rows, width], Form::Table { rows, width }))
    }

    /// Declares a `k x n` right operand.
    pub fn matrix(&mut self, name: impl Into<String>, k: usize, n: usize) -> MatrixKey {
        self.matrices(name, &[k, n], 1, k, n)
    }

    /// Declares `count` right operands of `k x n` in one weight; `shape` as Keras has it.
    pub fn matrices(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        count: usize,
        k: usize,
        n: usize,
    ) -> MatrixKey {
        let form = Form::Matrices { count, k, n, full_precision: false };
        MatrixKey(self.push(name.into(), Role::Kernel, shape, form))
    }

    /// Has a declared weight initialised as `role` says.
    pub fn initialize_as(&mut self, key: impl WeightKey, role: Role) {
        self.specs[key.index()].role = role;
    }

    /// Has declared matrices stored in the activations' type whatever the encoder's `dtype`.
    pub fn keep_full_precision(&mut self, key: MatrixKey) {
        if let Form::Matrices { full_precision, .. } = &mut self.specs[key.index()].form {
            *full_precision = true;
        }
    }

    fn push(&mut self, name: String, role: Role, shape: &[usize], form: Form) -> usize {
        let spec = Spec { name, shape: shape.to_vec(), role, form };
        debug_assert_eq!(spec.len(), form.len(spec.len()), "{}", spec.name);
        self.specs.push(spec);
        self.specs.len() - 1
    }
}

impl Form {
    /// Number of values of a weight of this form; a vector has as many as its shape, `of_shape`.
    fn len(self, of_shape: usize) -> usize {
        match self {
            Form::Vector => of_shape,
            Form::Table { rows, width } => rows * width,
            Form::Matrices { count, k, n, .. } => count * k * n,
        }
    }
}
