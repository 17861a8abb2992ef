//! Products on Intel's tile registers (AMX): bfloat16 with `f32` sums, bytes with 32-bit integer sums.
//!
//! Eight tile registers of 16 rows x 64 bytes hold a 32 x 32 block of the result (`tmm0`-`tmm3`), two tiles of the
//! left operand (`tmm4`, `tmm5`) and two of a panel (`tmm6`, `tmm7`). One step over `k` multiplies 64 bytes of each
//! left row (32 bfloat16 or 64 bytes) with 16 x 64 bytes of each panel half: four loads for four products, 16 cycles
//! each. What limits the speed is loading the tiles, see [`Tiles::multiply`].
//!
//! Stable Rust has no intrinsics for these registers, and the compiler never touches them: they keep their values
//! from one `asm!` to the next.
//!
//! Source: Intel SDM vol. 1 chapter 18, vol. 2 `LDTILECFG`, `TDPBF16PS`, `TDPBUSD`, `TILELOADDT1`.

use std::arch::asm;
use std::marker::PhantomData;

use super::layout::PANEL;
use super::panel_product::{
    Initial, Kind, PANEL_STEP_BYTES, PanelKernel, PanelProduct, ResultRows, STEP_BYTES,
};
use crate::kernels::isa::{Isa, Level};

/// Rows of a tile register.
const TILE_ROWS: usize = 16;
/// Rows of a block.
const BLOCK_ROWS: usize = 2 * TILE_ROWS;
/// Steps over `k` between visits of the result in memory: 32 KiB of a panel, which stay in the L1 cache while the
/// rows pass by.
const SLICE_STEPS: usize = 16;

/// Memory form of the tile configuration, palette 1.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The tile registers of this thread; given back when dropped.
pub struct Tiles {
    /// Rows of a block that the registers are configured for.
    block_rows: usize,
    /// Another thread has its own.
    of_this_thread: PhantomData<*const ()>,
}

impl Tiles {
    /// The registers, if `isa` proves that the CPU has them and that the process may use them.
    pub fn new(isa: Isa) -> Option<Tiles> {
        (isa.level() == Level::Amx).then(|| {
            let mut tiles = Tiles { block_rows: 0, of_this_thread: PhantomData };
            tiles.configure(BLOCK_ROWS);
            tiles
        })
    }

    /// Prepares for blocks of `rows` rows. Takes about 50 ns when that changes.
    fn configure(&mut self, rows: usize) {
        if self.block_rows == rows {
            return;
        }
        self.block_rows = rows;
        let (upper, lower) = (rows.min(TILE_ROWS), rows.saturating_sub(TILE_ROWS).max(1));
        let mut config =
            TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        config.row_bytes[..8].fill(STEP_BYTES as u16);
        let rows = [upper, upper, lower, lower, upper, lower, TILE_ROWS, TILE_ROWS];
        config.rows.iter_mut().zip(rows).for_each(|(to, rows)| *to = rows as u8);
        // SAFETY: AMX is usable (`new`); the instruction reads the 64 bytes of a valid configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
    }
}

