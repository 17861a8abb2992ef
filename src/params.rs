//! Weights by name: what exists, in which order and shape, how it is stored, and how to read and write it.

use std::borrow::Cow;

use crate::config::{InitializerConfig, SparseMixerConfig};
use crate::error::{Error, Result};
use crate::kernels::{Dtype, PackedMatrix, Real};
use crate::layers::Table;
use crate::random::{Purpose, RngStream, normal_quantile, open_unit, place_of};
use crate::runtime::{inject_fault, parallel};
use crate::sys::alloc_zeroed_huge;

/// What a weight is initialised with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A kernel or a table: drawn by the initialiser.
    Kernel,
    /// A bias or beta: zeros.
    Bias,
    /// A gamma: ones.
    Scale,
}

/// One weight: its Keras name (without layer prefix and `:0`), shape and role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// For example `transformer/layer_0/linear_transform/hidden_kernel`.
    pub name: String,
    /// Sizes, outermost first; values are row-major.
    pub shape: Vec<usize>,
    /// How it starts.
    pub role: Role,
}

impl Spec {
    /// A kernel or table.
    pub fn kernel(name: impl Into<String>, shape: &[usize]) -> Self {
        Spec { name: name.into(), shape: shape.to_vec(), role: Role::Kernel }
    }

    /// A bias.
    pub fn bias(name: impl Into<String>, shape: &[usize]) -> Self {
        Spec { name: name.into(), shape: shape.to_vec(), role: Role::Bias }
    }

    /// A gamma and a beta of `size` under `prefix`.
    pub fn layer_norm(prefix: &str, size: usize) -> [Self; 2] {
        [
            Spec { name: format!("{prefix}/gamma"), shape: vec![size], role: Role::Scale },
            Spec::bias(format!("{prefix}/beta"), &[size]),
        ]
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Gives the row-major values of one weight after the other, in the order of [`crate::network::specs`]; borrowed where
/// they need not be made, such as those of a mapped file.
pub type Source<'a, R> = &'a mut dyn FnMut(&Spec) -> Result<Cow<'a, [R]>>;

/// Hands weights from a [`Source`] to the layers that are being built, in order. Large ones are packed with the
/// threads of [`parallel::with_threads`].
pub struct Loader<'a, R: Real> {
    specs: std::vec::IntoIter<Spec>,
    source: Source<'a, R>,
    /// How matrices and tables are to be stored.
    pub dtype: Dtype,
}

impl<'a, R: Real> Loader<'a, R> {
    /// A loader of the weights `specs` from `source`.
    pub fn new(specs: Vec<Spec>, source: Source<'a, R>, dtype: Dtype) -> Self {
        Loader { specs: specs.into_iter(), source, dtype }
    }

    /// The values of the next weight.
    fn next(&mut self, len: usize) -> Result<Cow<'a, [R]>> {
        let Some(spec) = self.specs.next() else {
            return Err(Error::Internal("a layer asks for more weights than it lists".into()));
        };
        inject_fault();
        let values = (self.source)(&spec)?;
        if spec.len() != len {
            return Err(Error::Internal(format!("{} is listed with {:?}", spec.name, spec.shape)));
        }
        if values.len() != len {
            return Err(Error::value(
                spec.name,
                format!("got {} values, expected {len} for shape {:?}", values.len(), spec.shape),
            ));
        }
        Ok(values)
    }

    /// A vector of `len` values.
    pub fn vector(&mut self, len: usize) -> Result<Vec<R>> {
        Ok(self.next(len)?.into_owned())
    }

    /// A `k x n` right operand.
    pub fn matrix(&mut self, k: usize, n: usize) -> Result<PackedMatrix<R>> {
        self.matrix_as(k, n, self.dtype)
    }

    /// A `k x n` right operand of type `dtype` whatever the encoder's.
    pub fn matrix_as(&mut self, k: usize, n: usize, dtype: Dtype) -> Result<PackedMatrix<R>> {
        Ok(PackedMatrix::pack_with(k, n, dtype, &self.next(k * n)?, parallel::as_parallel_for()))
    }

    /// `count` right operands of `k x n`, one weight `[count, k, n]`.
    pub fn matrices(&mut self, count: usize, k: usize, n: usize) -> Result<Vec<PackedMatrix<R>>> {
        let values = self.next(count * k * n)?;
        let pack = |i: usize| PackedMatrix::pack(k, n, self.dtype, &values[i * k * n..][..k * n]);
        Ok(parallel::map(0..count, pack))
    }

