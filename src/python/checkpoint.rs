//! Weight files for Python: listing, matching, reading into and writing from an encoder.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::enter::{enter_core, guard, to_py_err};
use crate::checkpoint::matching::names::{self, Scheme};
use crate::checkpoint::{self, Dtype, Entry, Mismatch, PlannedRead, TargetWeight, TensorSource, Transform};
use crate::config::SparseMixerConfig;
use crate::error::{Error, Result};
use crate::kernels;
use crate::network::specs;
use crate::params::{Spec, Weight};
use crate::runtime::Interrupt;
use crate::sys::alloc_zeroed;

/// An open weight file. Immutable; its reads do not disturb one another.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct Checkpoint {
    source: Arc<dyn TensorSource>,
}

impl Checkpoint {
    fn entry(&self, index: usize) -> PyResult<&Entry> {
        self.source.entries().get(index).ok_or_else(|| {
            PyIndexError::new_err(format!(
                "the file has {} tensors, got index {index}",
                self.source.entries().len()
            ))
        })
    }
}

#[pymethods]
impl Checkpoint {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        guard(|| {
            let source = enter_core(py, |_| checkpoint::open(&path))?;
            Ok(Self { source: source.into() })
        })
    }

    #[getter]
    fn format(&self) -> String {
        self.source.format().to_string()
    }

    #[getter]
    fn path(&self) -> &str {
        self.source.path()
    }

    #[getter]
    fn metadata(&self) -> BTreeMap<String, String> {
        self.source.metadata().clone()
    }

    fn entries(&self) -> Vec<(String, String, Vec<usize>)> {
        let entries = self.source.entries().iter();
        entries.map(|entry| (entry.name.clone(), entry.dtype.to_string(), entry.shape.clone())).collect()
    }

    /// The tensors' names by the paths of objects, in the order of `entries`; `None` where the names are those already.
    fn paths(&self) -> Option<Vec<String>> {
        let named = self.source.listing().by_path.as_ref()?;
        Some(named.iter().map(|entry| entry.name.clone()).collect())
    }

    fn read<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyBytes>> {
        guard(|| {
            self.entry(index)?;
            let tensor = enter_core(py, |interrupt| self.source.read(index, interrupt))?;
            let bytes = PyBytes::new(py, tensor.bytes());
            self.source.release(index);
            Ok(bytes)
        })
    }

    #[pyo3(signature = (targets, prefix=None, *, first_position=None, zeros=Vec::new()))]
    fn plan(
        &self,
        py: Python<'_>,
        targets: Vec<(String, Vec<usize>)>,
        prefix: Option<String>,
        first_position: Option<usize>,
        zeros: Vec<String>,
    ) -> PyResult<LoadPlan> {
        guard(|| {
            let targets = to_targets(targets);
            let mut plan = enter_core(py, |_| {
                checkpoint::LoadPlan::of_source(&*self.source, &targets, prefix.as_deref())
                    .map_err(|error| error.in_file(self.source.path()))
            })?;
            adapt(&mut plan, self.source.entries(), &targets, first_position, &zeros);
            let file_names = file_names(&plan, self.source.entries());
            Ok(LoadPlan { plan, targets, file_names, source: Some(self.source.clone()) })
        })
    }
}

/// What a file offers of the target weights. Made by [`Checkpoint::plan`] it can also read them.
#[pyclass(frozen, module = "sparse_mixer._native")]
pub struct LoadPlan {
    plan: checkpoint::LoadPlan,
    targets: Vec<TargetWeight>,
    /// The file's name of each read.
    file_names: Vec<String>,
    source: Option<Arc<dyn TensorSource>>,
}

impl LoadPlan {
    /// Checks that the plan comes from a file that is read here.
    pub fn require_source(&self) -> PyResult<()> {
        match self.source {
            Some(_) => Ok(()),
            None => {
                Err(to_py_err(Error::value("plan", "it was made from a list of names, which cannot be read")))
            }
        }
    }

