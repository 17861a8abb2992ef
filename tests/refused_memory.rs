//! Every large allocation of a training step is refused once in turn: the step fails, changes nothing, and the next one
//! has the bits of an undisturbed run.
//!
//! Names, flags and other lists of less than 2 KB may end the process when they are refused, as everywhere in Rust: whatever
//! grows with the batch or with a weight's size is larger.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use sparse_mixer::config::{MixingMechanism, SparseMixerConfig};
use sparse_mixer::error::{Error, Result};
use sparse_mixer::kernels::{Dtype, Isa};
use sparse_mixer::network::{
    Cotangents, OwnedInputs, OwnedWords, Recording, RequestedOutputs, SparseMixer, specs,
};
use sparse_mixer::optim::{
    Adafactor, AdamW, EpsilonRule, Gradient, Lamb, NamedArray, Optimizer, ParameterSpec, Rule, Sgd, Step,
    Update,
};
use sparse_mixer::params::{Gradients, Spec};
use sparse_mixer::runtime::parallel::with_threads;
use sparse_mixer::runtime::{ScratchPool, catch, never, run};
use sparse_mixer::sys::alloc_room;

/// Smallest allocation that is refused, in bytes.
const LARGE: usize = 2048;

/// Large allocations until one is refused; negative for never.
static LEFT: AtomicI64 = AtomicI64::new(-1);

thread_local! {
    static TRACING: Cell<bool> = const { Cell::new(false) };
}

struct Refusing;

impl Refusing {
    fn refuses(size: usize) -> bool {
        if size < LARGE {
            return false;
        }
        let before =
            LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left >= 0).then(|| left - 1));
        let refuses = before == Ok(0);
        if refuses && std::env::var_os("TRACE_REFUSED").is_some() && !TRACING.replace(true) {
            eprintln!("refused {size} bytes\n{}", std::backtrace::Backtrace::force_capture());
            TRACING.set(false);
        }
        refuses
    }
}

