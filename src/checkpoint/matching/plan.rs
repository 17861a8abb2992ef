//! Matching the weights of an encoder with the tensors a file offers.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::names::{ForeignName, Scheme, TF_SUFFIX, foreign_names, is_auxiliary};
use super::numbered::with_layers_named;
use super::transform::Transform;
use crate::checkpoint::error::FormatError;
use crate::checkpoint::source::TensorSource;
use crate::checkpoint::tensor::{Entry, Tensor};
use crate::error::Result;
use crate::runtime::Interrupt;

/// Deepest path at which an encoder is looked for.
const MAX_ROOT_DEPTH: usize = 32;
/// What a word table that is shared with a language-model head is called.
const SHARED_TABLE: &str = "embedding_table";
const WORD_TABLE: &str = "word_embeddings/embeddings";
const POSITION_TABLE: &str = "position_embedding/embeddings";

/// A weight to be loaded, under our name for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetWeight {
    /// Keras name without the layer's own name.
    pub name: String,
    /// Shape of ours.
    pub shape: Vec<usize>,
}

/// One read that a plan has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedRead {
    /// Index of the target weight.
    pub target: usize,
    /// Index of the file's entry.
    pub entry: usize,
    /// What turns it into ours, before a reshape.
    pub transform: Transform,
}

/// A tensor that was found and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Our name.
    pub name: String,
    /// The file's name.
    pub file_name: String,
    /// What is needed.
    pub expected: String,
    /// What the file has.
    pub found: String,
}

/// Which of a file's tensors goes where, and what does not fit. Making one reads no tensor and changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadPlan {
    /// How the file names its weights.
    pub scheme: Scheme,
    /// Where in the file the encoder is: what stands before its weights' names, without the separator.
    pub root: String,
    /// The weights that can be loaded, in the order of the targets.
    pub reads: Vec<PlannedRead>,
    /// Target weights that the file does not have, and that count as zeros.
    pub zeros: Vec<usize>,
    /// Target weights that the file does not have.
    pub missing: Vec<String>,
    /// Tensors below the root that are no target. Heads and optimiser state beside the encoder are not among them.
    pub unexpected: Vec<String>,
    /// Tensors of another shape.
    pub shape_mismatches: Vec<Mismatch>,
    /// Tensors that are not floating-point numbers.
    pub dtype_mismatches: Vec<Mismatch>,
}

impl LoadPlan {
    /// Finds the `targets` among what `source` offers, as [`LoadPlan::new`] does. Where the file numbers its tensors
    /// (a SavedModel), by the names that it tells apart.
    ///
    /// # Errors
    /// As [`LoadPlan::new`].
    pub fn of_source(
        source: &dyn TensorSource,
        targets: &[TargetWeight],
        root: Option<&str>,
    ) -> Result<Self, FormatError> {
        if let Some(named) = &source.listing().by_path {
            let plan = Self::new(named, targets, root)?;
            if 2 * plan.reads.len() > targets.len() {
                return Ok(Self { scheme: Scheme::SavedModel, ..plan });
            }
        }
        Self::new(source.entries(), targets, root)
    }

    /// Finds the `targets`, given in Keras order, among a file's `entries`. The naming scheme is the one that
    /// fits best; `root` says where the encoder is if the file has several.
    ///
    /// # Errors
    /// Two places in the file fit equally well and `root` does not say which.
    pub fn new(entries: &[Entry], targets: &[TargetWeight], root: Option<&str>) -> Result<Self, FormatError> {
        let root = root.map(|root| root.trim_end_matches(['/', '.']));
        let renamed = with_layers_named(entries);
        let found = renamed.as_deref().unwrap_or(entries);
        let mut best: Option<Match> = None;
        for scheme in Scheme::NAMED {
            let fit = Match::find(scheme, found, targets, root)?;
            if best.as_ref().is_none_or(|best| fit.count > best.count) {
                best = Some(fit);
            }
        }
        let best = best.expect("there is at least one scheme");
        if best.count == 0
            && let Some(first) = saved_model_window(entries, targets)?
        {
            return Ok(Self::from_window(entries, targets, first));
        }
        Ok(Self::from_match(entries, found, targets, &best))
    }

