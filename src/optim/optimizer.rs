//! The optimiser: a rule, the parameters it serves, their moments, the step count.

use serde::{Deserialize, Serialize};

use super::adafactor::{Adafactor, AdafactorRoom, slot_shapes};
use super::adamw::AdamW;
use super::blocks::{BlockSums, block_count, for_each_block, split_blocks};
use super::checks::{check_non_negative, check_positive};
use super::clip::{clip_factor, global_norm};
use super::lamb::Lamb;
use super::layout::{Gradient, Layout, ParameterSpec, Update};
use super::sgd::Sgd;
use crate::error::{Error, Result};
use crate::kernels::{Isa, Real};
use crate::params::Version;
use crate::runtime::catch;
use crate::sys::{Work, alloc_collect, alloc_room, alloc_zeroed_huge, timed};

/// An update rule and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Rule {
    /// Adam with decoupled weight decay.
    Adamw(AdamW),
    /// Adam with a trust ratio per tensor.
    Lamb(Lamb),
    /// Gradient descent with momentum.
    Sgd(Sgd),
    /// Factored second moments.
    Adafactor(Adafactor),
}

/// What one step shall do with the gradients, besides the rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The learning rate, of the schedule at [`Optimizer::step`].
    pub learning_rate: f64,
    /// Largest global norm; larger gradients are scaled down to it.
    pub clip_norm: Option<f64>,
    /// Factor of all gradients before clipping: `1 / n` for the sum over `n` micro-batches.
    pub gradient_scale: f64,
}

/// An array of the optimiser's state, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedArray<R> {
    /// `<weight name>/<moment>`, for example `word_embeddings/embeddings/m`.
    pub name: String,
    /// Shape of the array.
    pub shape: Vec<usize>,
    /// Its elements.
    pub values: Vec<R>,
}

/// An array of the optimiser's state where it is.
#[derive(Debug)]
pub struct Moment<'a, R> {
    /// As in [`NamedArray`].
    pub name: String,
    /// Shape of the array.
    pub shape: Vec<usize>,
    layout: Layout,
    values: &'a [R],
}

/// A rule with the moments of every parameter.
#[derive(Debug)]
pub struct Optimizer<R> {
    rule: Rule,
    specs: Vec<ParameterSpec>,
    /// Per parameter the rule's moments and, if it is stored in low precision, last its master; empty until the first
    /// gradient.
    /// Slots of the parameter's shape are laid out as its storage, statistics of other shapes row-major.
    slots: Vec<Vec<Vec<R>>>,
    /// Per parameter the version of the weight that its master fits.
    fitting: Vec<Option<Version>>,
    step: u64,
}

/// One moment of one parameter.
struct Slot {
    name: &'static str,
    shape: Vec<usize>,
    layout: Layout,
}

/// Memory of one step.
struct Room<R> {
    /// Moments, zeros, of parameters that have a gradient for the first time.
    slots: Vec<Vec<Vec<R>>>,
    sums: BlockSums,
    adafactor: Option<AdafactorRoom<R>>,
}

impl Rule {
    /// Checks the settings; the error names the argument.
    pub fn validate(&self) -> Result<()> {
        match self {
            Rule::Adamw(rule) => rule.validate(),
            Rule::Lamb(rule) => rule.validate(),
            Rule::Sgd(rule) => rule.validate(),
            Rule::Adafactor(rule) => rule.validate(),
        }
    }

    fn slots(&self, spec: &ParameterSpec) -> Vec<Slot> {
        let like_parameter = |name| Slot { name, shape: spec.shape.clone(), layout: spec.layout };
        match self {
            Rule::Adamw(_) | Rule::Lamb(_) => vec![like_parameter("m"), like_parameter("v")],
            Rule::Sgd(sgd) if sgd.momentum == 0.0 => vec![],
            Rule::Sgd(_) => vec![like_parameter("m")],
            Rule::Adafactor(_) => slot_shapes(&spec.shape)
                .into_iter()
                .map(|(name, shape)| Slot { name, shape, layout: Layout::Flat })
                .collect(),
        }
    }
}

impl<R: Clone> Clone for Optimizer<R> {
    fn clone(&self) -> Self {
        // Unlike that of vectors, this is refused as an error.
        let slots = self
            .slots
            .iter()
            .map(|slots| alloc_collect(slots.iter().map(|slot| alloc_collect(slot.iter().cloned()))));
        let slots = alloc_collect(slots);
        let fitting = alloc_collect(self.fitting.iter().copied());
        Optimizer { rule: self.rule.clone(), specs: self.specs.clone(), slots, fitting, step: self.step }
    }
}

impl<R: Real> Moment<'_, R> {
    /// Hands the row-major values to `visit` in pieces, in order: for large moments cheaper than all at once.
    ///
    /// # Errors
    /// The first one of `visit`.
    pub fn try_for_each_piece(&self, visit: impl FnMut(&[R]) -> Result<()>) -> Result<()> {
        self.layout.try_for_each_piece(self.values, visit)
    }
}

