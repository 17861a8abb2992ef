//! Learning rates as functions of the step, counted from 0 for the first update.

use serde::{Deserialize, Serialize};

use super::checks::check_non_negative;
use crate::error::{Error, Result};

/// A learning-rate schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// The same rate always.
    Constant {
        /// The rate.
        learning_rate: f64,
    },
    /// `(initial - end) (1 - min(step, decay_steps) / decay_steps)^power + end`, Keras's `PolynomialDecay`; linear
    /// decay is `power = 1`.
    PolynomialDecay {
        /// Rate at step 0.
        initial_learning_rate: f64,
        /// Steps until the end rate.
        decay_steps: u64,
        /// Rate from then on.
        end_learning_rate: f64,
        /// Exponent.
        power: f64,
    },
    /// `initial ((1 - alpha) (1 + cos(pi min(step, decay_steps) / decay_steps)) / 2 + alpha)`, Keras's `CosineDecay`.
    CosineDecay {
        /// Rate at step 0.
        initial_learning_rate: f64,
        /// Steps until the end rate.
        decay_steps: u64,
        /// The end rate as a share of the initial one.
        alpha: f64,
    },
    /// A straight line from `warmup_learning_rate` to the rate that `after` has at step `warmup_steps`; then `after`,
    /// whose steps are counted from 0 too: the Model Garden's `LinearWarmup`.
    LinearWarmup {
        /// The schedule that takes over.
        after: Box<Schedule>,
        /// Steps of the line.
        warmup_steps: u64,
        /// Rate at step 0.
        warmup_learning_rate: f64,
    },
    /// The paper's code: `base min(1, step / warmup) (1 - (max(0, step - warmup) / (total - warmup) mod 1))`. The
    /// first update has rate 0, and the decay restarts after `total_steps`.
    Paper {
        /// The highest rate.
        learning_rate: f64,
        /// Steps of the warm-up.
        warmup_steps: u64,
        /// Step at which the decay reaches 0.
        total_steps: u64,
    },
}

impl Schedule {
    /// Checks rates and numbers of steps; the error names the argument.
    pub fn validate(&self) -> Result<()> {
        match self {
            Schedule::Constant { learning_rate } => check_non_negative("learning_rate", *learning_rate),
            Schedule::PolynomialDecay { initial_learning_rate, decay_steps, end_learning_rate, power } => {
                check_non_negative("initial_learning_rate", *initial_learning_rate)?;
                check_non_negative("end_learning_rate", *end_learning_rate)?;
                check_non_negative("power", *power)?;
                check_steps("decay_steps", *decay_steps)
            }
            Schedule::CosineDecay { initial_learning_rate, decay_steps, alpha } => {
                check_non_negative("initial_learning_rate", *initial_learning_rate)?;
                check_non_negative("alpha", *alpha)?;
                check_steps("decay_steps", *decay_steps)
            }
            Schedule::LinearWarmup { after, warmup_learning_rate, .. } => {
                check_non_negative("warmup_learning_rate", *warmup_learning_rate)?;
                after.validate()
            }
            Schedule::Paper { learning_rate, warmup_steps, total_steps } => {
                check_non_negative("learning_rate", *learning_rate)?;
                if total_steps <= warmup_steps {
                    let message =
                        format!("got {total_steps}, expected more than warmup_steps ({warmup_steps})");
                    return Err(Error::value("total_steps", message));
                }
                Ok(())
            }
        }
    }

    /// The rate of the update number `step` (0 for the first), which may lie between two.
    pub fn at(&self, step: f64) -> f64 {
        match self {
            Schedule::Constant { learning_rate } => *learning_rate,
            Schedule::PolynomialDecay { initial_learning_rate, decay_steps, end_learning_rate, power } => {
                let left = 1.0 - progress(step, *decay_steps);
                (initial_learning_rate - end_learning_rate) * left.powf(*power) + end_learning_rate
            }
            Schedule::CosineDecay { initial_learning_rate, decay_steps, alpha } => {
                let wave = 0.5 * (1.0 + (std::f64::consts::PI * progress(step, *decay_steps)).cos());
                initial_learning_rate * ((1.0 - alpha) * wave + alpha)
            }
            Schedule::LinearWarmup { after, warmup_steps, warmup_learning_rate } => {
                let end = *warmup_steps as f64;
                if step >= end {
                    return after.at(step);
                }
                warmup_learning_rate + step / end * (after.at(end) - warmup_learning_rate)
            }
            Schedule::Paper { learning_rate, warmup_steps, total_steps } => {
                let end = *warmup_steps as f64;
                let warmup = if step < end { step / end } else { 1.0 };
                let decayed = (step - end).max(0.0) / (total_steps - warmup_steps) as f64;
                learning_rate * warmup * (1.0 - decayed.fract())
            }
        }
    }
}

/// Share of `steps` that is done at `step`, at most 1.
fn progress(step: f64, steps: u64) -> f64 {
    step.min(steps as f64) / steps as f64
}

fn check_steps(argument: &str, steps: u64) -> Result<()> {
    if steps == 0 { Err(Error::value(argument, "got 0, expected at least 1")) } else { Ok(()) }
}
