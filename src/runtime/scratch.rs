//! Scratch memory: checked out by a call, reused by later calls, given back on request.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};

use half::bf16;

use super::fork::Section;
use super::ledger::{Element, Ledger};
use super::panics::lock;
use crate::kernels::{LhsBuffer, Real};
use crate::sys::{AlignedVec, alignment_bytes};

/// Scratch memory that outlives calls: what one gave back serves the next. Never larger than what the calls that ran at
/// once used.
#[derive(Debug, Default)]
pub struct ScratchPool<R> {
    tasks: Mutex<Vec<TaskScratches<R>>>,
    buffers: Arc<FreeList<R>>,
    bfloat16: Arc<FreeList<bf16>>,
    /// Apart from the others: a call's buffers and gradients that outlive it do not take each other's memory.
    gradients: Arc<FreeList<R>>,
    numbers: Arc<FreeList<u32>>,
    /// Of a dry run: counts the memory, which is not there.
    ledger: Option<Ledger>,
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

/// How many times larger than asked for a buffer may be: a large one is soon needed for what is large.
const MOST_WASTE: usize = 4;
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

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        let buffers = self.buffers.iter().map(|buffer| size_of_val(&buffer[..]));
        let buffers = buffers.map(|bytes| bytes + alignment_bytes(bytes));
        buffers.chain(self.lhs.iter().map(LhsBuffer::bytes)).sum()
    }
}

/// Whether a buffer of `size` elements serves for `len` of them.
fn fits(size: usize, len: usize) -> bool {
    len <= size && size / MOST_WASTE <= len
}

/// Takes from a list or gives to it; no fork happens meanwhile, which would leave the child a lock for ever closed.
fn exchange<T, U>(list: &Mutex<Vec<T>>, work: impl FnOnce(&mut Vec<T>) -> U) -> U {
    let _section = Section::enter();
    work(&mut lock(list))
}

/// Puts something back on a free list; gives it back to the system if there is no memory for a longer list.
fn keep<T>(free: &mut Vec<T>, value: T) {
    if free.try_reserve(1).is_ok() {
        free.push(value);
    }
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
        drop(exchange(&self.numbers, std::mem::take));
    }

    /// A buffer of `len` elements with unspecified contents; goes back to the pool when dropped.
    pub fn buffer(&self, len: usize) -> Buffer<R> {
        Buffer::take(&self.buffers, self.ledger(), len)
    }

    /// The same for rounded values.
    pub(super) fn bfloat16_buffer(&self, len: usize) -> Buffer<bf16> {
        Buffer::take(&self.bfloat16, self.ledger(), len)
    }

    /// The same for indices.
    pub(super) fn numbers(&self, len: usize) -> Buffer<u32> {
        Buffer::take(&self.numbers, self.ledger(), len)
    }

    pub(super) fn counting() -> Self {
        ScratchPool { ledger: Some(Ledger::default()), ..ScratchPool::default() }
    }

    pub(super) fn ledger(&self) -> Option<&Ledger> {
        self.ledger.as_ref()
    }

    /// The same for gradients, which live longer than a call.
    pub fn gradient_buffer(&self, len: usize) -> Buffer<R> {
        Buffer::take(&self.gradients, self.ledger(), len)
    }

    /// Gives back the free memory that [`ScratchPool::gradient_buffer`] would use for `len` elements.
    pub fn release_gradients(&self, len: usize) {
        drop(exchange(&self.gradients, |free| -> Vec<_> {
            free.extract_if(.., |data| fits(data.len(), len)).collect()
        }));
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
        exchange(&self.pool.tasks, |free| keep(free, tasks));
    }
}

/// A buffer on loan; goes back when dropped.
#[derive(Debug)]
pub struct Buffer<T: Element> {
    home: Arc<FreeList<T>>,
    data: AlignedVec<T>,
    len: usize,
}

impl<T: Element> Buffer<T> {
    /// A buffer that no pool knows, of zeros without memory behind them.
    pub(super) fn untouched(len: usize) -> Self {
        Buffer { home: Arc::default(), data: AlignedVec::untouched(len), len }
    }

    /// The smallest free buffer that is large enough, unless it is much too large: else the largest of those that are too
    /// small, grown.
    pub(super) fn take(home: &Arc<FreeList<T>>, ledger: Option<&Ledger>, len: usize) -> Self {
        let chosen = exchange(home, |free| {
            let sizes = || free.iter().map(|data| data.len()).enumerate();
            let fitting = sizes().filter(|&(_, size)| fits(size, len));
            let small = sizes().filter(|&(_, size)| size < len);
            let chosen = fitting.min_by_key(|&(_, size)| size).or(small.max_by_key(|&(_, size)| size));
            chosen.map(|(i, _)| free.swap_remove(i))
        });
        let mut data = chosen.unwrap_or_default();
        match ledger {
            None => data.ensure_len(len),
            Some(ledger) => ledger.ensure_len(&mut data, len),
        }
        Buffer { home: home.clone(), data, len }
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.data[..self.len]
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.len;
        &mut self.data[..len]
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        exchange(&self.home, |free| keep(free, data));
    }
}