// SAFETY: hands out what the system's allocator does, or nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        if Refusing::refuses(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if Refusing::refuses(layout.size()) {
            std::ptr::null_mut()
        } else {
            // SAFETY: as the caller promises.
            unsafe { System.alloc_zeroed(layout) }
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if Refusing::refuses(size) {
            std::ptr::null_mut()
        } else {
            // SAFETY: as the caller promises.
            unsafe { System.realloc(memory, layout, size) }
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Refusing = Refusing;

const BATCH: usize = 40;
const SEQ: usize = 32;

fn config(dtype: Dtype, mixing_mechanism: MixingMechanism, norm_first: bool) -> SparseMixerConfig {
    SparseMixerConfig {
        vocab_size: 300,
        hidden_size: 64,
        num_layers: 3,
        moe_layers: vec![1],
        attention_layers: vec![2],
        num_experts: 4,
        num_attention_heads: 2,
        max_sequence_length: SEQ,
        inner_dim: 128,
        embedding_width: Some(32),
        output_dropout: 0.1,
        dtype,
        mixing_mechanism,
        norm_first,
        ..SparseMixerConfig::default()
    }
    .validated()
    .unwrap()
}

/// All that a training step reads and changes.
struct Training {
    network: Arc<SparseMixer<f32>>,
    optimizer: Optimizer<f32>,
    scratch: ScratchPool<f32>,
}

/// What a step changes: weights, moments, step count.
type State = (Vec<Vec<f32>>, Vec<NamedArray<f32>>, u64);

impl Training {
    fn new(config: &SparseMixerConfig, rule: &Rule) -> Self {
        let mut number = 0.0f32;
        let mut source = |_: usize, spec: &Spec| {
            let values: Vec<f32> = (0..spec.len())
                .map(|_| {
                    number += 1.0;
                    0.05 * number.sin()
                })
                .collect();
            Ok(values.into())
        };
        let network = SparseMixer::<f32>::load(config.clone(), None, &mut source).unwrap();
        let specs = specs(config);
        let each = specs.iter().zip(network.weights().iter());
        let parameters = each.map(|(spec, weight)| ParameterSpec::of(spec, weight, true, true)).collect();
        let optimizer = Optimizer::new(rule.clone(), parameters).unwrap();
        Training { network: Arc::new(network), optimizer, scratch: ScratchPool::new() }
    }

    /// Forward, backward, update, on `threads` threads.
    fn step(&mut self, threads: usize) -> Result<()> {
        // As a caller who still computes with these weights: the update has to copy them.
        let network = self.network.clone();
        // The caller's arrays, not the library's.
        let left = LEFT.swap(-1, Ordering::SeqCst);
        let inputs = OwnedInputs {
            batch: BATCH,
            seq: SEQ,
            words: OwnedWords::Ids((0..(BATCH * SEQ) as i64).map(|i| i % 300).collect()),
            word_len: SEQ,
            dense: Vec::new(),
            type_ids: vec![0; BATCH * SEQ],
            mask: Some(vec![1.0; BATCH * SEQ]),
        };
        LEFT.store(left, Ordering::SeqCst);
        let gradients = run(Isa::detect()?, threads, &self.scratch, &never, |context| {
            let requested = RequestedOutputs { pooled_output: true, ..RequestedOutputs::default() };
            let (_, tape) =
                network.forward_with_tape(context, inputs, Some(7), requested, Recording::default())?;
            let pooled = [0.5; BATCH * 64];
            let cotangents = Cotangents { pooled_output: Some(&pooled), ..Cotangents::default() };
            let mut gradients = Gradients::zeros(network.weights().specs());
            network.backward(context, tape, &cotangents, 1.0, &mut gradients)?;
            Ok(gradients)
        })?;
        let how = Step { learning_rate: 0.01, clip_norm: Some(1.0), gradient_scale: 1.0 };
        let optimizer = &mut self.optimizer;
        let chosen = vec![true; gradients.reached().len()];
        let weights = Arc::make_mut(&mut self.network).weights_mut(&|_| true);
        catch(|| {
            let mut updates = alloc_room(chosen.len());
            for (weight, gradient) in weights.choose_mut(&chosen).into_iter().flatten().zip(gradients.iter())
            {
                updates.push(Update::of(weight, Gradient::Dense(gradient.row_major()))?);
            }
            with_threads(threads, || optimizer.apply(&mut updates, how)).map(drop)
        })
    }

    fn state(&self) -> State {
        let weights = self.network.weights().iter().map(|weight| weight.to_vec()).collect();
        (weights, self.optimizer.state(), self.optimizer.step())
    }
}

fn rules() -> [Rule; 4] {
    let (beta_1, beta_2, epsilon, weight_decay) = (0.9, 0.999, 1e-6, 0.01);
    [
        Rule::Adamw(AdamW { beta_1, beta_2, epsilon, epsilon_rule: EpsilonRule::Corrected, weight_decay }),
        Rule::Lamb(Lamb { beta_1, beta_2, epsilon, weight_decay }),
        Rule::Sgd(Sgd { momentum: 0.9, nesterov: true, weight_decay }),
        Rule::Adafactor(Adafactor {
            beta_2_decay: -0.8,
            epsilon_1: 1e-30,
            epsilon_2: 1e-3,
            clip_threshold: 1.0,
            relative_step: true,
            weight_decay,
        }),
    ]
}

/// Refuses each large allocation of the step after `before` steps once.
fn refuse_each(config: &SparseMixerConfig, rule: &Rule, before: u64, threads: usize) {
    let warm = || {
        let mut training = Training::new(config, rule);
        (0..before).for_each(|_| training.step(threads).unwrap());
        // What other calls left there is no help to this one.
        training.scratch = ScratchPool::new();
        training
    };
    let mut undisturbed = warm();
    let first = undisturbed.state();
    undisturbed.step(threads).unwrap();
    let expected = undisturbed.state();
    assert!(first != expected && expected.2 == before + 1);
    let mut refused = 0;
    loop {
        let mut training = warm();
        LEFT.store(refused, Ordering::SeqCst);
        let result = training.step(threads);
        let was_refused = LEFT.swap(-1, Ordering::SeqCst) < 0;
        if !was_refused {
            result.unwrap();
            break;
        }
        match result {
            Err(Error::Memory { .. }) => {
                assert!(training.state() == first, "allocation {refused} was refused and something changed");
                training.step(threads).unwrap();
            }
            // What calls need of changed weights they can make themselves.
            Ok(()) => {}
            Err(other) => panic!("allocation {refused}: {other}"),
        }
        assert!(training.state() == expected, "after allocation {refused}");
        refused += 1;
    }
    assert!(refused > 20, "{refused}");
}

#[test]
fn a_refused_allocation_changes_nothing() {
    let linear = config(Dtype::Float32, MixingMechanism::Linear, false);
    // Moments are allocated in the first step.
    rules().iter().for_each(|rule| refuse_each(&linear, rule, 0, 1));
    let rule = &rules()[0];
    refuse_each(&linear, rule, 1, 1);
    refuse_each(&linear, rule, 0, 2);
    refuse_each(&config(Dtype::Bfloat16, MixingMechanism::Linear, true), rule, 0, 1);
    refuse_each(&config(Dtype::Bfloat16, MixingMechanism::Linear, true), &rules()[3], 1, 1);
    refuse_each(&config(Dtype::Float16, MixingMechanism::Fourier, false), rule, 0, 1);
    refuse_each(&config(Dtype::Float32, MixingMechanism::Toeplitz, false), rule, 0, 1);
}