impl<R: Real> Optimizer<R> {
    /// An optimiser at step 0 for the parameters of `specs`, in this order.
    pub fn new(rule: Rule, specs: Vec<ParameterSpec>) -> Result<Self> {
        rule.validate()?;
        specs.iter().try_for_each(ParameterSpec::validate)?;
        let slots = specs.iter().map(|_| Vec::new()).collect();
        let fitting = vec![None; specs.len()];
        Ok(Optimizer { rule, specs, slots, fitting, step: 0 })
    }

    /// The rule.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The parameters.
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// Number of updates done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Bytes of the moments that exist so far.
    pub fn state_bytes(&self) -> usize {
        self.slots.iter().flatten().map(|slot| size_of_val(&slot[..])).sum()
    }

    /// Updates every parameter that has a gradient. `updates` are in the order of the specs. Returns the global norm
    /// of the scaled gradients before clipping, if it was needed.
    ///
    /// All memory that the step takes is allocated before the first change.
    ///
    /// # Errors
    /// Lengths that do not fit, a learning rate that is negative or not finite, or, with clipping, gradients whose
    /// norm is not finite; [`Error::Memory`]. Nothing is changed then.
    pub fn apply(&mut self, updates: &mut [Update<'_, R>], how: Step) -> Result<Option<f64>> {
        let _time = timed(Work::Update);
        let (norm, mut room) = catch(|| Ok((self.checked_norm(updates, how)?, self.allocate(updates))))?;
        let scale = how.gradient_scale
            * norm.zip(how.clip_norm).map_or(1.0, |(norm, limit)| clip_factor(norm, limit));
        // Nothing is allocated from here on: a refusal would leave weights and moments half changed.
        for (slots, new) in self.slots.iter_mut().zip(&mut room.slots) {
            if slots.is_empty() {
                std::mem::swap(slots, new);
            }
        }
        self.step += 1;
        // Weights that nobody else has changed since the last step have masters that fit.
        for (fitting, update) in self.fitting.iter_mut().zip(&*updates) {
            *fitting =
                fitting.filter(|version| update.versions.is_some_and(|[before, _]| *version == before));
        }
        self.sync_masters(updates);
        self.apply_rule(updates, &mut room, how.learning_rate, scale);
        for (fitting, update) in self.fitting.iter_mut().zip(updates) {
            if !matches!(update.gradient, Gradient::None) {
                *fitting = update.versions.map(|[_, after]| after);
            }
        }
        Ok(norm)
    }

    /// Checks what [`Optimizer::apply`] gets; the norm of the scaled gradients if they are to be clipped.
    fn checked_norm(&self, updates: &[Update<'_, R>], how: Step) -> Result<Option<f64>> {
        let Step { learning_rate, clip_norm, gradient_scale } = how;
        check_non_negative("learning_rate", learning_rate)?;
        if !gradient_scale.is_finite() {
            return Err(Error::value("scale", format!("got {gradient_scale}, expected a finite number")));
        }
        if updates.len() != self.specs.len() {
            let message = format!("got {} of them, expected {}", updates.len(), self.specs.len());
            return Err(Error::value("gradients", message));
        }
        for (spec, update) in self.specs.iter().zip(updates) {
            spec.check(update)?;
        }
        let Some(limit) = clip_norm else { return Ok(None) };
        check_positive("clip_norm", limit)?;
        let norm = gradient_scale * global_norm(updates.iter().map(|update| update.gradient));
        if !norm.is_finite() {
            return Err(Error::value("gradients", format!("their global norm is {norm}")));
        }
        Ok(Some(norm))
    }

    /// Memory of a step with `updates`.
    fn allocate(&self, updates: &[Update<'_, R>]) -> Room<R> {
        let each = self.specs.iter().zip(updates).zip(&self.slots);
        let slots = each.map(|((spec, update), slots)| {
            if !slots.is_empty() || matches!(update.gradient, Gradient::None) {
                return Vec::new();
            }
            let zeros = |slot: Slot| alloc_zeroed_huge(slot.layout.storage_len(&slot.shape));
            self.planned(spec).into_iter().map(zeros).collect()
        });
        let mut room = Room { slots: slots.collect(), sums: BlockSums::default(), adafactor: None };
        match &self.rule {
            Rule::Lamb(_) => {
                let with_gradient = self.specs.iter().zip(updates);
                let with_gradient =
                    with_gradient.filter(|(_, update)| !matches!(update.gradient, Gradient::None));
                let blocks = with_gradient.map(|(spec, update)| block_count(spec, update)).sum();
                room.sums = BlockSums::new(blocks, self.specs.len());
            }
            Rule::Adafactor(_) => room.adafactor = Some(AdafactorRoom::new(&self.specs, updates)),
            Rule::Adamw(_) | Rule::Sgd(_) => {}
        }
        room
    }

    /// Takes over what has changed elsewhere of weights in low precision.
    fn sync_masters(&mut self, updates: &mut [Update<'_, R>]) {
        let _time = timed(Work::Adopt);
        let (isa, fitting) = (Isa::fastest(), &self.fitting);
        let blocks = split_blocks::<R, 0>(&self.specs, updates, &mut self.slots);
        for_each_block(blocks.filter(|block| fitting[block.parameter].is_none()), |block| {
            block.sync_master(isa);
        });
    }

    /// Updates moments and weights, those in low precision included.
    fn apply_rule(
        &mut self,
        updates: &mut [Update<'_, R>],
        room: &mut Room<R>,
        learning_rate: f64,
        scale: f64,
    ) {
        let (specs, slots, step) = (&self.specs[..], &mut self.slots[..], self.step);
        match &self.rule {
            Rule::Adamw(rule) => {
                rule.apply(specs, split_blocks(specs, updates, slots), step, learning_rate, scale)
            }
            Rule::Lamb(rule) => rule.apply(specs, updates, slots, &mut room.sums, step, learning_rate, scale),
            Rule::Sgd(rule) if rule.momentum == 0.0 => {
                rule.apply_plain(specs, split_blocks(specs, updates, slots), learning_rate, scale);
            }
            Rule::Sgd(rule) => {
                rule.apply_momentum(specs, split_blocks(specs, updates, slots), learning_rate, scale)
            }
            Rule::Adafactor(rule) => {
                if let Some(room) = &mut room.adafactor {
                    rule.apply(specs, updates, slots, room, step, learning_rate, scale);
                }
            }
        }
    }

    /// What is kept of a parameter: the rule's moments, and then the master if the weight is stored in low precision.
    fn planned(&self, spec: &ParameterSpec) -> Vec<Slot> {
        let mut slots = self.rule.slots(spec);
        if spec.low_precision {
            slots.push(Slot { name: "master", shape: spec.shape.clone(), layout: spec.layout });
        }
        slots
    }

    /// All moments that exist, in the order of the parameters. With [`Optimizer::step`] this is the whole state.
    pub fn moments(&self) -> impl Iterator<Item = Moment<'_, R>> {
        self.specs.iter().zip(&self.slots).flat_map(|(spec, slots)| {
            self.planned(spec).into_iter().zip(slots).map(|(slot, values)| {
                let name = format!("{}/{}", spec.name, slot.name);
                Moment { name, shape: slot.shape, layout: slot.layout, values }
            })
        })
    }

    /// Copies of [`Optimizer::moments`].
    pub fn state(&self) -> Vec<NamedArray<R>> {
        let copy = |moment: Moment<'_, R>| {
            let mut values = alloc_room(moment.shape.iter().product());
            // Never fails.
            let _ = moment.try_for_each_piece(|piece| {
                values.extend_from_slice(piece);
                Ok(())
            });
            NamedArray { name: moment.name, shape: moment.shape, values }
        };
        self.moments().map(copy).collect()
    }

    /// Takes over a state from [`Optimizer::state`]. Moments that `arrays` lacks altogether become zeros.
    ///
    /// # Errors
    /// An array of an unknown name or of another shape, or only some of a parameter's moments. Nothing is changed
    /// then.
    pub fn restore(&mut self, step: u64, arrays: &[NamedArray<R>]) -> Result<()> {
        let by_name: std::collections::HashMap<&str, &NamedArray<R>> =
            arrays.iter().map(|array| (&array.name[..], array)).collect();
        let mut used = 0;
        let mut restored = Vec::with_capacity(self.specs.len());
        for spec in &self.specs {
            let mut slots = Vec::new();
            let planned = self.planned(spec);
            let expected = planned.len();
            for slot in planned {
                let name = format!("{}/{}", spec.name, slot.name);
                let Some(array) = by_name.get(&name[..]) else { continue };
                let len = slot.shape.iter().product::<usize>();
                if array.shape != slot.shape || array.values.len() != len {
                    let message = format!("{name} has shape {:?}, expected {:?}", array.shape, slot.shape);
                    return Err(Error::value("state", message));
                }
                slots.push(slot.layout.pack(&slot.shape, &array.values));
            }
            used += slots.len();
            if !slots.is_empty() && slots.len() != expected {
                let message = format!("it has only some of the moments of {}", spec.name);
                return Err(Error::value("state", message));
            }
            restored.push(slots);
        }
        if used != arrays.len() {
            let known: std::collections::HashSet<String> = self
                .specs
                .iter()
                .flat_map(|spec| {
                    self.planned(spec).into_iter().map(move |slot| format!("{}/{}", spec.name, slot.name))
                })
                .collect();
            let unknown: Vec<&str> =
                arrays.iter().map(|a| &a.name[..]).filter(|name| !known.contains(*name)).collect();
            let message = format!("it has arrays that this optimizer does not know: {unknown:?}");
            return Err(Error::value("state", message));
        }
        (self.slots, self.step) = (restored, step);
        self.fitting.fill(None);
        Ok(())
    }
}
