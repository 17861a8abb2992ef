//! Sums of vectors.

use crate::kernels::isa::{Isa, Real, Simd, VectorLoop, each_span};

/// `dst += src`
///
/// # Panics
/// If the lengths differ.
pub fn add_in_place<R: Real>(isa: Isa, dst: &mut [R], src: &[R]) {
    axpy(isa, dst, R::ONE, src);
}

/// `dst += scale * src`
///
/// # Panics
/// If the lengths differ.
pub fn axpy<R: Real>(isa: Isa, dst: &mut [R], scale: R, src: &[R]) {
    struct Axpy<'a, R>(&'a mut [R], R, &'a [R]);
    impl<R: Real> VectorLoop<R> for Axpy<'_, R> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd<Elem = R>>(self, simd: S) {
            let Axpy(dst, scale, src) = self;
            let scale = simd.splat(scale);
            each_span(
                dst.len(),
                #[inline(always)]
                |at| {
                    let y = simd.mul_add(scale, at.load(simd, src), at.load(simd, dst));
                    at.store(simd, y, dst);
                },
            );
        }
    }
    assert_eq!(dst.len(), src.len(), "as many values to add as places to add them to");
    R::dispatch(isa, Axpy(dst, scale, src));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{LENGTHS, assert_close, cast, for_all, numbers};

    fn check_sums<R: Real>(isa: Isa) {
        for n in LENGTHS {
            let (x, y) = (numbers(n, 7), numbers(n, 8));
            let mut out = cast::<R>(&y);
            axpy(isa, &mut out, R::from_f64(0.5), &cast(&x));
            let expected: Vec<f64> = x.iter().zip(&y).map(|(x, y)| 0.5 * x + y).collect();
            assert_close(&out, &expected, "axpy");
            add_in_place(isa, &mut out, &cast(&x));
            let expected: Vec<f64> = x.iter().zip(&y).map(|(x, y)| 1.5 * x + y).collect();
            assert_close(&out, &expected, "add");
        }
    }

    #[test]
    fn sums_follow_the_formula() {
        for_all!(check_sums);
    }
}
