//! Sums of gradients over micro-batches.

use super::layout::{Gradient, ParameterSpec};
use crate::error::{Error, Result};
use crate::kernels::Real;

/// A gradient that owns its numbers; see [`Gradient`].
#[derive(Clone, Debug, Default, PartialEq)]
pub enum OwnedGradient<R> {
    /// Nothing was added.
    #[default]
    None,
    /// One number per element.
    Dense(Vec<R>),
    /// Rows of a table, strictly ascending, and their values.
    Rows {
        /// Row numbers.
        rows: Vec<u32>,
        /// Values, `[rows, W]`.
        values: Vec<R>,
    },
}

/// Running sums of the gradients of all parameters. Tables whose gradients come as rows stay rows.
#[derive(Clone, Debug, Default)]
pub struct Accumulator<R> {
    sums: Vec<OwnedGradient<R>>,
    count: u64,
}

impl<R: Real> Accumulator<R> {
    /// Sums of nothing.
    pub fn new() -> Self {
        Accumulator { sums: Vec::new(), count: 0 }
    }

    /// How many gradients were added since the last [`Accumulator::clear`].
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Adds one gradient per parameter of `specs`; on an error nothing is added.
    pub fn add(&mut self, specs: &[ParameterSpec], gradients: &[Gradient<'_, R>]) -> Result<()> {
        if gradients.len() != specs.len() {
            let message = format!("got {} of them, expected {}", gradients.len(), specs.len());
            return Err(Error::value("gradients", message));
        }
        for (spec, gradient) in specs.iter().zip(gradients) {
            spec.check_gradient(gradient)?;
        }
        self.sums.resize(specs.len(), OwnedGradient::None);
        for ((spec, sum), gradient) in specs.iter().zip(&mut self.sums).zip(gradients) {
            sum.add(spec.shape.last().copied().unwrap_or(1), *gradient);
        }
        self.count += 1;
        Ok(())
    }

    /// The sums, in the order of the parameters.
    pub fn sums(&self) -> impl Iterator<Item = Gradient<'_, R>> {
        self.sums.iter().map(OwnedGradient::borrow)
    }

    /// Forgets the sums; dense buffers are kept for the next ones.
    pub fn clear(&mut self) {
        for sum in &mut self.sums {
            match sum {
                OwnedGradient::Dense(values) => values.fill(R::ZERO),
                _ => *sum = OwnedGradient::None,
            }
        }
        self.count = 0;
    }
}

impl<R: Real> OwnedGradient<R> {
    /// View of the numbers.
    pub fn borrow(&self) -> Gradient<'_, R> {
        match self {
            OwnedGradient::None => Gradient::None,
            OwnedGradient::Dense(values) => Gradient::Dense(values),
            OwnedGradient::Rows { rows, values } => Gradient::Rows { rows, values },
        }
    }

    /// `self += gradient`, where rows have `width` elements.
    fn add(&mut self, width: usize, gradient: Gradient<'_, R>) {
        match (&mut *self, gradient) {
            (_, Gradient::None) => {}
            (OwnedGradient::None, Gradient::Dense(g)) => *self = OwnedGradient::Dense(g.to_vec()),
            (OwnedGradient::None, Gradient::Rows { rows, values }) => {
                *self = OwnedGradient::Rows { rows: rows.to_vec(), values: values.to_vec() };
            }
            (OwnedGradient::Dense(sum), Gradient::Dense(g)) => add_assign(sum, g),
            (OwnedGradient::Dense(sum), Gradient::Rows { rows, values }) => {
                add_rows(sum, width, rows, values)
            }
            (OwnedGradient::Rows { rows, values }, Gradient::Dense(g)) => {
                let mut sum = g.to_vec();
                add_rows(&mut sum, width, rows, values);
                *self = OwnedGradient::Dense(sum);
            }
            (OwnedGradient::Rows { rows, values }, Gradient::Rows { rows: more, values: added }) => {
                (*rows, *values) = merge_rows(width, (rows, values), (more, added));
            }
        }
    }
}

fn add_assign<R: Real>(sum: &mut [R], values: &[R]) {
    for (s, &x) in sum.iter_mut().zip(values) {
        *s += x;
    }
}

fn add_rows<R: Real>(table: &mut [R], width: usize, rows: &[u32], values: &[R]) {
    for (&row, values) in rows.iter().zip(values.chunks_exact(width)) {
        add_assign(&mut table[row as usize * width..][..width], values);
    }
}

/// Sum of two row-sparse gradients.
fn merge_rows<R: Real>(width: usize, a: (&[u32], &[R]), b: (&[u32], &[R])) -> (Vec<u32>, Vec<R>) {
    let mut rows = Vec::with_capacity(a.0.len() + b.0.len());
    let mut values = Vec::with_capacity(a.1.len() + b.1.len());
    let (mut i, mut j) = (0, 0);
    while i < a.0.len() || j < b.0.len() {
        let row_of = |rows: &[u32], at: usize| rows.get(at).copied().unwrap_or(u32::MAX);
        let row = row_of(a.0, i).min(row_of(b.0, j));
        rows.push(row);
        let start = values.len();
        values.resize(start + width, R::ZERO);
        for (source, at) in [(a, &mut i), (b, &mut j)] {
            if *at < source.0.len() && source.0[*at] == row {
                add_assign(&mut values[start..], &source.1[*at * width..][..width]);
                *at += 1;
            }
        }
    }
    (rows, values)
}
