//! What the operating system gives: aligned memory, mapped files, functions called at a fork, the time that sections take.
//! The lowest layer, which knows nothing of the others; beside `kernels` the only one with `unsafe` code.

#![allow(unsafe_code)]

mod aligned;
mod at_fork;
mod float_bytes;
mod huge_pages;
mod lease;
mod lend;
mod map_file;
mod maybe_mapped;
mod out_of_memory;
mod parallel;
mod sections;
mod timers;
mod vectors;

pub use aligned::{AlignedVec, alignment_bytes};
pub use at_fork::call_at_fork;
pub use float_bytes::{bytes_of_f32s, f32s_of_bytes};
pub use lease::{LeasableMemory, Lease, LeasedSlice};
pub use lend::{Loan, lend};
pub use map_file::MappedFile;
pub use maybe_mapped::{FilePart, MaybeMapped};
pub use out_of_memory::OutOfMemory;
pub use parallel::{ParallelFor, Task};
#[cfg(test)]
pub(crate) use timers::so_far;
pub use timers::{
    Guard, Place, Region, SectionTime, Work, at, at_second_product, take_section_times, timed, timed_product,
};
pub use vectors::{
    alloc_collect, alloc_collect_up_to, alloc_extend, alloc_room, alloc_zeroed, alloc_zeroed_huge,
};