    /// The weight at `index` as `dtype` stores it, or `None` if the file does not have it. Where the file holds it in that
    /// form, it stays there.
    ///
    /// # Errors
    /// As [`LoadPlan::read_weight`].
    pub fn weight(
        &self,
        index: usize,
        spec: &Spec,
        dtype: kernels::Dtype,
        interrupt: Interrupt<'_>,
    ) -> Result<Option<Arc<Weight<f32>>>> {
        self.check_target(index, spec)?;
        if let Some((source, read)) = self.find(index)
            && read.transform == Transform::Keep
            && let Some((packed, part)) = source.packed(read.entry)
            && packed.fits(spec)
            && let Some(weight) = Weight::of_file(packed, part)
        {
            return Ok(Some(Arc::new(weight.to_dtype(spec, dtype).unwrap_or(weight))));
        }
        let values = self.read_weight(index, spec, interrupt)?;
        values.map(|values| Weight::store(spec, values, dtype)).transpose()
    }

    /// Checks that the plan was made for an encoder with `spec` at `index`.
    fn check_target(&self, index: usize, spec: &Spec) -> Result<()> {
        if self.targets.get(index).is_none_or(|target| target.name != spec.name || target.shape != spec.shape)
        {
            return Err(Error::value(
                "plan",
                format!("it was made for another encoder than that with {}", spec.name),
            ));
        }
        Ok(())
    }

    /// Values of the weight at `index`, or `None` if the file does not have it.
    ///
    /// # Errors
    /// The content is damaged; the plan was made for other weights than `spec`; [`Error::Interrupted`].
    pub fn read_weight(
        &self,
        index: usize,
        spec: &Spec,
        interrupt: Interrupt<'_>,
    ) -> Result<Option<Cow<'_, [f32]>>> {
        self.check_target(index, spec)?;
        if self.plan.zeros.contains(&index) {
            return Ok(Some(Cow::Owned(alloc_zeroed(spec.len()))));
        }
        let Some((source, read)) = self.find(index) else { return Ok(None) };
        let values = read.read(source, &self.targets[index], interrupt)?.into_f32();
        values.map(Some).map_err(|error| error.at(&spec.name).in_file(source.path()))
    }

    /// Whether every target weight is read.
    pub fn is_complete(&self) -> bool {
        self.plan.reads.len() + self.plan.zeros.len() == self.targets.len()
    }

    /// Says that the weight at `index` will not be read again soon, so that mapped pages can go.
    pub fn release_weight(&self, index: usize) {
        if let Some((source, read)) = self.find(index) {
            source.release(read.entry);
        }
    }

    /// Where the weight at `index` comes from.
    fn find(&self, index: usize) -> Option<(&dyn TensorSource, &PlannedRead)> {
        // Reads are sorted by the target weight.
        let position = self.plan.reads.binary_search_by_key(&index, |read| read.target).ok()?;
        Some((self.source.as_deref()?, &self.plan.reads[position]))
    }
}

#[pymethods]
impl LoadPlan {
    #[getter]
    fn scheme(&self) -> &'static str {
        self.plan.scheme.label()
    }

    #[getter]
    fn root(&self) -> &str {
        &self.plan.root
    }

    #[getter]
    fn reads(&self) -> Vec<(usize, usize, bool, Option<usize>)> {
        let each = self.plan.reads.iter().map(|read| {
            let swaps = read.transform == Transform::SwapLeadingAxes;
            let first = if let Transform::RowsFrom(first) = read.transform { Some(first) } else { None };
            (read.target, read.entry, swaps, first)
        });
        each.collect()
    }

    #[getter]
    fn zeros(&self) -> &[usize] {
        &self.plan.zeros
    }

    #[getter]
    fn loaded(&self) -> Vec<(&str, &str)> {
        let names = self.plan.reads.iter().map(|read| self.targets[read.target].name.as_str());
        names.zip(self.file_names.iter().map(String::as_str)).collect()
    }

    #[getter]
    fn missing(&self) -> &[String] {
        &self.plan.missing
    }

    #[getter]
    fn unexpected(&self) -> &[String] {
        &self.plan.unexpected
    }

    #[getter]
    fn shape_mismatches(&self) -> Vec<(&str, &str, &str, &str)> {
        self.plan.shape_mismatches.iter().map(fields).collect()
    }

    #[getter]
    fn dtype_mismatches(&self) -> Vec<(&str, &str, &str, &str)> {
        self.plan.dtype_mismatches.iter().map(fields).collect()
    }
}

