//! A register tile for [`PanelProduct`]s, generic over the instructions that multiply groups of 4 bytes.

use super::layout::PANEL;
use super::panel_product::{Initial, PANEL_STEP_BYTES, PanelProduct, PanelScaling, ResultRows, STEP_BYTES};

/// Bytes of a group.
const GROUP: usize = 4;
/// Groups of a step over `k`.
const STEP_GROUPS: usize = STEP_BYTES / GROUP;
/// Steps over `k` between visits of the result in memory: 32 KiB of a panel, which stay in the L1 cache while the
/// rows pass by.
const SLICE_STEPS: usize = 16;

/// Instructions on vectors of 4-byte numbers.
pub trait Dot: Copy {
    /// A register.
    type Vector: Copy;
    /// Rows of a tile.
    const ROWS: usize;
    /// Numbers in a vector; two vectors make a tile's width.
    const LANES: usize;

    /// # Safety
    /// `from` has a vector's bytes.
    unsafe fn load(self, from: *const u8) -> Self::Vector;
    /// # Safety
    /// `to` has room for a vector's bytes.
    unsafe fn store(self, vector: Self::Vector, to: *mut u8);
    /// The group in every lane.
    ///
    /// # Safety
    /// `from` has 4 bytes.
    unsafe fn repeat(self, from: *const u8) -> Self::Vector;
    /// Asks for the cache line at `from` to be fetched into the L2 cache; any address will do.
    fn prefetch(self, from: *const u8);
    /// Asks for the cache line at `at` to be fetched into the L1 cache; any address will do.
    fn prefetch_near(self, at: *const u8);
    /// The same pointer, of which the compiler cannot tell that it was computed from another.
    fn opaque(self, from: *const u8) -> *const u8;
    /// `sums + left * panel`, group by group.
    fn dot(self, sums: Self::Vector, left: Self::Vector, panel: Self::Vector) -> Self::Vector;
    /// `start + sums * (row * columns)`, of which `sums` are integers.
    fn scale(self, sums: Self::Vector, row: f32, columns: Self::Vector, start: Self::Vector) -> Self::Vector;
}

/// Computes the product in tiles, the panel's slices outermost; with `scaling`, what comes out goes there.
///
/// # Safety
/// As [`multiply`](super::panel_product::PanelKernel::multiply), with `scaling` as
/// [`multiply_scaled`](super::panel_product::PanelKernel::multiply_scaled).
#[inline(always)]
pub unsafe fn multiply<D: Dot>(dot: D, product: &PanelProduct, scaling: Option<&PanelScaling>) {
    // Tiles of nearly equal height: one of one or two rows would wait for its own sums.
    let tiles = product.rows.div_ceil(D::ROWS);
    for first_step in (0..product.steps).step_by(SLICE_STEPS) {
        let steps = SLICE_STEPS.min(product.steps - first_step);
        let initial = if first_step == 0 { product.initial } else { product.result.as_initial() };
        let scaling = scaling.filter(|_| first_step + steps == product.steps);
        // What comes after this slice, each tile fetching its share: weights arrive from far away, evenly.
        let next = if first_step + steps < product.steps {
            product.panel.wrapping_add((first_step + steps) * PANEL_STEP_BYTES)
        } else {
            product.next_panel
        };
        for tile in 0..tiles {
            let rows = product.rows * tile / tiles..product.rows * (tile + 1) / tiles;
            let fetch = next.wrapping_add(steps * PANEL_STEP_BYTES * tile / tiles);
            let left = rows.start * product.left_stride + first_step * STEP_BYTES;
            for first_byte in (0..PANEL * GROUP).step_by(2 * D::LANES * GROUP) {
                let panel = first_step * PANEL_STEP_BYTES + first_byte;
                let scaling = scaling.map(|scaling| PanelScaling {
                    row_scales: scaling.row_scales.wrapping_add(rows.start),
                    column_scales: scaling.column_scales.wrapping_add(first_byte),
                    initial: scaling.initial.skip(rows.start).skip_bytes(first_byte),
                    result: scaling.result.skip(rows.start).skip_bytes(first_byte),
                });
                let result = product.result.skip(rows.start).skip_bytes(first_byte);
                let visited = scaling.as_ref().map_or(result, |scaling| scaling.result);
                let tile = Tile {
                    rows: rows.len(),
                    groups: steps * STEP_GROUPS,
                    left: product.left.wrapping_add(left),
                    left_stride: product.left_stride,
                    panel: product.panel.wrapping_add(panel),
                    fetch,
                    fetch_step: (PANEL * GROUP).div_ceil(tiles),
                    initial: initial.skip(rows.start).skip_bytes(first_byte),
                    result,
                    scaling,
                    // The next tile's rows, or the next panel's first ones.
                    visited_next: if tile + 1 < tiles {
                        visited.skip(rows.len())
                    } else {
                        visited.skip_bytes(PANEL * GROUP).skip_back(rows.start)
                    },
                };
                // SAFETY: the tile lies within the operands.
                unsafe { tile.run(dot) };
            }
        }
    }
}

