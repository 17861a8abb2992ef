//! Adafactor: second moments of matrices kept as row and column means (Shazeer & Stern 2018,
//! <https://arxiv.org/abs/1804.04235>), as Keras's `Adafactor`.
//!
//! With step `t = 1, 2, ...`, gradient `g`, `b = 1 - t^beta_2_decay`, the last two axes factored:
//! ```text
//! p <- p - lr decay p
//! r_i <- b r_i + (1 - b) mean_j(g_ij^2 + epsilon_1)      c_j <- b c_j + (1 - b) mean_i(g_ij^2 + epsilon_1)
//! u_ij = g_ij / sqrt(r_i c_j / mean_i(r_i))              vectors: u = g / sqrt(v), v kept whole
//! p <- p - max(epsilon_2, rms(p)) rho u / max(1, rms(u) / clip_threshold)
//! rho = min(lr, 1 / sqrt(t)), or lr if relative_step is off
//! ```
//!
//! Differs from Keras: `relative_step = false` takes `lr` as it is (Keras bounds it all the same), and the product
//! `r_i c_j` is not formed, so rows that never had a gradient cannot underflow to 0/0.

use serde::{Deserialize, Serialize};

use super::blocks::{BLOCK, BlockSums, block_count, cut_one, for_each_block};
use super::checks::{check_non_negative, check_positive};
use super::clip::sum_of_squares;
use super::layout::{Gradient, ParameterSpec, Update};
use crate::error::{Error, Result};
use crate::kernels::{Isa, Real};
use crate::runtime::{inject_fault, parallel};
use crate::sys::alloc_zeroed;

/// Settings of Adafactor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adafactor {
    /// Exponent of the step in the decay of the second moment.
    pub beta_2_decay: f64,
    /// Added to squared gradients; positive.
    pub epsilon_1: f64,
    /// Lower bound of the parameter's root mean square in the step size.
    pub epsilon_2: f64,
    /// Largest root mean square of a direction; positive.
    pub clip_threshold: f64,
    /// Whether the learning rate is bounded by one over the root of the step.
    pub relative_step: bool,
    /// Factor of the parameter in its own step, for parameters that decay.
    pub weight_decay: f64,
}

/// Directions that are computed at a time, on the stack.
const AT_ONCE: usize = 64;

/// The last two axes of a shape, the others merged.
#[derive(Clone, Copy)]
struct Matrices {
    batches: usize,
    rows: usize,
    cols: usize,
}

impl Matrices {
    fn of(shape: &[usize]) -> Option<Self> {
        let [batch @ .., rows, cols] = shape else { return None };
        Some(Matrices { batches: batch.iter().product(), rows: *rows, cols: *cols })
    }

    /// Rows whose squares one task sums up.
    fn band_rows(self) -> usize {
        (4 * BLOCK / self.cols.max(1)).max(1)
    }

    fn bands(self) -> usize {
        self.batches * self.rows.div_ceil(self.band_rows())
    }
}

/// Memory of a step, for the largest weight.
#[derive(Debug)]
pub(super) struct AdafactorRoom<R> {
    squares: Squares<R>,
    sums: BlockSums,
}

/// Sums of squared gradients, and the factors made of them.
#[derive(Debug)]
struct Squares<R> {
    /// Sums of squares along the columns, `[batches * rows]`.
    row_squares: Vec<f64>,
    /// Sums of squares along the rows, `[batches * cols]`; and of each band, `[bands * cols]`.
    col_squares: Vec<f64>,
    band_squares: Vec<f64>,
    row_factors: Vec<R>,
    col_factors: Vec<R>,
}

impl<R: Real> AdafactorRoom<R> {
    /// All memory that a step with `updates` takes.
    pub fn new(specs: &[ParameterSpec], updates: &[Update<'_, R>]) -> Self {
        let (mut rows, mut cols, mut band_cols, mut blocks) = (0, 0, 0, 0);
        for (spec, update) in specs.iter().zip(updates) {
            if matches!(update.gradient, Gradient::None) {
                continue;
            }
            blocks = blocks.max(block_count(spec, update));
            if let Some(dims) = Matrices::of(&spec.shape) {
                rows = rows.max(dims.batches * dims.rows);
                cols = cols.max(dims.batches * dims.cols);
                band_cols = band_cols.max(dims.bands() * dims.cols);
            }
        }
        let squares = Squares {
            row_squares: alloc_zeroed(rows),
            col_squares: alloc_zeroed(cols),
            band_squares: alloc_zeroed(band_cols),
            row_factors: alloc_zeroed(rows),
            col_factors: alloc_zeroed(cols),
        };
        AdafactorRoom { squares, sums: BlockSums::new(blocks, 1) }
    }
}

/// Factors that turn a gradient into a direction.
enum Whitening<'a, R> {
    /// `1 / sqrt(r_i / mean(r))` for every row of every matrix, `1 / sqrt(c_j)` for every column of every matrix.
    Factored { dims: Matrices, row_factors: &'a [R], col_factors: &'a [R] },
    /// The second moment of every element.
    Whole(&'a [R]),
}

/// Shapes of the statistics of a weight of `shape`.
pub(super) fn slot_shapes(shape: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
    match shape {
        [batch @ .., rows, cols] => {
            let with = |last: usize| [batch, &[last]].concat();
            vec![("r", with(*rows)), ("c", with(*cols))]
        }
        _ => vec![("v", shape.to_vec())],
    }
}

impl Adafactor {
    pub(super) fn validate(&self) -> Result<()> {
        if !self.beta_2_decay.is_finite() || self.beta_2_decay > 0.0 {
            let message = "expected a finite number, at most 0: the decay is 1 - step^beta_2_decay (optax writes the \
                           same exponent as decay_rate, without the minus)";
            return Err(Error::value("beta_2_decay", format!("got {}, {message}", self.beta_2_decay)));
        }
        check_positive("epsilon_1", self.epsilon_1)?;
        check_non_negative("epsilon_2", self.epsilon_2)?;
        check_positive("clip_threshold", self.clip_threshold)?;
        check_non_negative("weight_decay", self.weight_decay)
    }

