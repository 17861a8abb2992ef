//! How a parameter is stored, and what one update of it consists of.

use crate::error::{Error, Result};
use crate::kernels::{Dtype, LowPrecision, PANEL, Real};
use crate::params::{ChosenWeight, Form, Spec, Version, Weight};
use crate::sys::{alloc_collect, alloc_extend, alloc_zeroed};

/// Values that are unpacked at a time: they stay in the L2 cache until somebody has read them.
const PIECE: usize = 1 << 16;

/// Storage order of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Row-major, as the gradient.
    Flat,
    /// `matrices` matrices of `k x n` one after the other, each in column panels: element `(i, j)` is at
    /// `[j / 32][i][j % 32]`, missing columns of the last panel are zeros.
    Panels {
        /// Number of matrices (experts; else 1).
        matrices: usize,
        /// Rows of one matrix.
        k: usize,
        /// Columns of one matrix.
        n: usize,
    },
}

/// What the optimiser must know about a parameter before the first step.
#[derive(Clone, Debug)]
pub struct ParameterSpec {
    /// The weight's name, for checkpoints and errors.
    pub name: String,
    /// Shape of the weight and its gradient. Its flattening is the row-major order of `layout`'s matrices.
    pub shape: Vec<usize>,
    /// Storage order of the values.
    pub layout: Layout,
    /// Whether weight decay applies.
    pub decay: bool,
    /// Whether LAMB scales the step by the trust ratio.
    pub adapt: bool,
    /// Whether the weight is stored in low precision: the optimiser keeps a master in full precision beside it.
    pub low_precision: bool,
}

/// A gradient, row-major in the parameter's shape.
#[derive(Clone, Copy, Debug)]
pub enum Gradient<'a, R> {
    /// The parameter is frozen or was not reached: values and moments stay as they are.
    None,
    /// One number per element.
    Dense(&'a [R]),
}

/// One parameter's part in a step.
#[derive(Debug)]
pub struct Update<'a, R> {
    /// The storage, in any number of slices; for [`Layout::Panels`] each holds whole matrices. Empty if in low precision.
    pub values: Vec<&'a mut [R]>,
    /// The storage of a weight that is stored in low precision, in order; else empty. For [`Layout::Panels`] each holds one
    /// panel, for [`Layout::Flat`] there is one.
    pub low_precision: Vec<LowPrecision<'a>>,
    /// The gradient.
    pub gradient: Gradient<'a, R>,
    /// Versions of the weight before and after the step, if it has any: a master that the last step left fits the version
    /// that this step left.
    pub versions: Option<[Version; 2]>,
}

impl Layout {
    /// Elements of the storage of a parameter of `shape`, padding included.
    pub fn storage_len(self, shape: &[usize]) -> usize {
        match self {
            Layout::Flat => shape.iter().product(),
            Layout::Panels { matrices, k, n } => matrices * panels_len(k, n),
        }
    }

    /// Hands the row-major values of `storage` to `visit` in pieces, in order.
    ///
    /// # Errors
    /// The first one of `visit`.
    pub fn try_for_each_piece<R: Real>(
        self,
        storage: &[R],
        mut visit: impl FnMut(&[R]) -> Result<()>,
    ) -> Result<()> {
        let Layout::Panels { matrices, k, n } = self else { return visit(storage) };
        let piece_rows = (PIECE / n.max(1)).clamp(1, k.max(1));
        let mut piece = alloc_zeroed(piece_rows * n);
        for matrix in 0..matrices {
            let panels = &storage[matrix * panels_len(k, n)..][..panels_len(k, n)];
            for first in (0..k).step_by(piece_rows) {
                let rows = piece_rows.min(k - first);
                for (i, row) in piece.chunks_exact_mut(n.max(1)).take(rows).enumerate() {
                    for (panel, out) in row.chunks_mut(PANEL).enumerate() {
                        out.copy_from_slice(&panels[(panel * k + first + i) * PANEL..][..out.len()]);
                    }
                }
                visit(&piece[..rows * n])?;
            }
        }
        Ok(())
    }

    /// Storage holding the `row_major` values of a parameter of `shape`.
    pub fn pack<R: Real>(self, shape: &[usize], row_major: &[R]) -> Vec<R> {
        match self {
            Layout::Flat => alloc_collect(row_major.iter().copied()),
            Layout::Panels { .. } => {
                let mut out = alloc_zeroed(self.storage_len(shape));
                self.for_each_panel_row(|at, from, width| {
                    out[at..at + width].copy_from_slice(&row_major[from..from + width]);
                });
                out
            }
        }
    }

    /// Calls `visit(offset in storage, offset row-major, columns)` for every row of every panel.
    fn for_each_panel_row(self, mut visit: impl FnMut(usize, usize, usize)) {
        let Layout::Panels { matrices, k, n } = self else { return };
        let mut at = 0;
        for matrix in 0..matrices {
            for column in (0..n).step_by(PANEL) {
                for row in 0..k {
                    visit(at, (matrix * k + row) * n + column, PANEL.min(n - column));
                    at += PANEL;
                }
            }
        }
    }
}