    /// The plan for `entries`, which are the same under the names of `named`.
    fn from_match(entries: &[Entry], named: &[Entry], targets: &[TargetWeight], best: &Match) -> Self {
        let mut plan = Self::empty(best.scheme, best.root.clone());
        let index: HashMap<&str, usize> =
            named.iter().enumerate().map(|(index, entry)| (entry.name.as_str(), index)).collect();
        let mut used = HashSet::new();
        for (position, weight) in targets.iter().enumerate() {
            let names = foreign_names(best.scheme, &weight.name, &weight.shape);
            let found = names.into_iter().find_map(|name| {
                let entry = *index.get(best.full_name(&name.path).as_str())?;
                Some((name, entry))
            });
            let found = found.or_else(|| shared_word_table(best.scheme, named, weight));
            let Some((name, entry)) = found else {
                plan.missing.push(weight.name.clone());
                continue;
            };
            used.insert(entry);
            plan.add(position, weight, &name, entry, &entries[entry]);
        }
        plan.unexpected = entries
            .iter()
            .enumerate()
            .filter(|(index, entry)| {
                !used.contains(index) && best.is_below_root(&named[*index].name) && !is_auxiliary(&entry.name)
            })
            .map(|(_, entry)| entry.name.clone())
            .collect();
        plan
    }

    /// The plan for a SavedModel whose variables from `window[0]` on are the encoder's.
    fn from_window(entries: &[Entry], targets: &[TargetWeight], window: Vec<usize>) -> Self {
        let mut plan = Self::empty(Scheme::SavedModel, String::new());
        for (position, (weight, &entry)) in targets.iter().zip(&window).enumerate() {
            let name = ForeignName {
                path: entries[entry].name.clone(),
                shape: weight.shape.clone(),
                transform: Transform::Keep,
            };
            plan.add(position, weight, &name, entry, &entries[entry]);
        }
        plan
    }

    fn empty(scheme: Scheme, root: String) -> Self {
        Self {
            scheme,
            root,
            reads: Vec::new(),
            zeros: Vec::new(),
            missing: Vec::new(),
            unexpected: Vec::new(),
            shape_mismatches: Vec::new(),
            dtype_mismatches: Vec::new(),
        }
    }

    /// Takes the wanted number of rows, from number `first` on, of a larger table of positions.
    pub fn cut_positions(&mut self, entries: &[Entry], targets: &[TargetWeight], first: usize) {
        let Some(at) = self.shape_mismatches.iter().position(|found| found.name == POSITION_TABLE) else {
            return;
        };
        let file_name = &self.shape_mismatches[at].file_name;
        let entry = entries.iter().position(|entry| entry.name == *file_name);
        let target = targets.iter().position(|weight| weight.name == POSITION_TABLE);
        let (Some(entry), Some(target)) = (entry, target) else { return };
        // Flax has an axis of size one in front.
        let shape = &entries[entry].shape;
        let shape = shape.strip_prefix(&[1]).filter(|rest| rest.len() == 2).unwrap_or(shape);
        let (&[rows, width], &[wanted, wanted_width]) = (shape, &targets[target].shape[..]) else { return };
        if width != wanted_width || rows.checked_sub(first).is_none_or(|left| left < wanted) {
            return;
        }
        self.shape_mismatches.remove(at);
        if !entries[entry].dtype.is_float() {
            return;
        }
        let read = PlannedRead { target, entry, transform: Transform::RowsFrom(first) };
        let place = self.reads.partition_point(|other| other.target < target);
        self.reads.insert(place, read);
    }

    /// Counts the weights called `names`, where the file does not have them, as zeros.
    pub fn fill_with_zeros(&mut self, targets: &[TargetWeight], names: &[String]) {
        let absent: Vec<String> = self.missing.extract_if(.., |name| names.contains(name)).collect();
        let is_absent = |(_, target): &(usize, &TargetWeight)| absent.contains(&target.name);
        self.zeros.extend(targets.iter().enumerate().filter(is_absent).map(|(index, _)| index));
    }