    /// One step of every parameter that has a gradient; moments as [`slot_shapes`] names them.
    pub(super) fn apply<R: Real>(
        &self,
        specs: &[ParameterSpec],
        updates: &mut [Update<'_, R>],
        slots: &mut [Vec<Vec<R>>],
        room: &mut AdafactorRoom<R>,
        step: u64,
        learning_rate: f64,
        scale: f64,
    ) {
        for ((spec, update), slots) in specs.iter().zip(updates).zip(slots) {
            if !matches!(update.gradient, Gradient::None) && !spec.is_empty() {
                self.apply_one(spec, update, slots, room, step, learning_rate, scale);
            }
        }
    }

    fn apply_one<R: Real>(
        &self,
        spec: &ParameterSpec,
        update: &mut Update<'_, R>,
        slots: &mut [Vec<R>],
        room: &mut AdafactorRoom<R>,
        step: u64,
        learning_rate: f64,
        scale: f64,
    ) {
        let isa = Isa::fastest();
        let (statistics, master) = slots.split_at_mut(slots.len() - usize::from(spec.low_precision));
        let whitening = self.advance(spec, update.gradient, statistics, &mut room.squares, step, scale);
        let squares = room.sums.of(cut_one::<R, 0>(0, spec, update, master), |block| {
            let mut sums = [0.0; 2];
            block.for_each_row_major_run(|offset, values, [], gradient| {
                sums[0] += sum_of_squares(values);
                whitening.for_each_direction(offset, gradient, |_, directions| {
                    directions.iter().for_each(|u| sums[1] += u.to_f64() * u.to_f64());
                });
            });
            sums
        });
        let keep = if spec.decay { 1.0 - learning_rate * self.weight_decay } else { 1.0 };
        let root_mean = |which: usize| (squares[0][which] / spec.len() as f64).sqrt();
        let (values_rms, direction_rms) = (keep * root_mean(0), scale * root_mean(1));
        let bound = if self.relative_step { 1.0 / (step as f64).sqrt() } else { f64::INFINITY };
        let size = self.epsilon_2.max(values_rms) * learning_rate.min(bound);
        let rate = R::from_f64(scale * size / (direction_rms / self.clip_threshold).max(1.0));
        let keep = R::from_f64(keep);
        for_each_block(cut_one::<R, 0>(0, spec, update, master), |block| {
            block.for_each_row_major_run(|offset, values, [], gradient| {
                whitening.for_each_direction(offset, gradient, |first, directions| {
                    for (p, &u) in values[first..].iter_mut().zip(directions) {
                        *p = *p * keep - u * rate;
                    }
                });
            });
            block.store(isa);
        });
    }

    /// Moves the statistics towards the squared gradient and returns the factors they give.
    fn advance<'s, R: Real>(
        &self,
        spec: &ParameterSpec,
        gradient: Gradient<'_, R>,
        statistics: &'s mut [Vec<R>],
        room: &'s mut Squares<R>,
        step: u64,
        scale: f64,
    ) -> Whitening<'s, R> {
        let forget = (step as f64).powf(self.beta_2_decay);
        let blend = |old: R, new: f64| R::from_f64((1.0 - forget) * old.to_f64() + forget * new);
        let squared_scale = scale * scale;
        let Some(dims) = Matrices::of(&spec.shape) else {
            let v = &mut statistics[0];
            if let Gradient::Dense(g) = gradient {
                parallel::for_each(v.chunks_mut(BLOCK).zip(g.chunks(BLOCK)), |(v, g), _| {
                    inject_fault();
                    for (v, g) in v.iter_mut().zip(g) {
                        *v = blend(*v, g.to_f64() * g.to_f64() * squared_scale + self.epsilon_1);
                    }
                });
            }
            return Whitening::Whole(v);
        };
        let (row_squares, col_squares) = room.fill(dims, gradient);
        let [r, c] = statistics else { unreachable!("a matrix has row and column statistics") };
        let mean = |squares: f64, count: usize| squares * squared_scale / count as f64 + self.epsilon_1;
        for (r, squares) in r.iter_mut().zip(row_squares) {
            *r = blend(*r, mean(*squares, dims.cols));
        }
        for (c, squares) in c.iter_mut().zip(col_squares) {
            *c = blend(*c, mean(*squares, dims.rows));
        }
        let row_factors = &mut room.row_factors[..r.len()];
        for (r, factors) in r.chunks_exact(dims.rows).zip(row_factors.chunks_exact_mut(dims.rows)) {
            let mean = r.iter().map(|x| x.to_f64()).sum::<f64>() / dims.rows as f64;
            r.iter().zip(factors).for_each(|(x, factor)| *factor = R::from_f64((mean / x.to_f64()).sqrt()));
        }
        let col_factors = &mut room.col_factors[..c.len()];
        for (c, factor) in c.iter().zip(&mut *col_factors) {
            *factor = R::from_f64(c.to_f64().sqrt().recip());
        }
        Whitening::Factored { dims, row_factors, col_factors }
    }
}