impl<'a, R: Real> Update<'a, R> {
    /// No update: the weight stays as it is.
    pub fn none() -> Self {
        Update { values: Vec::new(), low_precision: Vec::new(), gradient: Gradient::None, versions: None }
    }

    /// The update of a weight of a layer.
    ///
    /// # Errors
    /// If the weight is stored in 8 bits: those cannot be trained.
    pub fn of(chosen: ChosenWeight<'a, R>, gradient: Gradient<'a, R>) -> Result<Self> {
        let versions = Some(chosen.versions);
        let mut update = Update { values: Vec::new(), low_precision: Vec::new(), gradient, versions };
        match chosen.weight {
            Weight::Vector(values) => update.values.push(values),
            Weight::Table(table) => {
                if table.full_precision().is_some() {
                    update.values.extend(table.full_precision_mut());
                } else {
                    update.low_precision.extend(table.low_precision_mut());
                }
            }
            Weight::Matrices(matrices) => {
                for matrix in matrices {
                    match matrix.dtype() {
                        Dtype::Float32 => update.values.extend(matrix.full_precision_mut()),
                        Dtype::Int8 => return Err(not_trainable()),
                        Dtype::Bfloat16 | Dtype::Float16 => {
                            alloc_extend(
                                &mut update.low_precision,
                                matrix.low_precision_mut().unwrap_or_default(),
                            );
                        }
                    }
                }
            }
        }
        Ok(update)
    }
}

/// What is said of 8-bit weights.
fn not_trainable() -> Error {
    Error::value(
        "dtype",
        "got int8, expected float32, bfloat16 or float16: weights in 8 bits cannot be trained",
    )
}

/// Elements of one `k x n` matrix in panels.
pub(super) fn panels_len(k: usize, n: usize) -> usize {
    n.div_ceil(PANEL) * k * PANEL
}

impl ParameterSpec {
    /// Describes the weight `spec` that is stored as `weight`.
    pub fn of<R: Real>(spec: &Spec, weight: &Weight<R>, decay: bool, adapt: bool) -> Self {
        let layout = match spec.form {
            Form::Vector | Form::Table { .. } => Layout::Flat,
            Form::Matrices { count: matrices, k, n, .. } => Layout::Panels { matrices, k, n },
        };
        let low_precision = match weight {
            Weight::Vector(_) => false,
            Weight::Table(table) => table.full_precision().is_none(),
            Weight::Matrices(matrices) => matrices.iter().any(|matrix| matrix.dtype() != Dtype::Float32),
        };
        ParameterSpec {
            name: spec.name.clone(),
            shape: spec.shape.clone(),
            layout,
            decay,
            adapt,
            low_precision,
        }
    }

    /// Elements of the weight, without padding.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the weight has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks that shape and layout have the same number of elements.
    pub(super) fn validate(&self) -> Result<()> {
        match self.layout {
            Layout::Panels { matrices, k, n } if matrices * k * n != self.len() => {
                Err(Error::Internal(format!(
                    "{}: shape {:?} does not have the {matrices} x {k} x {n} elements of its layout",
                    self.name, self.shape
                )))
            }
            _ => Ok(()),
        }
    }

    /// Checks one update against the spec, before anything is changed.
    pub(super) fn check<R: Real>(&self, update: &Update<'_, R>) -> Result<()> {
        if matches!(update.gradient, Gradient::None) {
            return Ok(());
        }
        let plain: usize = update.values.iter().map(|v| v.len()).sum();
        let stored = plain + update.low_precision.iter().map(LowPrecision::len).sum::<usize>();
        let expected = self.layout.storage_len(&self.shape);
        let whole = match self.layout {
            Layout::Flat => update.low_precision.len() <= 1,
            Layout::Panels { k, n, .. } => {
                let matrix = panels_len(k, n);
                update.values.iter().all(|v| matrix == 0 || v.len().is_multiple_of(matrix))
                    && update.low_precision.iter().all(|panel| panel.len() == k * PANEL)
            }
        };
        if stored != expected || !whole || self.low_precision == update.low_precision.is_empty() && stored > 0
        {
            return Err(Error::Internal(format!(
                "{}: storage of {stored} elements, expected {expected}",
                self.name
            )));
        }
        self.check_gradient(&update.gradient)
    }

    /// Checks a gradient against the spec.
    pub(super) fn check_gradient<R: Real>(&self, gradient: &Gradient<'_, R>) -> Result<()> {
        match gradient {
            Gradient::None => Ok(()),
            Gradient::Dense(g) if g.len() == self.len() => Ok(()),
            Gradient::Dense(g) => Err(Error::value(
                format!("gradient of {}", self.name),
                format!("got {} elements, expected shape {:?}", g.len(), self.shape),
            )),
        }
    }
}
