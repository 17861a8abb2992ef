//! Initial values of weights.

use super::spec::{Role, Spec};
use crate::config::{InitializerConfig, SparseMixerConfig};
use crate::error::{Error, Result};
use crate::random::{Purpose, RngStream, normal_quantile, open_unit, place_of};
use crate::runtime::parallel;

/// Samples the initial values of an encoder's weight, a function of the configuration's seed and the weight's name.
///
/// Source: Keras initialisers; fans as `keras.initializers` counts them (last two axes times the product of the others).
///
/// # Errors
/// Those of [`sample`].
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
    let initializer = if spec.role == Role::LecunKernel { lecun } else { config.initializer() };
    sample(&initializer, config.seed(), Purpose::EncoderWeight, spec, stop)
}

/// Samples the initial values of a weight by `initializer`, a function of `seed`, the purpose and the weight's name.
///
/// # Errors
/// [`Error::Memory`] if there is not enough; [`Error::Interrupted`] once `stop` says so, which every thread asks that
/// samples.
pub fn sample(
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

/// What [`sample`] samples, leaving out the rest once `stop` says so.
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
        Role::Kernel | Role::LecunKernel => initializer,
    };
    let sample = |map: &(dyn Fn(f64) -> f64 + Sync)| {
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
        sample(&move |u| mean + stddev * normal_quantile(TAIL + u * (1.0 - 2.0 * TAIL)))
    };
    let normal = |mean: f64, stddev: f64| sample(&move |u| mean + stddev * normal_quantile(u));
    let uniform = |low: f64, high: f64| sample(&move |u| low + u * (high - low));
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
                // Keras widens the normal so that the truncated one has this variance.
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
