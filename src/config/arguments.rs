//! Every argument that the computation depends on, declared once: meaning, name, type, default, range and origin.
//! Whatever else there is about arguments is made from this list, in Python, too.
//!
//! `None` stands for "not given". What it means then the configuration's accessor of the same name says, or `semantics.rs`.

use serde::{Deserialize, Serialize};

use super::choices::{ActivationConfig, InitializerConfig, MixingMechanism, RouterKind, SemanticsPreset};
use crate::error::{Error, Result};
use crate::kernels::Dtype;

/// What is known of one argument.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    /// Its name, in every language.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// Whether it may be left open.
    pub optional: bool,
    /// Which of these values it may have by itself.
    pub range: Range,
    /// Whose argument it is.
    pub origin: Origin,
    /// What it means.
    pub help: &'static str,
}

/// What values an argument takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number of things, an integer that is not negative.
    Count,
    /// An integer.
    Integer,
    /// The source of random numbers, an integer of 64 bits that is not negative.
    Seed,
    /// A real number.
    Number,
    /// True or false.
    Flag,
    /// Numbers of layers.
    Layers,
    /// A storage type.
    Dtype,
    /// One of the names.
    Name(&'static [&'static str]),
    /// A way of token mixing.
    Mixing,
    /// An activation.
    Activation,
    /// An initialiser.
    Initializer,
}

/// Whose argument one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// TensorFlow's class has it, and it must be given.
    Required,
    /// TensorFlow's class has it.
    Keras,
    /// Ours.
    Extension,
}

/// Which values an argument may have by itself; `checks.rs` has what arguments may be together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// No bounds.
    Any,
    /// 1 or more.
    AtLeastOne,
    /// 0 to 1.
    Rate,
    /// Finite, 0 or more.
    NotNegative,
    /// Finite, more than 0.
    Positive,
    /// More than 0, less than 1.
    Fraction,
    /// These storage types.
    Dtypes(&'static [Dtype]),
}

impl Range {
    /// The range in words; empty for [`Range::Any`].
    pub fn text(self) -> String {
        match self {
            Range::Any => String::new(),
            Range::AtLeastOne => "at least 1".into(),
            Range::Rate => "a rate between 0 and 1".into(),
            Range::NotNegative => "a finite number >= 0".into(),
            Range::Positive => "a finite number > 0".into(),
            Range::Fraction => "a number above 0 and below 1".into(),
            Range::Dtypes(dtypes) => {
                let names: Vec<String> = dtypes.iter().map(|dtype| format!("'{}'", dtype.name())).collect();
                names.join(" or ")
            }
        }
    }

    fn check(self, name: &'static str, value: &impl Value) -> Result<()> {
        let number = value.number();
        let fits = match (self, number) {
            (Range::AtLeastOne, Some(number)) => number >= 1.0,
            (Range::Rate, Some(number)) => (0.0..=1.0).contains(&number),
            (Range::NotNegative, Some(number)) => number >= 0.0 && number.is_finite(),
            (Range::Positive, Some(number)) => number > 0.0 && number.is_finite(),
            (Range::Fraction, Some(number)) => number > 0.0 && number < 1.0,
            (Range::Dtypes(dtypes), _) => value.dtype().is_none_or(|dtype| dtypes.contains(&dtype)),
            _ => true,
        };
        let got = || match (number, value.dtype()) {
            (Some(number), _) => number.to_string(),
            (_, dtype) => format!("{:?}", dtype.map_or("", Dtype::name)),
        };
        if fits {
            Ok(())
        } else {
            Err(Error::value(name, format!("got {}, expected {}", got(), self.text())))
        }
    }
}

/// Types of arguments.
trait Value {
    const KIND: Kind;
    const OPTIONAL: bool = false;

    /// The value, if it is a number that has a range.
    fn number(&self) -> Option<f64> {
        None
    }

    /// The value, if it is a storage type.
    fn dtype(&self) -> Option<Dtype> {
        None
    }
}

impl Value for usize {
    const KIND: Kind = Kind::Count;

    fn number(&self) -> Option<f64> {
        Some(*self as f64)
    }
}

impl Value for f64 {
    const KIND: Kind = Kind::Number;

    fn number(&self) -> Option<f64> {
        Some(*self)
    }
}

impl Value for Dtype {
    const KIND: Kind = Kind::Dtype;

    fn dtype(&self) -> Option<Dtype> {
        Some(*self)
    }
}

impl<T: Value> Value for Option<T> {
    const KIND: Kind = T::KIND;
    const OPTIONAL: bool = true;

    fn number(&self) -> Option<f64> {
        self.as_ref().and_then(T::number)
    }
}

macro_rules! other_values {
    ($($type:ty: $kind:expr),+ $(,)?) => { $(impl Value for $type { const KIND: Kind = $kind; })+ };
}

