//! Scratch memory: checked out by a call, reused by later calls, given back on request.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

use half::bf16;

use super::lock;
use crate::kernels::{
    AlignedVec, Isa, LhsBuffer, PANEL, Panels, Real, WeightDtype, pack_bfloat16, pack_native, packed_len,
};

/// Scratch memory of calls that are over, for calls to come. Never larger than what the calls that ran at once used.
#[derive(Debug, Default)]
pub struct ScratchPool<R> {
    free: Mutex<Vec<Box<CallScratch<R>>>>,
}

/// Scratch memory of one call.
#[derive(Debug, Default)]
pub(super) struct CallScratch<R> {
    tasks: Vec<Mutex<TaskScratch<R>>>,
    buffers: Mutex<Vec<AlignedVec<R>>>,
    bfloat16: Mutex<Vec<AlignedVec<bf16>>>,
}

/// Scratch memory of one task; contents are unspecified.
#[derive(Debug, Default)]
pub struct TaskScratch<R> {
    /// Numbered buffers; [`TaskScratch::split`] hands out several at once.
    buffers: [AlignedVec<R>; TASK_BUFFERS],
    lhs: [LhsBuffer; 2],
}

/// Buffers that a task may hold at once.
const TASK_BUFFERS: usize = 6;

impl<R: Real> TaskScratch<R> {
    /// Buffers of the lengths asked for, and two for converted left operands.
    pub fn split<const COUNT: usize>(
        &mut self,
        lengths: [usize; COUNT],
    ) -> ([&mut [R]; COUNT], &mut [LhsBuffer; 2]) {
        const { assert!(COUNT <= TASK_BUFFERS) };
        let mut rest = self.buffers.iter_mut();
        let buffers = lengths.map(|len| match rest.next() {
            Some(buffer) => {
                buffer.ensure_len(len);
                &mut buffer[..len]
            }
            None => &mut [],
        });
        (buffers, &mut self.lhs)
    }
}

impl<R: Real> ScratchPool<R> {
    /// An empty pool.
    pub fn new() -> Self {
        ScratchPool { free: Mutex::new(Vec::new()) }
    }

    /// Gives back the memory that no running call uses.
    pub fn release(&self) {
        lock(&self.free).clear();
    }

    pub(super) fn check_out(&self, threads: usize) -> CheckedOut<'_, R> {
        // A lock held in another thread while this process was forked stays locked: never wait for it.
        let mut scratch = self.free.try_lock().ok().and_then(|mut free| free.pop()).unwrap_or_default();
        while scratch.tasks.len() < threads {
            scratch.tasks.push(Mutex::default());
        }
        CheckedOut { pool: self, scratch: Some(scratch) }
    }
}

/// A call's scratch memory; goes back to the pool when dropped.
pub(super) struct CheckedOut<'a, R: Real> {
    pool: &'a ScratchPool<R>,
    scratch: Option<Box<CallScratch<R>>>,
}

impl<R: Real> Deref for CheckedOut<'_, R> {
    type Target = CallScratch<R>;
    fn deref(&self) -> &CallScratch<R> {
        self.scratch.as_ref().expect("present until dropped")
    }
}

impl<R: Real> Drop for CheckedOut<'_, R> {
    fn drop(&mut self) {
        if let (Some(scratch), Ok(mut free)) = (self.scratch.take(), self.pool.free.try_lock()) {
            free.push(scratch);
        }
    }
}

impl<R: Real> CallScratch<R> {
    pub(super) fn task(&self, worker: usize) -> MutexGuard<'_, TaskScratch<R>> {
        lock(&self.tasks[worker])
    }

    pub(super) fn buffer(&self, len: usize) -> Buffer<'_, R> {
        Buffer::take(&self.buffers, len)
    }
}

/// A buffer on loan; goes back when dropped.
#[derive(Debug)]
pub struct Buffer<'a, T: Copy + Default> {
    home: &'a Mutex<Vec<AlignedVec<T>>>,
    data: AlignedVec<T>,
    len: usize,
}

impl<'a, T: Copy + Default> Buffer<'a, T> {
    /// The smallest free buffer that is large enough, else the largest, grown.
    fn take(home: &'a Mutex<Vec<AlignedVec<T>>>, len: usize) -> Self {
        let mut free = lock(home);
        let fitting = (0..free.len()).filter(|&i| free[i].len() >= len).min_by_key(|&i| free[i].len());
        let chosen = fitting.or_else(|| (0..free.len()).max_by_key(|&i| free[i].len()));
        let mut data = chosen.map(|i| free.swap_remove(i)).unwrap_or_default();
        drop(free);
        data.ensure_len(len);
        Buffer { home, data, len }
    }
}