    fn add(&mut self, target: usize, weight: &TargetWeight, name: &ForeignName, index: usize, entry: &Entry) {
        let mismatch = |expected: String, found: String| Mismatch {
            name: weight.name.clone(),
            file_name: entry.name.clone(),
            expected,
            found,
        };
        if entry.shape != name.shape {
            self.shape_mismatches.push(mismatch(format!("{:?}", name.shape), format!("{:?}", entry.shape)));
        } else if !entry.dtype.is_float() {
            self.dtype_mismatches.push(mismatch("a floating-point type".to_owned(), entry.dtype.to_string()));
        } else {
            self.reads.push(PlannedRead { target, entry: index, transform: name.transform });
        }
    }
}

impl PlannedRead {
    /// Reads the tensor from the source that the plan was made for, in our layout and with the shape of `target`; its
    /// element type stays the file's.
    ///
    /// # Errors
    /// As [`TensorSource::read`].
    pub fn read<'a>(
        &self,
        source: &'a dyn TensorSource,
        target: &TargetWeight,
        interrupt: Interrupt<'_>,
    ) -> Result<Tensor<'a>> {
        let tensor = source.read(self.entry, interrupt)?;
        self.transform
            .apply(tensor, &target.shape)
            .map_err(|error| error.at(&target.name).in_file(source.path()))
    }
}

/// How well a scheme fits at a root.
struct Match {
    scheme: Scheme,
    root: String,
    /// The character between root and name; none if the root is empty.
    separator: Option<char>,
    /// Number of target weights found by name.
    count: usize,
}

impl Match {
    /// The root at which `scheme` finds most of the `targets`.
    fn find(
        scheme: Scheme,
        entries: &[Entry],
        targets: &[TargetWeight],
        root: Option<&str>,
    ) -> Result<Self, FormatError> {
        let separator = if scheme == Scheme::HuggingFace { '.' } else { '/' };
        let mut relative: HashMap<String, usize> = HashMap::new();
        for (position, weight) in targets.iter().enumerate() {
            for name in foreign_names(scheme, &weight.name, &weight.shape) {
                relative.insert(name.path, position);
            }
        }
        // Per root, the target weights seen there: two spellings of one weight count once.
        let mut seen: BTreeMap<&str, HashSet<usize>> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| !is_auxiliary(&entry.name)) {
            let name = entry.name.as_str();
            let starts = std::iter::once(0).chain(name.match_indices(separator).map(|(at, _)| at + 1));
            for start in starts.take(MAX_ROOT_DEPTH) {
                if let Some(&position) = relative.get(&name[start..]) {
                    let found = &name[..start.saturating_sub(1)];
                    if root.is_none_or(|root| root.trim_start_matches('/') == found.trim_start_matches('/')) {
                        seen.entry(found).or_default().insert(position);
                    }
                }
            }
        }
        let count = seen.values().map(HashSet::len).max().unwrap_or(0);
        let roots: Vec<&str> =
            seen.iter().filter(|(_, found)| found.len() == count).map(|(&root, _)| root).collect();
        // A few accidental matches are no reason to complain: another scheme will fit better.
        if roots.len() > 1 && count * 2 > targets.len() {
            return Err(FormatError::new(format!(
                "there are several encoders in the file; say which one with prefix=: {}",
                roots.join(", ")
            )));
        }
        let root = roots.first().copied().unwrap_or("").to_owned();
        let separator = (!root.is_empty()).then_some(separator);
        Ok(Self { scheme, root, separator, count })
    }

    fn full_name(&self, relative: &str) -> String {
        match self.separator {
            Some(separator) => format!("{}{separator}{relative}", self.root),
            None => relative.to_owned(),
        }
    }

    fn is_below_root(&self, name: &str) -> bool {
        match self.separator {
            Some(separator) => name.strip_prefix(&self.root).is_some_and(|rest| rest.starts_with(separator)),
            None => true,
        }
    }
}