other_values! {
    bool: Kind::Flag,
    i64: Kind::Integer,
    u64: Kind::Seed,
    Vec<usize>: Kind::Layers,
    ActivationConfig: Kind::Activation,
    InitializerConfig: Kind::Initializer,
    MixingMechanism: Kind::Mixing,
    RouterKind: Kind::Name(RouterKind::NAMES),
    SemanticsPreset: Kind::Name(SemanticsPreset::NAMES),
}

/// `/// meaning` and `name: type = default, range, origin;` for each argument.
macro_rules! arguments {
    ($($(#[doc = $help:literal])+ $name:ident: $type:ty = $default:expr, $range:expr, $origin:ident;)+) => {
        /// Every argument that the computation depends on. Defaults are the reference class's.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct SparseMixerConfig {
            $($(#[doc = $help])+ pub $name: $type,)+
        }

        impl Default for SparseMixerConfig {
            fn default() -> Self {
                SparseMixerConfig { $($name: $default,)+ }
            }
        }

        /// All arguments, in the order of TensorFlow's configuration, ours behind.
        pub const ARGUMENTS: &[Argument] = &[$(Argument {
            name: stringify!($name),
            kind: <$type as Value>::KIND,
            optional: <$type as Value>::OPTIONAL,
            range: $range,
            origin: Origin::$origin,
            help: concat!($($help),+),
        }),+];

        impl SparseMixerConfig {
            /// Checks every argument by itself.
            pub(super) fn check_ranges(&self) -> Result<()> {
                $(Range::check($range, stringify!($name), &self.$name)?;)+
                Ok(())
            }
        }
    };
}

use Range::{Any, AtLeastOne, Dtypes, Fraction, NotNegative, Positive, Rate};

arguments! {
    /// Rows of the word table.
    vocab_size: usize = 1, AtLeastOne, Required;
    /// Width of the encoder.
    hidden_size: usize = 512, AtLeastOne, Keras;
    /// Number of blocks.
    num_layers: usize = 14, AtLeastOne, Keras;
    /// Blocks whose feed-forward is a mixture of experts.
    moe_layers: Vec<usize> = vec![5, 6, 7, 8], Any, Keras;
    /// Experts per mixture; at least 1, if there are mixtures.
    num_experts: usize = 16, Any, Keras;
    /// Expert capacity over the even share of tokens, when training.
    train_capacity_factor: f64 = 1.0, NotNegative, Keras;
    /// The same at inference.
    eval_capacity_factor: f64 = 1.0, NotNegative, Keras;
    /// Routing group size in examples; `None` for 1, or for groups by size as `semantics` has it.
    examples_per_group: Option<f64> = None, Positive, Keras;
    /// Token mixing of the blocks that do not attend.
    mixing_mechanism: MixingMechanism = MixingMechanism::Linear, Any, Keras;
    /// Fourier and Hartley mixing by fast transforms instead of matrix products.
    use_fft: bool = false, Any, Keras;
    /// Blocks that attend instead of mix.
    attention_layers: Vec<usize> = vec![10, 11, 12, 13], Any, Keras;
    /// Attention heads; must divide `hidden_size`.
    num_attention_heads: usize = 8, AtLeastOne, Keras;
    /// The sequence length; shorter ones are accepted where [`SparseMixerConfig::check_length`] says so.
    max_sequence_length: usize = 512, AtLeastOne, Keras;
    /// Rows of the type table.
    type_vocab_size: usize = 16, AtLeastOne, Keras;
    /// Width between the two products of a feed-forward layer.
    inner_dim: usize = 2048, AtLeastOne, Keras;
    /// Activation there.
    inner_activation: ActivationConfig = ActivationConfig::named("gelu_tanh"), Any, Keras;
    /// Dropout rate of embeddings, sublayer outputs and expert outputs.
    output_dropout: f64 = 0.1, Rate, Keras;
    /// Dropout rate of attention weights.
    attention_dropout: f64 = 0.1, Rate, Keras;
    /// How kernels and tables are initialised; `None` as `semantics` has it.
    initializer: Option<InitializerConfig> = None, Any, Keras;
    /// Rows of the last layer to compute; `None` for all.
    output_range: Option<i64> = None, Any, Keras;
    /// Width of the embeddings; `None` for `hidden_size`.
    embedding_width: Option<usize> = None, AtLeastOne, Keras;
    /// Layer norms before the sublayers instead of after.
    norm_first: bool = false, Any, Keras;
    /// Storage type.
    dtype: Dtype = Dtype::Float32, Any, Extension;
    /// Routing group size in tokens, instead of `examples_per_group`; `None` as `semantics` has it.
    max_group_size: Option<usize> = None, AtLeastOne, Extension;
    /// Weight of the router z-loss in training; `None` as `semantics` has it.
    router_z_loss_weight: Option<f64> = None, NotNegative, Extension;
    /// Router inputs are multiplied by uniform noise from `[1 - jitter_noise, 1 + jitter_noise)` when training.
    jitter_noise: f64 = 0.0, NotNegative, Extension;
    /// Whose conventions to follow.
    semantics: SemanticsPreset = SemanticsPreset::Keras, Any, Extension;
    /// The word id of padding. Given, real tokens attend to real tokens and padding evenly to everything, and padding is
    /// where the word ids have this value unless a mask says otherwise; `None` as `semantics` has it.
    pad_id: Option<i64> = None, Any, Extension;
    /// Residual and layer norm around the mixtures of post-norm blocks; `None` as `semantics` has it.
    moe_residual: Option<bool> = None, Any, Extension;
    /// Project the embeddings also where their width is `hidden_size`, and drop out after the projection rather than
    /// before; `None` as `semantics` has it.
    project_embeddings: Option<bool> = None, Any, Extension;
    /// Least expert capacity; `None` as `semantics` has it.
    min_expert_capacity: Option<usize> = None, Any, Extension;
    /// Inner width of the experts; `None` for `inner_dim`.
    expert_inner_dim: Option<usize> = None, AtLeastOne, Extension;
    /// Dropout rate of expert outputs; `None` for `output_dropout`.
    expert_dropout: Option<f64> = None, Rate, Extension;
    /// Who chooses whom.
    router: RouterKind = RouterKind::ExpertsChoose, Any, Extension;
    /// Experts that each token asks for, where tokens choose.
    num_selected_experts: usize = 1, AtLeastOne, Extension;
    /// Where tokens choose: serve them by descending probability of their first choice rather than in their order.
    batch_prioritized_routing: bool = true, Any, Extension;
    /// Weight of the load-balancing loss in training, where tokens choose.
    auxiliary_loss_factor: f64 = 0.01, NotNegative, Extension;
    /// Arithmetic of the router, from its input to the probabilities: 32-bit floats, or every intermediate result rounded
    /// to bfloat16, as the JAX code executes it.
    router_dtype: Dtype = Dtype::Float32, Dtypes(&[Dtype::Float32, Dtype::Bfloat16]), Extension;
    /// With several groups, use the expert parameters that the JAX code uses by mistake: number
    /// `(group * num_experts + expert) / groups`.
    group_mixup: bool = false, Any, Extension;
    /// Buckets of distances for relative position biases of attention, as MPNet has them: an even number, at least 4; `None`
    /// for no biases.
    relative_attention_num_buckets: Option<usize> = None, AtLeastOne, Extension;
    /// Whether sequences may be shorter than `max_sequence_length` where no weight belongs to a length; `None` as
    /// `semantics` has it.
    shorter_sequences: Option<bool> = None, Any, Extension;
    /// What layer norms add to the variance.
    layer_norm_epsilon: f64 = 1e-12, Fraction, Extension;
    /// Whether there is a pooler.
    with_pooler: bool = true, Any, Extension;
    /// Seed of the initial weights; `None` for 0. (Python takes a random one instead.)
    seed: Option<u64> = None, Any, Extension;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_argument_is_explained_and_the_defaults_pass() {
        assert!(ARGUMENTS.iter().all(|argument| argument.help.trim().ends_with(['.', ')'])));
        SparseMixerConfig::default().check_ranges().expect("the defaults are in range");
    }

    #[test]
    fn a_value_out_of_range_is_refused_by_name() {
        let refused = |change: fn(&mut SparseMixerConfig)| {
            let mut config = SparseMixerConfig::default();
            change(&mut config);
            config.check_ranges().expect_err("out of range").to_string()
        };
        assert_eq!(refused(|c| c.hidden_size = 0), "hidden_size: got 0, expected at least 1");
        assert_eq!(refused(|c| c.embedding_width = Some(0)), "embedding_width: got 0, expected at least 1");
        assert_eq!(
            refused(|c| c.expert_dropout = Some(f64::NAN)),
            "expert_dropout: got NaN, expected a rate between 0 and 1"
        );
        assert_eq!(
            refused(|c| c.router_dtype = Dtype::Int8),
            "router_dtype: got \"int8\", expected 'float32' or 'bfloat16'"
        );
    }

    #[test]
    fn names_are_those_of_the_stored_form() {
        let read = |name: &str| serde_json::from_value::<SemanticsPreset>(name.into()).expect("a name");
        let presets: Vec<_> = SemanticsPreset::NAMES.iter().map(|name| read(name)).collect();
        use SemanticsPreset::{Keras, KerasStrict, Paper};
        assert_eq!(presets, [Keras, KerasStrict, Paper]);
    }
}
