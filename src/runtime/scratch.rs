//! Scratch memory: checked out by a call, reused by later calls, given back on request.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};

use half::bf16;

use super::fork::Section;
use super::panics::lock;
use crate::kernels::{
    Dtype, Isa, LhsBuffer, PANEL, Panels, Real, pack_bfloat16, pack_full_precision, packed_len,
    transpose_to_bfloat16, transpose_to_full_precision,
};
use crate::sys::AlignedVec;

/// Scratch memory that outlives calls: what one gave back serves the next. Never larger than what the calls that ran at
/// once used.
#[derive(Debug, Default)]
pub struct ScratchPool<R> {
    tasks: Mutex<Vec<TaskScratches<R>>>,
    buffers: Arc<FreeList<R>>,
    bfloat16: Arc<FreeList<bf16>>,
    /// Apart from the others: a call's buffers and gradients that outlive it do not take each other's memory.
    gradients: Arc<FreeList<R>>,
    /// What goes wrong in computations that use this memory.
    #[cfg(any(test, feature = "fault-injection"))]
    pub fault: super::fault::Fault,
}

/// One per thread of a call.
type TaskScratches<R> = Vec<Mutex<TaskScratch<R>>>;

type FreeList<T> = Mutex<Vec<AlignedVec<T>>>;

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

/// Takes from a list or gives to it; no fork happens meanwhile, which would leave the child a lock for ever closed.
fn exchange<T, U>(list: &Mutex<Vec<T>>, work: impl FnOnce(&mut Vec<T>) -> U) -> U {
    let _section = Section::enter();
    work(&mut lock(list))
}

impl<R: Real> ScratchPool<R> {
    /// An empty pool.
    pub fn new() -> Self {
        ScratchPool::default()
    }

    /// Gives back the memory that no running call uses.
    pub fn release(&self) {
        // Returning memory to the system takes its time: not under the locks.
        drop(exchange(&self.tasks, std::mem::take));
        drop(exchange(&self.buffers, std::mem::take));
        drop(exchange(&self.bfloat16, std::mem::take));
        drop(exchange(&self.gradients, std::mem::take));
    }

    /// A buffer of `len` elements with unspecified contents; goes back to the pool when dropped.
    pub fn buffer(&self, len: usize) -> Buffer<R> {
        Buffer::take(&self.buffers, len)
    }

    /// The same for gradients, which live longer than a call.
    pub fn gradient_buffer(&self, len: usize) -> Buffer<R> {
        Buffer::take(&self.gradients, len)
    }

    pub(super) fn check_out(&self, threads: usize) -> CallScratch<'_, R> {
        let mut tasks = exchange(&self.tasks, Vec::pop).unwrap_or_default();
        tasks.resize_with(tasks.len().max(threads), Mutex::default);
        CallScratch { pool: self, tasks }
    }
}

/// A call's scratch memory, apart from buffers; goes back to the pool when dropped.
pub(super) struct CallScratch<'a, R> {
    pool: &'a ScratchPool<R>,
    tasks: TaskScratches<R>,
}

impl<R> CallScratch<'_, R> {
    pub(super) fn task(&self, worker: usize) -> MutexGuard<'_, TaskScratch<R>> {
        lock(&self.tasks[worker])
    }

    pub(super) fn pool(&self) -> &ScratchPool<R> {
        self.pool
    }
}

impl<R> Drop for CallScratch<'_, R> {
    fn drop(&mut self) {
        let tasks = std::mem::take(&mut self.tasks);
        exchange(&self.pool.tasks, |free| free.push(tasks));
    }
}

/// A buffer on loan; goes back when dropped.
#[derive(Debug)]
pub struct Buffer<T: Copy + Default> {
    home: Arc<FreeList<T>>,
    data: AlignedVec<T>,
    len: usize,
}

impl<T: Copy + Default> Buffer<T> {
    /// The smallest free buffer that is large enough, else the largest, grown.
    fn take(home: &Arc<FreeList<T>>, len: usize) -> Self {
        let chosen = exchange(home, |free| {
            let fitting = (0..free.len()).filter(|&i| free[i].len() >= len).min_by_key(|&i| free[i].len());
            let chosen = fitting.or_else(|| (0..free.len()).max_by_key(|&i| free[i].len()));
            chosen.map(|i| free.swap_remove(i))
        });
        let mut data = chosen.unwrap_or_default();
        data.ensure_len(len);
        Buffer { home: home.clone(), data, len }
    }
}

