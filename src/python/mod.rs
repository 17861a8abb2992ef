//! The Python module `sparse_mixer._native`: the only folder that names `pyo3` or `numpy`.
//!
//! Thin by construction: each function is guarded against panics and enters the core once ([`enter`]), with converted arrays
//! ([`convert`], [`inputs`]).
//! Signatures, defaults and documentation for people are in `python/sparse_mixer/`.

mod activation;
mod arguments;
mod atomic_file;
mod block;
mod checkpoint;
mod convert;
mod core_array;
mod embed;
mod encoder;
mod enter;
mod exchange;
mod gradient_memory;
mod gradients;
mod head;
mod inputs;
mod memory;
mod optim;
mod outputs;
mod part;
mod save;
mod snapshot;
mod threads;
mod vjp;
mod weights;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _native {
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    use super::enter::{SCRATCH, guard, to_py_err};
    use super::threads::{ThreadCount, thread_count};
    use crate::kernels::Isa;
    use crate::runtime::{self, fork};
    use crate::sys::{SectionTime, take_section_times as section_times};

    #[pymodule_export]
    use super::arguments::arguments;
    #[pymodule_export]
    use super::atomic_file::AtomicFile;
    #[pymodule_export]
    use super::block::{distance_buckets, run_block};
    #[pymodule_export]
    use super::checkpoint::Checkpoint;
    #[pymodule_export]
    use super::checkpoint::LoadPlan;
    #[pymodule_export]
    use super::checkpoint::foreign_names;
    #[pymodule_export]
    use super::checkpoint::plan_load;
    #[pymodule_export]
    use super::checkpoint::weight_specs;
    #[pymodule_export]
    use super::core_array::CoreArray;
    #[pymodule_export]
    use super::embed::embed;
    #[pymodule_export]
    use super::encoder::Encoder;
    #[pymodule_export]
    use super::enter::CheckpointError;
    #[pymodule_export]
    use super::enter::InternalError;
    #[pymodule_export]
    use super::exchange::{GradientLease, GradientSlice, pack_bfloat16, tree_sum, unpack_bfloat16};
    #[pymodule_export]
    use super::gradients::Gradients;
    #[pymodule_export]
    use super::head::{Head, cross_entropy};
    #[pymodule_export]
    use super::memory::Memory;
    #[pymodule_export]
    use super::optim::{Optimizer, learning_rate};
    #[pymodule_export]
    use super::save::save;
    #[pymodule_export]
    use super::snapshot::TrainingSnapshot;
    #[pymodule_export]
    use super::vjp::{Tape, record};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        // Before there are threads: a fork must not find either half made.
        std::sync::LazyLock::force(&SCRATCH);
        fork::register();
        // NumPy's functions are looked up now, in Python code: a signal in there would be a panic of the first call.
        numpy::PyArray1::<f32>::zeros(module.py(), 0, false);
        let hooks = PyDict::new(module.py());
        hooks.set_item("before", wrap_pyfunction!(before_fork, module)?)?;
        hooks.set_item("after_in_parent", wrap_pyfunction!(after_fork, module)?)?;
        // Systems without fork have no such function.
        if let Ok(register) = module.py().import("os")?.getattr("register_at_fork") {
            register.call((), Some(&hooks))?;
        }
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    #[pyfunction]
    fn before_fork(py: Python<'_>) {
        py.detach(fork::announce_fork);
    }

    #[pyfunction]
    fn after_fork() {
        fork::finish_fork();
    }

    #[pyfunction]
    fn cpu_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        guard(|| {
            let info = PyDict::new(py);
            info.set_item("isa", Isa::detect().map_err(to_py_err)?.name())?;
            info.set_item("available", Isa::available().iter().map(|isa| isa.name()).collect::<Vec<_>>())?;
            info.set_item("num_threads", get_num_threads()?)?;
            Ok(info)
        })
    }

    #[pyfunction]
    fn set_num_threads(num_threads: Option<ThreadCount>) {
        runtime::set_default_threads(Some(thread_count(num_threads)).filter(|&threads| threads > 0));
    }

    #[pyfunction]
    fn get_num_threads() -> PyResult<usize> {
        runtime::default_threads().map_err(to_py_err)
    }

    /// Makes the task number `task` of those to come panic, or with another `place` the piece of other work
    /// ("elsewhere") or the call ("entry"); None for none.
    #[cfg(feature = "fault-injection")]
    #[pyfunction]
    #[pyo3(signature = (task, place="computation"))]
    fn inject_panic(task: Option<u64>, place: &str) -> PyResult<()> {
        let fault = match place {
            "computation" => &SCRATCH.fault,
            "elsewhere" => &runtime::ELSEWHERE,
            "entry" => &runtime::ENTRY,
            _ => return Err(to_py_err(crate::error::Error::value("place", format!("got {place:?}")))),
        };
        fault.arm(task);
        Ok(())
    }

    /// Place, work, seconds, calls, operations.
    type SectionTuple = (&'static str, &'static str, f64, u64, u64);

    #[pyfunction]
    fn take_section_times() -> Option<Vec<SectionTuple>> {
        let tuple = |time: SectionTime| {
            (time.place.name(), time.work.name(), time.seconds, time.calls, time.operations)
        };
        section_times().map(|times| times.into_iter().map(tuple).collect())
    }

    #[pyfunction]
    fn release_scratch() {
        SCRATCH.release();
    }
}