impl<T: Copy + Default> Deref for Buffer<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.data[..self.len]
    }
}

impl<T: Copy + Default> DerefMut for Buffer<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.len;
        &mut self.data[..len]
    }
}

impl<T: Copy + Default> Drop for Buffer<'_, T> {
    fn drop(&mut self) {
        lock(self.home).push(std::mem::take(&mut self.data));
    }
}

/// Right operands that are computed on the way (keys, values, tokens to be mixed): `count` matrices of `k x n`.
#[derive(Debug)]
pub struct ActivationPanels<'a, R: Real> {
    k: usize,
    n: usize,
    len: usize,
    data: PanelStorage<'a, R>,
}

#[derive(Debug)]
enum PanelStorage<'a, R: Real> {
    Native(Buffer<'a, R>),
    Bfloat16(Buffer<'a, bf16>),
}

/// Some panels of one of the matrices, to be filled.
#[derive(Debug)]
pub enum PanelsMut<'a, R> {
    /// In the activations' type.
    Native(&'a mut [R]),
    /// Rounded.
    Bfloat16(&'a mut [bf16]),
}

impl<'a, R: Real> ActivationPanels<'a, R> {
    /// `dtype` is that of the weights around: products of activations are in bfloat16 where those are in bfloat16 or
    /// in 8 bits, else in the activations' type.
    pub(super) fn new(
        scratch: &'a CallScratch<R>,
        dtype: WeightDtype,
        count: usize,
        k: usize,
        n: usize,
    ) -> Self {
        let dtype = product_dtype(dtype);
        let len = packed_len(k, n, dtype);
        let data = match dtype {
            WeightDtype::Bfloat16 => PanelStorage::Bfloat16(Buffer::take(&scratch.bfloat16, count * len)),
            _ => PanelStorage::Native(Buffer::take(&scratch.buffers, count * len)),
        };
        ActivationPanels { k, n, len, data }
    }

    /// Matrix number `index`.
    pub fn view(&self, index: usize) -> Panels<'_, R> {
        let at = index * self.len;
        match &self.data {
            PanelStorage::Native(v) => Panels::from_native(&v[at..at + self.len], self.k, self.n),
            PanelStorage::Bfloat16(v) => Panels::from_bfloat16(&v[at..at + self.len], self.k, self.n),
        }
    }

    /// All matrices, each cut into runs of `panels` panels, to be filled by independent tasks.
    pub fn chunks_mut(&mut self, panels: usize) -> Vec<PanelsMut<'_, R>> {
        let all = self.n.div_ceil(PANEL);
        let chunk = self.len / all * panels.min(all);
        match &mut self.data {
            PanelStorage::Native(v) => v
                .chunks_exact_mut(self.len)
                .flat_map(|m| m.chunks_mut(chunk))
                .map(PanelsMut::Native)
                .collect(),
            PanelStorage::Bfloat16(v) => v
                .chunks_exact_mut(self.len)
                .flat_map(|m| m.chunks_mut(chunk))
                .map(PanelsMut::Bfloat16)
                .collect(),
        }
    }
}

/// The type in which two activations are multiplied when the weights around are of `dtype`.
pub fn product_dtype(dtype: WeightDtype) -> WeightDtype {
    match dtype {
        WeightDtype::Native | WeightDtype::Float16 => WeightDtype::Native,
        WeightDtype::Bfloat16 | WeightDtype::Int8 => WeightDtype::Bfloat16,
    }
}

impl<R: Real> PanelsMut<'_, R> {
    /// Panel number `index` of those, of right operands with `k` rows.
    pub fn panel(&mut self, index: usize, k: usize) -> PanelsMut<'_, R> {
        let at = |len: usize| index * len..(index + 1) * len;
        match self {
            PanelsMut::Native(v) => PanelsMut::Native(&mut v[at(packed_len(k, 1, WeightDtype::Native))]),
            PanelsMut::Bfloat16(v) => {
                PanelsMut::Bfloat16(&mut v[at(packed_len(k, 1, WeightDtype::Bfloat16))])
            }
        }
    }

    /// Fills the panels from rows (or columns, if `transposed`) of activations; see [`pack_native`].
    pub fn pack(&mut self, isa: Isa, source: &[R], stride: usize, transposed: bool, k: usize, n: usize) {
        match self {
            PanelsMut::Native(out) => pack_native(isa, source, stride, transposed, k, 0..n, out),
            PanelsMut::Bfloat16(out) => pack_bfloat16(isa, source, stride, transposed, k, 0..n, out),
        }
    }
}