impl PanelKernel for Tiles {
    /// Computes the product, the rows in blocks of 32.
    ///
    /// A slice of the panel stays in L1 while the rows stream through: their loads carry the hint not to keep them
    /// (`tileloaddt1`). Without it they push the panel out and every load comes from L2: 2.0 instead of 2.4 TFLOP/s
    /// of 3.3. With a single block of rows it is the panel that streams. Sums lose nothing by returning to memory
    /// between slices, which holds numbers of the accumulators' type.
    unsafe fn multiply(&mut self, product: &PanelProduct) {
        let blocks = product.rows.div_ceil(BLOCK_ROWS);
        for first_step in (0..product.steps).step_by(SLICE_STEPS) {
            let steps = SLICE_STEPS.min(product.steps - first_step);
            let initial = if first_step == 0 { product.initial } else { product.result.as_initial() };
            for b in 0..blocks {
                let first_row = b * BLOCK_ROWS;
                let rows = BLOCK_ROWS.min(product.rows - first_row);
                let left = first_row * product.left_stride + first_step * STEP_BYTES;
                let fetch = first_step * PANEL_STEP_BYTES + b % FETCHING_BLOCKS * steps * FETCH_SOME;
                let block = Block {
                    left: product.left.wrapping_add(left),
                    left_stride: product.left_stride,
                    panel: product.panel.wrapping_add(first_step * PANEL_STEP_BYTES),
                    steps,
                    initial: initial.skip(first_row),
                    result: product.result.skip(first_row),
                    fetch: product.next_panel.wrapping_add(fetch),
                };
                self.configure(rows);
                // SAFETY: the block lies within the operands, and the registers are configured for its rows.
                unsafe {
                    match (product.kind, rows > TILE_ROWS, blocks > 1) {
                        (Kind::Bfloat16, false, _) => block.bfloat16_half(),
                        (Kind::Bfloat16, true, false) => block.bfloat16_keep_left(),
                        (Kind::Bfloat16, true, true) => block.bfloat16_keep_panel(),
                        (Kind::Int8, false, _) => block.int8_half(),
                        (Kind::Int8, true, false) => block.int8_keep_left(),
                        (Kind::Int8, true, true) => block.int8_keep_panel(),
                    }
                }
            }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: AMX is usable (`new`). Released registers make context switches cheap.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Bytes of the next panel that a block of several fetches at each step: the first [`FETCHING_BLOCKS`] fetch it all.
/// A panel that streams is fetched whole, for weights that come from far away 15% faster than without.
const FETCH_SOME: usize = PANEL_STEP_BYTES / FETCHING_BLOCKS;
const FETCHING_BLOCKS: usize = 4;

/// One block: at most 32 rows, one slice over `k`.
struct Block {
    left: *const u8,
    left_stride: usize,
    panel: *const u8,
    steps: usize,
    initial: Initial,
    result: ResultRows,
    fetch: *const u8,
}

/// Fetches [`FETCH_SOME`] bytes into the L2 cache.
macro_rules! fetch_some {
    () => {
        fetch_some!(0)
    };
    ($at:literal) => {
        concat!(
            fetch_some!($at, 0),
            fetch_some!($at, 64),
            fetch_some!($at, 128),
            fetch_some!($at, 192),
            fetch_some!($at, 256),
            fetch_some!($at, 320),
            fetch_some!($at, 384),
            fetch_some!($at, 448),
        )
    };
    ($at:literal, $line:literal) => {
        concat!("prefetcht1 [{fetch} + ", $at, " + ", $line, "]\n")
    };
}

/// Fetches [`PANEL_STEP_BYTES`] bytes into the L2 cache.
macro_rules! fetch_all {
    () => {
        concat!(fetch_some!(0), fetch_some!(512), fetch_some!(1024), fetch_some!(1536))
    };
}

/// Methods of [`Block`] that compute blocks of 17 to 32 rows with product instruction `$product`; `$load_left` and
/// `$load_panel` load the operands, `$fetch` fetches `$fetch_step` bytes of the next panel at each step.
macro_rules! full_block {
    ($name:ident, $product:literal, $load_left:literal, $load_panel:literal, $fetch:expr, $fetch_step:expr) => {
        /// # Safety
        /// The registers are configured for the block's rows, 17 to 32, and its memory is as in [`PanelKernel::multiply`].
        unsafe fn $name(&self) {
            let (initial, result) = (self.initial.skip(TILE_ROWS), self.result.skip(TILE_ROWS));
            // SAFETY: reads rows of 128 bytes of `initial`.
            unsafe {
                asm!(
                    "tileloadd tmm0, [{upper} + {stride}]",
                    "tileloadd tmm1, [{upper} + {stride} + 64]",
                    "tileloadd tmm2, [{lower} + {stride}]",
                    "tileloadd tmm3, [{lower} + {stride} + 64]",
                    upper = in(reg) self.initial.start,
                    lower = in(reg) initial.start,
                    stride = in(reg) self.initial.stride,
                    options(nostack, readonly),
                );
            }
            // SAFETY: reads `steps` times 64 bytes of each left row and 2048 bytes of the panel; a prefetch may name
            // any address.
            unsafe {
                asm!(
                    "2:",
                    concat!($load_left, " tmm4, [{upper} + {left_stride}]"),
                    concat!($load_panel, " tmm6, [{panel} + {panel_stride}]"),
                    concat!($product, " tmm0, tmm4, tmm6"),
                    concat!($load_panel, " tmm7, [{panel} + {panel_stride} + 64]"),
                    concat!($product, " tmm1, tmm4, tmm7"),
                    concat!($load_left, " tmm5, [{lower} + {left_stride}]"),
                    concat!($product, " tmm2, tmm5, tmm6"),
                    $fetch,
                    concat!($product, " tmm3, tmm5, tmm7"),
                    "add {upper}, 64",
                    "add {lower}, 64",
                    "add {panel}, {panel_step}",
                    "add {fetch}, {fetch_step}",
                    "dec {steps}",
                    "jnz 2b",
                    upper = inout(reg) self.left => _,
                    lower = inout(reg) self.left.wrapping_add(TILE_ROWS * self.left_stride) => _,
                    left_stride = in(reg) self.left_stride,
                    panel = inout(reg) self.panel => _,
                    panel_stride = in(reg) 4 * PANEL,
                    panel_step = const PANEL_STEP_BYTES,
                    fetch = inout(reg) self.fetch => _,
                    fetch_step = const $fetch_step,
                    steps = inout(reg) self.steps => _,
                    options(nostack, readonly),
                );
            }
            // SAFETY: writes rows of 128 bytes of `result`.
            unsafe {
                asm!(
                    "tilestored [{upper} + {stride}], tmm0",
                    "tilestored [{upper} + {stride} + 64], tmm1",
                    "tilestored [{lower} + {stride}], tmm2",
                    "tilestored [{lower} + {stride} + 64], tmm3",
                    upper = in(reg) self.result.start,
                    lower = in(reg) result.start,
                    stride = in(reg) self.result.stride,
                    options(nostack),
                );
            }
        }
    };
}

/// As `full_block`, for 1 to 16 rows: half of the registers.
macro_rules! half_block {
    ($name:ident, $product:literal) => {
        /// # Safety
        /// The registers are configured for the block's rows, 1 to 16, and its memory is as in [`PanelKernel::multiply`].
        unsafe fn $name(&self) {
            // SAFETY: reads rows of 128 bytes of `initial`, `steps` times 64 bytes of each left row and 2048 bytes
            // of the panel; writes rows of 128 bytes of `result`.
            unsafe {
                asm!(
                    "tileloadd tmm0, [{initial} + {initial_stride}]",
                    "tileloadd tmm1, [{initial} + {initial_stride} + 64]",
                    "2:",
                    "tileloadd tmm4, [{left} + {left_stride}]",
                    "tileloadd tmm6, [{panel} + {panel_stride}]",
                    concat!($product, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm7, [{panel} + {panel_stride} + 64]",
                    concat!($product, " tmm1, tmm4, tmm7"),
                    "add {left}, 64",
                    "add {panel}, {panel_step}",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{result} + {result_stride}], tmm0",
                    "tilestored [{result} + {result_stride} + 64], tmm1",
                    initial = in(reg) self.initial.start,
                    initial_stride = in(reg) self.initial.stride,
                    left = inout(reg) self.left => _,
                    left_stride = in(reg) self.left_stride,
                    panel = inout(reg) self.panel => _,
                    panel_stride = in(reg) 4 * PANEL,
                    panel_step = const PANEL_STEP_BYTES,
                    steps = inout(reg) self.steps => _,
                    result = in(reg) self.result.start,
                    result_stride = in(reg) self.result.stride,
                    options(nostack),
                );
            }
        }
    };
}

impl Block {
    full_block!(bfloat16_keep_panel, "tdpbf16ps", "tileloaddt1", "tileloadd", fetch_some!(), FETCH_SOME);
    full_block!(bfloat16_keep_left, "tdpbf16ps", "tileloadd", "tileloaddt1", fetch_all!(), PANEL_STEP_BYTES);
    half_block!(bfloat16_half, "tdpbf16ps");
    full_block!(int8_keep_panel, "tdpbusd", "tileloaddt1", "tileloadd", fetch_some!(), FETCH_SOME);
    full_block!(int8_keep_left, "tdpbusd", "tileloadd", "tileloaddt1", fetch_all!(), PANEL_STEP_BYTES);
    half_block!(int8_half, "tdpbusd");
}