/// At most [`Dot::ROWS`] rows of two vectors.
struct Tile {
    rows: usize,
    groups: usize,
    left: *const u8,
    left_stride: usize,
    panel: *const u8,
    /// What to fetch meanwhile, `fetch_step` bytes per group from here on. Any address.
    fetch: *const u8,
    fetch_step: usize,
    initial: Initial,
    result: ResultRows,
    scaling: Option<PanelScaling>,
    /// Rows of results to fetch meanwhile: they wait for nothing then. Any address.
    visited_next: ResultRows,
}

impl Tile {
    /// # Safety
    /// The operands hold the tile.
    #[inline(always)]
    unsafe fn run<D: Dot>(&self, dot: D) {
        macro_rules! by_rows {
            ($($rows:literal)*) => {
                match self.rows {
                    // SAFETY: the caller's promise.
                    $($rows if $rows <= D::ROWS => unsafe { self.sums::<D, $rows>(dot) },)*
                    rows => unreachable!("a tile of {rows} rows"),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12)
    }

    /// # Safety
    /// As [`Tile::run`], with `rows == ROWS`.
    #[inline(always)]
    unsafe fn sums<D: Dot, const ROWS: usize>(&self, dot: D) {
        let second = D::LANES * GROUP;
        // SAFETY: rows of `initial`, groups of left rows and of the panel, scales, and rows of results lie within the
        // operands, by the caller's promise.
        unsafe {
            let mut sums = [[dot.load(self.initial.start); 2]; ROWS];
            for (r, sums) in sums.iter_mut().enumerate() {
                let row = self.initial.skip(r).start;
                *sums = [dot.load(row), dot.load(row.add(second))];
            }
            // Every third row has a pointer of its own, from which the processor's addressing reaches the two after it.
            let mut left: [*const u8; 4] =
                std::array::from_fn(|i| self.left.wrapping_add(3 * i * self.left_stride));
            let mut fetch = self.fetch;
            for r in 0..ROWS {
                let row = self.visited_next.skip(r).start;
                dot.prefetch_near(row);
                dot.prefetch_near(row.wrapping_add(second));
            }
            for g in 0..self.groups {
                let row = self.panel.add(g * PANEL * GROUP);
                let panel = [dot.load(row), dot.load(row.add(second))];
                dot.prefetch(fetch);
                for (r, sums) in sums.iter_mut().enumerate() {
                    let left = dot.repeat(left[r / 3].add(r % 3 * self.left_stride));
                    sums[0] = dot.dot(sums[0], left, panel[0]);
                    sums[1] = dot.dot(sums[1], left, panel[1]);
                }
                left = left.map(|left| dot.opaque(left.wrapping_add(GROUP)));
                fetch = fetch.wrapping_add(self.fetch_step);
            }
            let Some(scaling) = &self.scaling else {
                for (r, sums) in sums.iter().enumerate() {
                    let row = self.result.skip(r).start;
                    dot.store(sums[0], row);
                    dot.store(sums[1], row.add(second));
                }
                return;
            };
            let columns = [0, second].map(|at| dot.load(scaling.column_scales.add(at)));
            for (r, sums) in sums.iter().enumerate() {
                let scale = *scaling.row_scales.add(r);
                let (from, to) = (scaling.initial.skip(r).start, scaling.result.skip(r).start);
                dot.store(dot.scale(sums[0], scale, columns[0], dot.load(from)), to);
                dot.store(dot.scale(sums[1], scale, columns[1], dot.load(from.add(second))), to.add(second));
            }
        }
    }
}
