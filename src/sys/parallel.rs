//! Loops whose rounds the caller may run on several threads. This layer has no threads of its own.

/// Work on the part with a number.
pub type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// How a caller runs loops over independent parts, such as the filling of large memory.
#[derive(Clone, Copy)]
pub struct ParallelFor<'a> {
    /// Number of threads.
    pub count: usize,
    /// Calls the function it is given once with each number below the first argument, in any order, at once if it likes.
    pub run: &'a dyn Fn(usize, &Task<'_>),
}

impl ParallelFor<'_> {
    /// The caller's thread alone.
    pub const NONE: ParallelFor<'static> =
        ParallelFor { count: 1, run: &|count, task| (0..count).for_each(task) };
}
