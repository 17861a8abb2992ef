//! A tile of sums in registers, for products in the type of the activations.

use super::layout::PANEL;
use crate::kernels::isa::{LANES, Real, Simd};

/// What the sums of a tile begin with.
#[derive(Clone, Copy)]
pub enum Start<'a, R> {
    /// Nothing.
    Zero,
    /// A row of values, the same for all rows.
    Row(&'a [R]),
    /// What the results hold.
    Out,
}

/// One register tile: `out[r][c] = start + sum_i a[r][i] * b[i][c]`.
pub struct Tile<'a, R> {
    /// At most [`Simd::TILE_ROWS`].
    pub rows: usize,
    /// Columns, at most a tile's.
    pub width: usize,
    /// Terms.
    pub k: usize,
    /// The left operand's first row.
    pub a: *const R,
    /// Elements from one row to the next.
    pub a_stride: usize,
    /// The panel, from the tile's first column on.
    pub b: *const R,
    /// What to fetch meanwhile, `next_step` elements per term from here on. Any address.
    pub next: *const R,
    /// See `next`.
    pub next_step: usize,
    /// The results' first row.
    pub out: *mut R,
    /// Elements from one row to the next.
    pub out_stride: usize,
    /// What the sums begin with.
    pub start: Start<'a, R>,
}

impl<R: Real> Tile<'_, R> {
    /// # Safety
    /// `a` must have `rows` rows of `k` values, `b` `k` rows of a panel from the tile's first column on, `out`
    /// `rows` rows of `width`; `width <= TILE_VECS * LANES`, `rows <= TILE_ROWS`.
    #[inline(always)]
    pub unsafe fn run<S: Simd<Elem = R>>(&self, simd: S) {
        macro_rules! by_rows {
            ($($rows:literal)*) => {
                match self.rows {
                    // SAFETY: the caller's promise.
                    $($rows if $rows <= S::TILE_ROWS => unsafe {
                        // Half a panel, such as of a router to few experts, takes half as long.
                        if S::TILE_VECS == 2 && self.width > LANES {
                            self.sums::<S, $rows, 2>(simd)
                        } else {
                            self.sums::<S, $rows, 1>(simd)
                        }
                    },)*
                    rows => unreachable!("a tile of {rows} rows"),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12)
    }

    /// # Safety
    /// As [`Tile::run`], with `rows == ROWS` and `width <= VECS * LANES`.
    #[inline(always)]
    unsafe fn sums<S: Simd<Elem = R>, const ROWS: usize, const VECS: usize>(&self, simd: S) {
        let mut sums = [[simd.zero(); VECS]; ROWS];
        let whole = self.width == VECS * LANES;
        match self.start {
            Start::Zero => {}
            Start::Row(row) => {
                let start = std::array::from_fn(|v| {
                    let first = self.width.min(v * LANES);
                    simd.load_partial(&row[first..self.width.min(first + LANES)])
                });
                sums = [start; ROWS];
            }
            Start::Out => {
                for (r, row) in sums.iter_mut().enumerate() {
                    for (v, sum) in row.iter_mut().enumerate() {
                        // SAFETY: `width` results of row `r` are readable.
                        *sum = unsafe {
                            if whole {
                                simd.load_ptr(self.out.add(r * self.out_stride + v * LANES))
                            } else {
                                simd.load_partial(&*self.partial(r, v))
                            }
                        };
                    }
                }
            }
        }
        // Every third row has a pointer of its own, from which the processor's addressing reaches the two after it.
        let mut a: [*const R; 4] = std::array::from_fn(|i| self.a.wrapping_add(3 * i * self.a_stride));
        let (mut b, mut next) = (self.b, self.next);
        for _ in 0..self.k {
            // SAFETY: `a` has `ROWS` rows of `k` elements, a row of `b` from the tile's first column on
            // `VECS * LANES`.
            unsafe {
                let columns: [S::Vec; VECS] = std::array::from_fn(|v| simd.load_ptr(b.add(v * LANES)));
                simd.prefetch(next);
                for (r, row) in sums.iter_mut().enumerate() {
                    let a = simd.splat(*a[r / 3].add(r % 3 * self.a_stride));
                    for (sum, column) in row.iter_mut().zip(columns) {
                        *sum = simd.mul_add(a, column, *sum);
                    }
                }
            }
            a = a.map(|a| simd.opaque(a.wrapping_add(1)));
            b = b.wrapping_add(PANEL);
            next = next.wrapping_add(self.next_step);
        }
        for (r, row) in sums.into_iter().enumerate() {
            for (v, sum) in row.into_iter().enumerate() {
                // SAFETY: `width` results of row `r` are writable.
                unsafe {
                    if whole {
                        simd.store_ptr(sum, self.out.add(r * self.out_stride + v * LANES));
                    } else {
                        simd.store_partial(sum, &mut *self.partial(r, v));
                    }
                }
            }
        }
    }

    /// The `v`-th vector of row `r` of the results, as much as is inside the tile's width.
    #[inline(always)]
    fn partial(&self, r: usize, v: usize) -> *mut [R] {
        let first = self.width.min(v * LANES);
        let last = self.width.min(first + LANES);
        let start = self.out.wrapping_add(r * self.out_stride + first);
        std::ptr::slice_from_raw_parts_mut(start, last - first)
    }
}
