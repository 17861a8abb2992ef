//! Inverted dropout: kept values are divided by the keep probability. The mask is a function of seed, place in the
//! network and element index, so backward re-makes it instead of storing it.

use crate::kernels::{Isa, Real, dropout};
use crate::random::RngStream;
use crate::sys::{Work, timed};

/// Dropout at one place of one call.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    rate: f32,
    stream: RngStream,
}

impl Dropout {
    /// Dropout at `rate`; `None` if that drops nothing.
    pub fn new(rate: f64, stream: RngStream) -> Option<Self> {
        (rate > 0.0).then_some(Dropout { rate: rate as f32, stream })
    }

    /// Drops among `x`, elements `first..` of the tensor. Also the backward step, on gradients.
    pub fn apply<R: Real>(&self, isa: Isa, x: &mut [R], first: usize) {
        let _time = timed(Work::Dropout);
        let keep = R::from_f64(1.0 / (1.0 - f64::from(self.rate)));
        dropout(isa, self.stream.key(), first as u64, self.rate, keep, x);
    }
}
