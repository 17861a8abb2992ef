//! What the kernels for panels of bfloat16 and of bytes have in common.
//!
//! Both layouts are groups of 4 bytes: 2 bfloat16 or 4 bytes that follow each other in `k`. A kernel multiplies
//! groups of the left row with groups of the panel and adds the products to sums of 4 bytes, `f32` or `i32`.

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only kernels of x86-64 need all of it"))]

use super::layout::PANEL;

/// Bytes of each left row that a step over `k` takes; rows and panels are padded to whole steps.
pub const STEP_BYTES: usize = 64;
/// Bytes of a panel that a step over `k` takes.
pub const PANEL_STEP_BYTES: usize = STEP_BYTES * PANEL;

/// What the operands' bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// bfloat16 times bfloat16, summed in `f32`.
    Bfloat16,
    /// Unsigned bytes times signed bytes, summed in `i32`.
    Int8,
}

/// Values that sums begin with, in rows of [`PANEL`] numbers of 4 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Initial {
    /// The first row.
    pub start: *const u8,
    /// Bytes from one row to the next; 0 for the same row again and again.
    pub stride: usize,
}

/// Where sums go, in rows of [`PANEL`] numbers of 4 bytes.
#[derive(Clone, Copy, Debug)]
pub struct ResultRows {
    /// The first row.
    pub start: *mut u8,
    /// Bytes from one row to the next.
    pub stride: usize,
}

impl Initial {
    /// The same `row` for all rows.
    pub fn repeat<T>(row: &[T; PANEL]) -> Initial {
        Initial { start: row.as_ptr().cast(), stride: 0 }
    }

    /// Without the first `rows` rows.
    pub fn skip(self, rows: usize) -> Initial {
        Initial { start: self.start.wrapping_add(rows * self.stride), ..self }
    }

    /// Without the first `bytes` bytes of every row.
    pub fn skip_bytes(self, bytes: usize) -> Initial {
        Initial { start: self.start.wrapping_add(bytes), ..self }
    }
}

impl ResultRows {
    /// Sums that go on from where they are.
    pub fn as_initial(self) -> Initial {
        Initial { start: self.start, stride: self.stride }
    }

    /// Without the first `rows` rows.
    pub fn skip(self, rows: usize) -> ResultRows {
        ResultRows { start: self.start.wrapping_add(rows * self.stride), ..self }
    }

    /// With `rows` rows more before the first.
    pub fn skip_back(self, rows: usize) -> ResultRows {
        ResultRows { start: self.start.wrapping_sub(rows * self.stride), ..self }
    }

    /// Without the first `bytes` bytes of every row.
    pub fn skip_bytes(self, bytes: usize) -> ResultRows {
        ResultRows { start: self.start.wrapping_add(bytes), ..self }
    }
}

/// `result = initial + left x panel`.
#[derive(Clone, Copy, Debug)]
pub struct PanelProduct {
    /// What the bytes are.
    pub kind: Kind,
    /// Rows of the left operand and of the result.
    pub rows: usize,
    /// The left operand.
    pub left: *const u8,
    /// Bytes from one row of the left operand to the next.
    pub left_stride: usize,
    /// The panel.
    pub panel: *const u8,
    /// Steps over `k`.
    pub steps: usize,
    /// Values that the sums begin with.
    pub initial: Initial,
    /// Where the sums go.
    pub result: ResultRows,
    /// What the next product will read; kernels may fetch it into a cache. Any address.
    pub next_panel: *const u8,
}

/// How integer sums become results: `result = initial + sum * (row scale * column scale)`.
#[derive(Clone, Copy, Debug)]
pub struct PanelScaling {
    /// One `f32` per row.
    pub row_scales: *const f32,
    /// One `f32` per column of the panel.
    pub column_scales: *const u8,
    /// What is added, `f32`.
    pub initial: Initial,
    /// Where the results go, `f32`.
    pub result: ResultRows,
}

/// Computes [`PanelProduct`]s with some instructions.
pub trait PanelKernel {
    /// Whether there is [`PanelKernel::multiply_scaled`].
    const SCALES: bool = false;

    /// Computes `product`; each sum has an order of terms that depends on `steps` only.
    ///
    /// # Safety
    /// The memory that `product` names must hold: `left` `rows` rows of `64 * steps` bytes, `panel` `2048 * steps`
    /// bytes, `initial` and `result` `rows` rows of 128 bytes. Nobody else uses those of `result`, except that
    /// `initial` may be the same.
    unsafe fn multiply(&mut self, product: &PanelProduct);

    /// Computes `product`, whose result is memory for sums that have to wait, and scales it while it is in registers.
    ///
    /// # Safety
    /// As [`PanelKernel::multiply`]; the memory that `scaling` names must hold as many rows and columns.
    unsafe fn multiply_scaled(&mut self, product: &PanelProduct, scaling: &PanelScaling) {
        let _ = (product, scaling);
        unreachable!("a kernel that scales says how");
    }
}
