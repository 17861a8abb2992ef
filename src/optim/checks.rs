//! Ranges of settings; an error names the argument.

use crate::error::{Error, Result};

/// `value` is in `[0, 1)`, in float32, too.
pub(super) fn check_fraction(argument: &str, value: f64) -> Result<()> {
    if value >= 0.0 && (value as f32) < 1.0 {
        return Ok(());
    }
    Err(Error::value(argument, format!("got {value}, expected at least 0 and less than 1")))
}

/// `value` is finite in float32, in which updates are made, and not negative.
pub(super) fn check_non_negative(argument: &str, value: f64) -> Result<()> {
    if (value as f32).is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::value(argument, format!("got {value}, expected a finite number, at least 0")))
}

/// `value` is finite and positive in float32, in which updates are made.
pub(super) fn check_positive(argument: &str, value: f64) -> Result<()> {
    if (value as f32).is_finite() && value as f32 > 0.0 {
        return Ok(());
    }
    Err(Error::value(argument, format!("got {value}, expected a finite number above 0 in float32")))
}
