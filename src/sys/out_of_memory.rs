//! What happens where the system refuses memory.

/// What a panic carries when the system refuses memory: computations end with an error then, not with the process.
#[derive(Debug)]
pub struct OutOfMemory {
    /// How much was asked for.
    pub bytes: usize,
}

impl OutOfMemory {
    /// Panics without the message of a bug, since it is none.
    pub(crate) fn raise(bytes: usize) -> ! {
        std::panic::resume_unwind(Box::new(OutOfMemory { bytes }))
    }
}