impl<T: Copy + Default> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.data[..self.len]
    }
}

impl<T: Copy + Default> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.len;
        &mut self.data[..len]
    }
}

impl<T: Copy + Default> Drop for Buffer<T> {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        exchange(&self.home, |free| free.push(data));
    }
}

/// Right operands that are computed on the way (keys, values, tokens to be mixed): `count` matrices of `k x n`.
#[derive(Debug)]
pub struct ActivationPanels<R: Real> {
    k: usize,
    n: usize,
    len: usize,
    data: PanelStorage<R>,
}

#[derive(Debug)]
enum PanelStorage<R: Real> {
    FullPrecision(Buffer<R>),
    Bfloat16(Buffer<bf16>),
}

/// Some panels of one of the matrices, to be filled.
#[derive(Debug)]
pub enum PanelsMut<'a, R> {
    /// In the activations' type.
    FullPrecision(&'a mut [R]),
    /// In half of its bits.
    Bfloat16(&'a mut [bf16]),
}

impl<R: Real> ActivationPanels<R> {
    /// `dtype` is that of the weights around: products of activations are in bfloat16 where those are in bfloat16 or
    /// in 8 bits, else in the activations' type.
    pub(super) fn new(scratch: &ScratchPool<R>, dtype: Dtype, count: usize, k: usize, n: usize) -> Self {
        let dtype = dtype.of_activations();
        let len = packed_len(k, n, dtype);
        let data = match dtype {
            Dtype::Bfloat16 => PanelStorage::Bfloat16(Buffer::take(&scratch.bfloat16, count * len)),
            _ => PanelStorage::FullPrecision(scratch.buffer(count * len)),
        };
        ActivationPanels { k, n, len, data }
    }

    /// Matrix number `index`.
    pub fn view(&self, index: usize) -> Panels<'_, R> {
        let at = index * self.len;
        match &self.data {
            PanelStorage::FullPrecision(v) => {
                Panels::from_full_precision(&v[at..at + self.len], self.k, self.n)
            }
            PanelStorage::Bfloat16(v) => Panels::from_bfloat16(&v[at..at + self.len], self.k, self.n),
        }
    }

    /// All panels of matrix number `index`, to be filled.
    pub fn whole_mut(&mut self, index: usize) -> PanelsMut<'_, R> {
        let own = index * self.len..(index + 1) * self.len;
        match &mut self.data {
            PanelStorage::FullPrecision(v) => PanelsMut::FullPrecision(&mut v[own]),
            PanelStorage::Bfloat16(v) => PanelsMut::Bfloat16(&mut v[own]),
        }
    }

    /// All matrices, each split into runs of `panels` panels, to be filled by independent tasks.
    pub fn chunks_mut(&mut self, panels: usize) -> Vec<PanelsMut<'_, R>> {
        let all = self.n.div_ceil(PANEL);
        let chunk = self.len / all * panels.min(all);
        match &mut self.data {
            PanelStorage::FullPrecision(v) => v
                .chunks_exact_mut(self.len)
                .flat_map(|m| m.chunks_mut(chunk))
                .map(PanelsMut::FullPrecision)
                .collect(),
            PanelStorage::Bfloat16(v) => v
                .chunks_exact_mut(self.len)
                .flat_map(|m| m.chunks_mut(chunk))
                .map(PanelsMut::Bfloat16)
                .collect(),
        }
    }
}

impl<R: Real> PanelsMut<'_, R> {
    /// Fills the panels from rows (or columns, if `transposed`) of activations; see [`pack_full_precision`].
    pub fn pack(&mut self, isa: Isa, source: &[R], stride: usize, transposed: bool, k: usize, n: usize) {
        match self {
            PanelsMut::FullPrecision(out) => {
                pack_full_precision(isa, source, stride, transposed, k, 0..n, out)
            }
            PanelsMut::Bfloat16(out) => pack_bfloat16(isa, source, stride, transposed, k, 0..n, out),
        }
    }

    /// Fills panel number `panel`, which these must be, of the transpose of `matrix`.
    pub fn transpose(&mut self, isa: Isa, matrix: &Panels<'_, R>, panel: usize) {
        match self {
            PanelsMut::FullPrecision(out) => transpose_to_full_precision(isa, matrix, panel, out),
            PanelsMut::Bfloat16(out) => transpose_to_bfloat16(matrix, panel, out),
        }
    }
}