impl<R: Real> Whitening<'_, R> {
    /// Calls `visit(index of the first in gradient, directions)` for some at a time of a run of the gradient that begins at
    /// row-major index `offset`; the gradient's scale is left out.
    #[inline]
    fn for_each_direction(&self, offset: usize, gradient: &[R], mut visit: impl FnMut(usize, &[R])) {
        let mut directions = [R::ZERO; AT_ONCE];
        match self {
            Whitening::Whole(v) => {
                let pieces = gradient.chunks(AT_ONCE).zip(v[offset..].chunks(AT_ONCE));
                for (piece, (gradient, v)) in pieces.enumerate() {
                    let directions = &mut directions[..gradient.len()];
                    for ((u, &g), v) in directions.iter_mut().zip(gradient).zip(v) {
                        *u = g / v.sqrt();
                    }
                    visit(piece * AT_ONCE, directions);
                }
            }
            Whitening::Factored { dims, row_factors, col_factors } => {
                let mut at = 0;
                while at < gradient.len() {
                    let (row, col) = ((offset + at) / dims.cols, (offset + at) % dims.cols);
                    let len = (dims.cols - col).min(gradient.len() - at).min(AT_ONCE);
                    let first_col = row / dims.rows * dims.cols + col;
                    let row_factor = row_factors[row];
                    let directions = &mut directions[..len];
                    let factors = gradient[at..].iter().zip(&col_factors[first_col..]);
                    for (u, (&g, &col_factor)) in directions.iter_mut().zip(factors) {
                        *u = g * row_factor * col_factor;
                    }
                    visit(at, directions);
                    at += len;
                }
            }
        }
    }
}

impl<R: Real> Squares<R> {
    /// Sums of squares of `gradient` along the columns (`[batches * rows]`) and along the rows (`[batches * cols]`).
    ///
    /// Column sums are formed per band of rows and the bands added in order, so threads do not change the bits.
    fn fill(&mut self, dims: Matrices, gradient: Gradient<'_, R>) -> (&[f64], &[f64]) {
        let Matrices { batches, rows, cols } = dims;
        let row_at = |row: usize| match gradient {
            Gradient::Dense(g) => &g[row * cols..][..cols],
            Gradient::None => &[],
        };
        let row_squares = &mut self.row_squares[..batches * rows];
        let col_squares = &mut self.col_squares[..batches * cols];
        let band_squares = &mut self.band_squares[..dims.bands() * cols];
        let bands_of_matrix = dims.bands() / batches.max(1);
        let bands = row_squares.chunks_mut(rows).flat_map(|matrix| matrix.chunks_mut(dims.band_rows()));
        let tasks = bands.zip(band_squares.chunks_exact_mut(cols)).enumerate();
        parallel::for_each(tasks, |(band, (by_row, by_col)), _| {
            inject_fault();
            let first = band / bands_of_matrix * rows + band % bands_of_matrix * dims.band_rows();
            by_col.fill(0.0);
            for (row, square) in (first..).zip(by_row) {
                let g = row_at(row);
                for (sum, x) in by_col.iter_mut().zip(g) {
                    *sum += x.to_f64() * x.to_f64();
                }
                *square = sum_of_squares(g);
            }
        });
        col_squares.fill(0.0);
        for (band, by_col) in band_squares.chunks_exact(cols).enumerate() {
            let sums = &mut col_squares[band / bands_of_matrix * cols..][..cols];
            sums.iter_mut().zip(by_col).for_each(|(sum, x)| *sum += x);
        }
        (row_squares, col_squares)
    }
}