fn fields(mismatch: &Mismatch) -> (&str, &str, &str, &str) {
    (&mismatch.name, &mismatch.file_name, &mismatch.expected, &mismatch.found)
}

fn file_names(plan: &checkpoint::LoadPlan, entries: &[Entry]) -> Vec<String> {
    plan.reads.iter().map(|read| entries[read.entry].name.clone()).collect()
}

/// Makes the plan one of a part of the table of positions, and of weights that are zeros where they are absent.
fn adapt(
    plan: &mut checkpoint::LoadPlan,
    entries: &[Entry],
    targets: &[TargetWeight],
    first_position: Option<usize>,
    zeros: &[String],
) {
    if let Some(first) = first_position {
        plan.cut_positions(entries, targets, first);
    }
    plan.fill_with_zeros(targets, zeros);
}

fn to_targets(weights: Vec<(String, Vec<usize>)>) -> Vec<TargetWeight> {
    weights.into_iter().map(|(name, shape)| TargetWeight { name, shape }).collect()
}

/// The plan for tensors that Python reads itself: `(name, numpy type name, shape)` each.
#[pyfunction]
#[pyo3(signature = (entries, targets, prefix=None, *, path, first_position=None, zeros=Vec::new()))]
pub fn plan_load(
    entries: Vec<(String, String, Vec<usize>)>,
    targets: Vec<(String, Vec<usize>)>,
    prefix: Option<&str>,
    path: &str,
    first_position: Option<usize>,
    zeros: Vec<String>,
) -> PyResult<LoadPlan> {
    guard(|| {
        let entries: Vec<Entry> = entries
            .into_iter()
            .map(|(name, dtype, shape)| Entry { name, dtype: Dtype::from_numpy_name(&dtype), shape })
            .collect();
        let targets = to_targets(targets);
        let mut plan = checkpoint::LoadPlan::new(&entries, &targets, prefix)
            .map_err(|error| to_py_err(error.in_file(path)))?;
        adapt(&mut plan, &entries, &targets, first_position, &zeros);
        let file_names = file_names(&plan, &entries);
        Ok(LoadPlan { plan, targets, file_names, source: None })
    })
}

/// Name and shape of each weight of the encoder that the canonical JSON `config` describes, in Keras order.
#[pyfunction]
pub fn weight_specs(config: &str) -> PyResult<Vec<(String, Vec<usize>)>> {
    guard(|| {
        let config = SparseMixerConfig::from_json(config).map_err(to_py_err)?;
        Ok(specs(&config).into_iter().map(|spec| (spec.name, spec.shape)).collect())
    })
}

/// The ways in which `scheme` may spell the weight `name` of `shape`, the usual one first.
#[pyfunction]
pub fn foreign_names(scheme: &str, name: &str, shape: Vec<usize>) -> PyResult<Vec<String>> {
    guard(|| {
        let Some(scheme) = Scheme::NAMED.into_iter().find(|known| known.label() == scheme) else {
            let known: Vec<_> = Scheme::NAMED.iter().map(|scheme| scheme.label()).collect();
            return Err(to_py_err(Error::value(
                "scheme",
                format!("got {scheme:?}, expected one of {known:?}"),
            )));
        };
        Ok(names::foreign_names(scheme, name, &shape).into_iter().map(|name| name.path).collect())
    })
}