    /// A table of `rows` rows of `width`.
    pub fn table(&mut self, rows: usize, width: usize) -> Result<Table<R>> {
        let values = self.next(rows * width)?;
        Ok(Table::new_with(rows, width, self.dtype, &values, parallel::as_parallel_for()))
    }
}

/// A weight as a layer stores it.
#[derive(Clone, Debug)]
pub enum Param<'a, R> {
    /// Flat pieces in sequence.
    Vectors(Vec<&'a [R]>),
    /// A table.
    Table(&'a Table<R>),
    /// Right operands in sequence.
    Matrices(Vec<&'a PackedMatrix<R>>),
}

/// A weight as a layer stores it, to be changed in place.
#[derive(Debug)]
pub enum ParamMut<'a, R> {
    /// Flat pieces in sequence.
    Vectors(Vec<&'a mut [R]>),
    /// A table.
    Table(&'a mut Table<R>),
    /// Right operands in sequence.
    Matrices(Vec<&'a mut PackedMatrix<R>>),
}

impl<'a, R: Real> Param<'a, R> {
    /// One vector.
    pub fn vector(values: &'a [R]) -> Self {
        Param::Vectors(vec![values])
    }

    /// One right operand.
    pub fn matrix(matrix: &'a PackedMatrix<R>) -> Self {
        Param::Matrices(vec![matrix])
    }

    /// Row-major values, widened from the storage type.
    pub fn to_vec(&self) -> Vec<R> {
        match self {
            Param::Vectors(pieces) => pieces.concat(),
            Param::Table(table) => table.to_vec(),
            Param::Matrices(matrices) => {
                let mut values = vec![R::ZERO; matrices.iter().map(|m| m.k() * m.n()).sum()];
                let mut rest = &mut values[..];
                for matrix in matrices {
                    let (own, others) = rest.split_at_mut(matrix.k() * matrix.n());
                    matrix.unpack_into(own);
                    rest = others;
                }
                values
            }
        }
    }

    /// Hands the values of [`Param::to_vec`] to `visit` in pieces, in order: for large weights cheaper than all at once.
    ///
    /// # Errors
    /// The first one of `visit`.
    pub fn try_for_each_piece(&self, mut visit: impl FnMut(&[R]) -> Result<()>) -> Result<()> {
        match self {
            Param::Vectors(pieces) => pieces.iter().try_for_each(|piece| visit(piece)),
            Param::Table(table) => match table.full_precision() {
                Some(values) => visit(values),
                None => visit(&table.to_vec()),
            },
            Param::Matrices(matrices) => {
                // A piece stays in the second-level cache until `visit` has it.
                const VALUES: usize = 1 << 16;
                let mut values = Vec::new();
                for matrix in matrices {
                    let rows = (VALUES / matrix.n().max(1)).max(1);
                    for first in (0..matrix.k()).step_by(rows) {
                        values.resize(rows.min(matrix.k() - first) * matrix.n(), R::ZERO);
                        matrix.unpack_rows_into(first, &mut values);
                        visit(&values)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Param::Vectors(pieces) => pieces.iter().map(|piece| size_of_val(*piece)).sum(),
            Param::Table(table) => table.bytes(),
            Param::Matrices(matrices) => matrices.iter().map(|matrix| matrix.bytes()).sum(),
        }
    }
}

impl<'a, R: Real> ParamMut<'a, R> {
    /// One vector.
    pub fn vector(values: &'a mut [R]) -> Self {
        ParamMut::Vectors(vec![values])
    }

    /// One right operand.
    pub fn matrix(matrix: &'a mut PackedMatrix<R>) -> Self {
        ParamMut::Matrices(vec![matrix])
    }
}

/// Draws the initial values of an encoder's weight, a function of the configuration's seed and the weight's name.
///
/// Source: Keras initialisers; fans as `keras.initializers` counts them (last two axes times the product of the others).
///
/// # Errors
/// Those of [`draw`].
pub fn initial_values(
    config: &SparseMixerConfig,
    spec: &Spec,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<f32>> {
    let lecun = InitializerConfig::VarianceScaling {
        scale: 1.0,
        mode: "fan_in".into(),
        distribution: "truncated_normal".into(),
    };
    let is_projection = config.semantics().lecun_projection && spec.name == "embedding_projection/kernel";
    let initializer = if is_projection { &lecun } else { &config.initializer };
    draw(initializer, config.seed, Purpose::EncoderWeight, spec, stop)
}

/// Draws the initial values of a weight by `initializer`, a function of `seed`, the purpose and the weight's name.
///
/// # Errors
/// [`Error::Memory`] if there is not enough; [`Error::Interrupted`] once `stop` says so, which every thread asks that
/// draws.
pub fn draw(
    initializer: &InitializerConfig,
    seed: u64,
    purpose: Purpose,
    spec: &Spec,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<f32>> {
    // Asked for by way of trial: where the values themselves are made, a refusal would end the process.
    if Vec::<f32>::new().try_reserve_exact(spec.len()).is_err() {
        return Err(Error::Memory {
            what: spec.name.clone(),
            bytes: spec.len().saturating_mul(size_of::<f32>()),
        });
    }
    let values = values_of(initializer, seed, purpose, spec, stop);
    if stop() { Err(Error::Interrupted) } else { Ok(values) }
}

/// What [`draw`] draws, leaving out the rest once `stop` says so.
fn values_of(
    initializer: &InitializerConfig,
    seed: u64,
    purpose: Purpose,
    spec: &Spec,
    stop: &(dyn Fn() -> bool + Sync),
) -> Vec<f32> {
    let kernel = match spec.role {
        Role::Bias => return vec![0.0; spec.len()],
        Role::Scale => return vec![1.0; spec.len()],
        Role::Kernel => initializer,
    };
    let draw = |map: &(dyn Fn(f64) -> f64 + Sync)| {
        const CHUNK: usize = 1 << 16;
        let stream = RngStream::new(seed, purpose, place_of(&spec.name));
        let mut values = vec![0f32; spec.len()];
        let fill = |(chunk, out): (usize, &mut [f32])| {
            if stop() {
                return;
            }
            stream.for_each_word((chunk * CHUNK) as u64, out.len(), |i, word| {
                out[i] = map(open_unit(word)) as f32
            });
        };
        parallel::for_each(values.chunks_mut(CHUNK).enumerate(), |chunk, _| fill(chunk));
        values
    };
    // Mass of the standard normal distribution below -2.
    const TAIL: f64 = 0.022_750_131_948_179_21;
    let truncated = |mean: f64, stddev: f64| {
        draw(&move |u| mean + stddev * normal_quantile(TAIL + u * (1.0 - 2.0 * TAIL)))
    };
    let normal = |mean: f64, stddev: f64| draw(&move |u| mean + stddev * normal_quantile(u));
    let uniform = |low: f64, high: f64| draw(&move |u| low + u * (high - low));
    match kernel {
        InitializerConfig::TruncatedNormal { mean, stddev } => truncated(*mean, *stddev),
        InitializerConfig::Normal { mean, stddev } => normal(*mean, *stddev),
        InitializerConfig::Uniform { minval, maxval } => uniform(*minval, *maxval),
        InitializerConfig::Constant { value } => vec![*value as f32; spec.len()],
        InitializerConfig::VarianceScaling { scale, mode, distribution } => {
            let (fan_in, fan_out) = fans(&spec.shape);
            let fan = match mode.as_str() {
                "fan_in" => fan_in,
                "fan_out" => fan_out,
                _ => (fan_in + fan_out) / 2.0,
            };
            let variance = scale / fan.max(1.0);
            match distribution.as_str() {
                // Keras widens the normal so that the cut one has this variance.
                "truncated_normal" => truncated(0.0, variance.sqrt() / 0.879_625_661_034_239_8),
                "untruncated_normal" => normal(0.0, variance.sqrt()),
                _ => uniform(-(3.0 * variance).sqrt(), (3.0 * variance).sqrt()),
            }
        }
    }
}

fn fans(shape: &[usize]) -> (f64, f64) {
    match shape {
        [] => (1.0, 1.0),
        [n] => (*n as f64, *n as f64),
        [outer @ .., k, n] => {
            let field: usize = outer.iter().product();
            ((field * k) as f64, (field * n) as f64)
        }
    }
}

/// Gradients of all weights, row-major, in the order of [`crate::network::specs`].
#[derive(Clone, Debug)]
pub struct Gradients<R> {
    /// One per weight.
    pub tensors: Vec<Vec<R>>,
    /// Per weight, whether something has been differentiated that depends on it. Other weights have no gradient at all,
    /// rather than one of zeros: an optimiser leaves them alone.
    pub reached: Vec<bool>,
}

impl<R: Real> Gradients<R> {
    /// Zeros for weights `specs`.
    pub fn zeros(specs: &[Spec]) -> Self {
        Gradients {
            tensors: specs.iter().map(|spec| alloc_zeroed_huge(spec.len())).collect(),
            reached: vec![false; specs.len()],
        }
    }

    /// Sets every value to zero, and no weight as reached.
    pub fn clear(&mut self) {
        self.tensors.iter_mut().for_each(|tensor| tensor.fill(R::ZERO));
        self.reached.fill(false);
    }
}
