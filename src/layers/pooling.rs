//! From token vectors to one vector per example: pooling `[B, S, H]` to `[B, M]`, and vectors of length 1.
//!
//! An example's vector depends on its own rows alone, added in their order, so it has the same bits in any batch and
//! beside any padding. Sums are in double precision. Source: `sentence_transformers.models.Pooling`.

use crate::error::{Error, Result};
use crate::kernels::Number;

/// How the real tokens of an example become one vector of `H` numbers. An example without such is all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first row, whatever its mask.
    First,
    /// The last real token.
    Last,
    /// The largest value of each column.
    Max,
    /// The mean.
    Mean,
    /// The sum over the square root of the number of tokens.
    MeanSqrtLength,
    /// The mean, the token at position `s` (from 0) counting `s + 1` times.
    WeightedMean,
}

impl Pooling {
    /// The mode called `name`.
    ///
    /// # Errors
    /// [`Error::Value`] for an unknown name.
    pub fn parse(name: &str) -> Result<Self> {
        Ok(match name {
            "cls" => Pooling::First,
            "lasttoken" => Pooling::Last,
            "max" => Pooling::Max,
            "mean" => Pooling::Mean,
            "mean_sqrt_len_tokens" => Pooling::MeanSqrtLength,
            "weightedmean" => Pooling::WeightedMean,
            _ => {
                let known = "'cls', 'max', 'mean', 'mean_sqrt_len_tokens', 'weightedmean' or 'lasttoken'";
                return Err(Error::value("pooling", format!("got {name:?}, expected {known}")));
            }
        })
    }

    /// Pools the rows of one example into `out` (`H` values); `is_real` says of each row whether it counts.
    ///
    /// # Panics
    /// If `rows` has not `out.len()` values for each of `is_real`.
    pub fn pool<R: Number>(self, rows: &[R], is_real: &[bool], out: &mut [R]) {
        let width = out.len();
        assert_eq!(rows.len(), is_real.len() * width, "one mask value per row");
        out.fill(R::ZERO);
        let row = |s: usize| &rows[s * width..][..width];
        let real = || is_real.iter().enumerate().filter(|&(_, &real)| real).map(|(s, _)| s);
        match self {
            Pooling::First => out.copy_from_slice(row(0)),
            Pooling::Last => {
                if let Some(last) = real().next_back() {
                    out.copy_from_slice(row(last));
                }
            }
            Pooling::Max => {
                for (number, s) in real().enumerate() {
                    for (largest, &value) in out.iter_mut().zip(row(s)) {
                        if number == 0 || value > *largest || value.is_nan() {
                            *largest = value;
                        }
                    }
                }
            }
            Pooling::Mean | Pooling::MeanSqrtLength | Pooling::WeightedMean => {
                let weight = |s: usize| if self == Pooling::WeightedMean { (s + 1) as f64 } else { 1.0 };
                let mut sums = vec![0.0f64; width];
                for s in real() {
                    let weight = weight(s);
                    sums.iter_mut().zip(row(s)).for_each(|(sum, value)| *sum += weight * value.to_f64());
                }
                let total: f64 = real().map(weight).sum();
                let divisor = if self == Pooling::MeanSqrtLength { total.sqrt() } else { total };
                if total > 0.0 {
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = R::from_f64(sum / divisor));
                }
            }
        }
    }
}

/// Divides a vector by its Euclidean length; one without length stays as it is.
pub fn normalize<R: Number>(vector: &mut [R]) {
    let length = vector.iter().map(|x| x.to_f64() * x.to_f64()).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = R::from_f64(x.to_f64() / length));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [f32; 8] = [1.0, -2.0, 3.0, -4.0, 5.0, -9.0, 100.0, 200.0];
    const MASK: [bool; 4] = [true, true, true, false];

    fn pooled(mode: Pooling, mask: &[bool]) -> [f32; 2] {
        let mut out = [7.0; 2];
        mode.pool(&ROWS[..2 * mask.len()], mask, &mut out);
        out
    }

    #[test]
    fn modes_follow_their_formulas() {
        assert_eq!(pooled(Pooling::First, &MASK), [1.0, -2.0]);
        assert_eq!(pooled(Pooling::Last, &MASK), [5.0, -9.0]);
        assert_eq!(pooled(Pooling::Max, &MASK), [5.0, -2.0]);
        assert_eq!(pooled(Pooling::Mean, &MASK), [3.0, -5.0]);
        assert_eq!(
            pooled(Pooling::MeanSqrtLength, &MASK),
            [9.0, -15.0].map(|sum: f64| (sum / 3.0f64.sqrt()) as f32)
        );
        assert_eq!(pooled(Pooling::WeightedMean, &MASK), [22.0 / 6.0, -37.0 / 6.0]);
        // Rows in the middle can be left out, such as those of a prompt.
        assert_eq!(pooled(Pooling::Mean, &[false, true, true, false]), [4.0, -6.5]);
        assert_eq!(pooled(Pooling::WeightedMean, &[false, true, true, false]), [21.0 / 5.0, -35.0 / 5.0]);
    }

    #[test]
    fn padding_changes_no_bit() {
        for mode in ["cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean"] {
            let mode = Pooling::parse(mode).unwrap();
            assert_eq!(pooled(mode, &MASK), pooled(mode, &MASK[..3]), "{mode:?}");
        }
        assert!(Pooling::parse("median").unwrap_err().to_string().contains("'weightedmean'"));
    }

    #[test]
    fn nothing_pools_to_zeros() {
        for mode in [Pooling::Last, Pooling::Max, Pooling::Mean, Pooling::MeanSqrtLength] {
            assert_eq!(pooled(mode, &[false; 4]), [0.0; 2], "{mode:?}");
        }
        let mut zeros = [0.0f32; 3];
        normalize(&mut zeros);
        assert_eq!(zeros, [0.0; 3]);
        let mut vector = [3.0f32, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
    }
}
