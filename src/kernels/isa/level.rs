//! Instruction sets, chosen at run time.

use std::sync::OnceLock;

use crate::error::{Error, Result};

/// An instruction set that this machine has. Values come only from detection, so holding one is the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Level);

/// The ladder, slowest first. On x86-64 each step includes all steps before it (but for `Neon`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(dead_code, reason = "each architecture constructs its own steps only")]
pub(in crate::kernels) enum Level {
    /// No products.
    None,
    /// Plain Rust.
    Portable,
    /// Arm's 128-bit vectors.
    Neon,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// With `vpdpbusd`.
    Avx512Vnni,
    /// With `vdpbf16ps`.
    Avx512Bf16,
    /// With the tile registers and `tdpbf16ps`, `tdpbusd`; the process has the kernel's permission to use them.
    Amx,
}

impl Isa {
    /// Plain Rust without products of matrices, for dry runs.
    pub const NONE: Isa = Isa(Level::None);
    /// Plain Rust, on every machine.
    pub const PORTABLE: Isa = Isa(Level::Portable);

    /// Every instruction set of this machine, slowest first. The first call detects them.
    pub fn available() -> Vec<Isa> {
        Isa::detected().to_vec()
    }

    fn detected() -> &'static [Isa] {
        static DETECTED: OnceLock<Vec<Isa>> = OnceLock::new();
        DETECTED.get_or_init(|| {
            let mut all = vec![Isa::PORTABLE];
            // Miri interprets plain Rust only.
            if !cfg!(miri) {
                all.extend(machine_levels().into_iter().map(Isa));
            }
            all
        })
    }

    /// The one to use: the environment variable `SPARSE_MIXER_ISA` if set, else the fastest available.
    pub fn detect() -> Result<Isa> {
        match std::env::var("SPARSE_MIXER_ISA") {
            Ok(name) => Isa::parse(&name, "SPARSE_MIXER_ISA"),
            Err(_) => Ok(Isa::fastest()),
        }
    }

    /// The last of [`Isa::available`].
    pub(crate) fn fastest() -> Isa {
        Isa::detected().last().copied().unwrap_or(Isa::PORTABLE)
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
            Level::None => "none",
            Level::Portable => "portable",
            Level::Neon => "neon",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Vnni => "avx512_vnni",
            Level::Avx512Bf16 => "avx512_bf16",
            Level::Amx => "amx",
        }
    }

    /// Its step of the ladder.
    pub(in crate::kernels) fn level(self) -> Level {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
fn machine_levels() -> Vec<Level> {
    let steps: [(Level, fn() -> bool); 5] = [
        (Level::Avx2, || {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        }),
        (Level::Avx512, || {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
        }),
        (Level::Avx512Vnni, || is_x86_feature_detected!("avx512vnni")),
        (Level::Avx512Bf16, || is_x86_feature_detected!("avx512bf16")),
        (Level::Amx, amx_usable),
    ];
    steps.into_iter().take_while(|(_, present)| present()).map(|(level, _)| level).collect()
}

#[cfg(target_arch = "aarch64")]
fn machine_levels() -> Vec<Level> {
    if std::arch::is_aarch64_feature_detected!("neon") { vec![Level::Neon] } else { Vec::new() }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn machine_levels() -> Vec<Level> {
    Vec::new()
}

/// Whether the CPU has AMX with bf16 and int8, and the kernel lets this process use it (it must be asked first).
///
/// Source: Intel SDM, CPUID leaf 7; Linux `Documentation/arch/x86/xstate.rst`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_usable() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    const NEEDED: u32 = AMX_BF16 | AMX_TILE | AMX_INT8;
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;

    if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & NEEDED != NEEDED {
        return false;
    }
    // SAFETY: this request reads no memory of ours; kernels that do not know it answer with an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_usable() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portable_comes_first_and_the_order_is_the_ladder() {
        let all = Isa::available();
        assert_eq!(all[0], Isa::PORTABLE);
        assert!(all.is_sorted());
    }

    #[test]
    fn names_lead_back_to_their_instruction_set() {
        for isa in Isa::available() {
            assert_eq!(Isa::parse(isa.name(), "isa").unwrap(), isa);
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_choices() {
        let message = Isa::parse("mmx", "isa").unwrap_err().to_string();
        assert!(
            message.contains("isa") && message.contains("mmx") && message.contains("portable"),
            "{message}"
        );
    }
}
