//! Threads, scratch memory, locks and interruption: how a computation runs, apart from what it computes.

mod context;
mod cpus;
mod dry_run;
mod fault;
pub mod fork;
mod interrupt;
mod ledger;
mod operands;
mod panics;
pub mod parallel;
mod pool;
mod scratch;
mod shared;

pub use context::{Context, run};
pub use cpus::{default_threads, set_default_threads};
pub use dry_run::dry_run;
#[cfg(any(test, feature = "fault-injection"))]
pub use fault::Fault;
pub(crate) use fault::inject_fault;
#[cfg(feature = "fault-injection")]
pub use fault::{ELSEWHERE, ENTRY};
pub use interrupt::{Interrupt, never};
pub use operands::{ActivationPanels, PanelRowsMut, PanelsMut, TransposedActivations, TransposedColumnsMut};
pub(crate) use panics::lock;
pub use panics::{catch, panic_error};
pub use scratch::{Buffer, ScratchPool, TaskScratch};
pub use shared::{Locked, Shared, lock_all};
