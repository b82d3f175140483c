//! Signals, and what the kernel reports about a memory access that raised one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A signal number of Linux on x86.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Signal(pub i32);

impl Signal {
    /// An illegal instruction.
    pub const SIGILL: Self = Self(4);
    /// The program aborted, for instance in a panic.
    pub const SIGABRT: Self = Self(6);
    /// Memory that is mapped but cannot be reached.
    pub const SIGBUS: Self = Self(7);
    /// Killed, for instance by the kernel when memory ran out.
    pub const SIGKILL: Self = Self(9);
    /// Memory that is not mapped, or not so.
    pub const SIGSEGV: Self = Self(11);
    /// Asked to end.
    pub const SIGTERM: Self = Self(15);
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match *self {
            Self::SIGILL => "SIGILL",
            Self::SIGABRT => "SIGABRT",
            Self::SIGBUS => "SIGBUS",
            Self::SIGKILL => "SIGKILL",
            Self::SIGSEGV => "SIGSEGV",
            Self::SIGTERM => "SIGTERM",
            Self(number) => return write!(f, "signal {number}"),
        })
    }
}

/// A memory access that ended in a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The signal that ended the process.
    pub signal: Signal,
    /// `si_code`: for SIGBUS, 2 is BUS_ADRERR.
    pub code: i32,
    /// `si_addr`: where the access was.
    pub address: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} code {} at {:#x}", self.signal, self.code, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_shown_by_signal_name_code_and_address() {
        let fault = Fault { signal: Signal::SIGBUS, code: 2, address: 0x7f00_0000_1000 };
        assert_eq!(fault.to_string(), "SIGBUS code 2 at 0x7f0000001000");
        assert_eq!(Signal(64).to_string(), "signal 64");
    }
}
