//! Instruction sets, chosen at run time.

use crate::error::{Error, Result};

/// An instruction set that this machine has. Values come only from detection, so holding one is the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Portable,
}

impl Isa {
    /// Plain Rust, on every machine.
    pub const PORTABLE: Isa = Isa(Level::Portable);

    /// Every instruction set of this machine, slowest first.
    pub fn available() -> Vec<Isa> {
        vec![Isa::PORTABLE]
    }

    /// The one to use: the environment variable `SPARSE_MIXER_ISA` if set, else the fastest available.
    pub fn detect() -> Result<Isa> {
        match std::env::var("SPARSE_MIXER_ISA") {
            Ok(name) => Isa::parse(&name, "SPARSE_MIXER_ISA"),
            Err(_) => Ok(*Isa::available().last().unwrap_or(&Isa::PORTABLE)),
        }
    }

    /// The instruction set called `name`; `argument` is who asks, for the error.
    pub fn parse(name: &str, argument: &str) -> Result<Isa> {
        let available = Isa::available();
        available.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
            Error::value(argument, format!("got {name:?}, expected one of {names:?} on this machine"))
        })
    }

    /// Its name, as `SPARSE_MIXER_ISA` spells it.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
        }
    }
}