/// The table of a language-model head, where TensorFlow's pre-training checkpoints keep the shared word table.
fn shared_word_table(
    scheme: Scheme,
    entries: &[Entry],
    weight: &TargetWeight,
) -> Option<(ForeignName, usize)> {
    if scheme != Scheme::TfCheckpoint || weight.name != WORD_TABLE {
        return None;
    }
    let ending = format!("{SHARED_TABLE}{TF_SUFFIX}");
    entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| {
            entry.name.ends_with(&ending) && entry.shape == weight.shape && !is_auxiliary(&entry.name)
        })
        .min_by_key(|(_, entry)| entry.name.len())
        .map(|(index, entry)| {
            let path = entry.name.clone();
            (ForeignName { path, shape: weight.shape.clone(), transform: Transform::Keep }, index)
        })
}

/// The entries of a SavedModel that are the target weights: the only run of consecutive `variables/<k>` with their
/// shapes.
fn saved_model_window(
    entries: &[Entry],
    targets: &[TargetWeight],
) -> Result<Option<Vec<usize>>, FormatError> {
    let mut variables: Vec<(usize, usize)> = entries
        .iter()
        .enumerate()
        .filter_map(|(index, entry)| {
            let number = entry.name.strip_prefix("variables/")?.strip_suffix(TF_SUFFIX)?;
            Some((number.parse().ok()?, index))
        })
        .collect();
    variables.sort_unstable();
    if targets.is_empty() || variables.len() < targets.len() {
        return Ok(None);
    }
    let fits = |window: &[(usize, usize)]| {
        window.iter().zip(targets).all(|(&(_, index), weight)| entries[index].shape == weight.shape)
    };
    let mut windows = variables.windows(targets.len()).filter(|window| fits(window));
    let Some(first) = windows.next() else {
        let mut left: HashMap<&[usize], usize> = HashMap::new();
        for &(_, index) in &variables {
            *left.entry(&entries[index].shape).or_default() += 1;
        }
        let has_all = targets.iter().all(|weight| match left.get_mut(&weight.shape[..]) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        });
        return match has_all {
            true => Err(FormatError::new(
                "the variables have the shapes of this encoder's weights, but are in another order (frozen layers?), \
                 and the file does not name them; save the weights as .weights.h5 or as a training checkpoint, or the \
                 model with all layers trainable",
            )),
            false => Ok(None),
        };
    };
    if windows.next().is_some() {
        return Err(FormatError::new("several runs of variables have the shapes of this encoder's weights"));
    }
    Ok(Some(first.iter().map(|&(_, index)| index).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tensor::Dtype;

    fn targets(shapes: &[&[usize]]) -> Vec<TargetWeight> {
        let target = |(number, shape): (usize, &&[usize])| TargetWeight {
            name: format!("transformer/layer_{number}/output/bias"),
            shape: shape.to_vec(),
        };
        shapes.iter().enumerate().map(target).collect()
    }

    fn numbered(shapes: &[&[usize]]) -> Vec<Entry> {
        let entry = |(number, shape): (usize, &&[usize])| Entry {
            name: format!("variables/{number}{TF_SUFFIX}"),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
        };
        shapes.iter().enumerate().map(entry).collect()
    }

    #[test]
    fn numbered_variables_are_told_by_their_shapes_in_order() {
        let wanted = targets(&[&[2, 3], &[3], &[3, 1]]);
        let plan = LoadPlan::new(&numbered(&[&[7], &[2, 3], &[3], &[3, 1], &[9]]), &wanted, None).unwrap();
        let entries: Vec<usize> = plan.reads.iter().map(|read| read.entry).collect();
        assert_eq!((plan.scheme, entries), (Scheme::SavedModel, vec![1, 2, 3]));
        let other = LoadPlan::new(&numbered(&[&[2, 3], &[4], &[3, 1]]), &wanted, None).unwrap();
        assert_eq!(other.missing.len(), 3);
    }

    #[test]
    fn another_order_of_numbered_variables_is_said() {
        let wanted = targets(&[&[2, 3], &[3], &[3, 1]]);
        let frozen = LoadPlan::new(&numbered(&[&[3], &[3, 1], &[5], &[2, 3]]), &wanted, None).unwrap_err();
        let message = frozen.in_file("saved").to_string();
        assert!(message.contains("another order (frozen layers?)"), "{message}");
    }
}
