//! How an access to an address ends.

use serde::{Deserialize, Serialize};

use super::{AddressSpace, BaseRegister, FunctionAddress};

/// How an access to an address that belongs to PCI ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Access {
    /// A function decodes the address and has answered.
    Claimed,
    /// No function decodes the address, though one has, or had, a range there. Reads give ones,
    /// writes vanish.
    Refused(Refusal),
    /// There is nothing at the address. Reads give ones, writes vanish.
    Unmapped,
}

/// Which way an access goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the device.
    Read,
    /// To the device.
    Write,
}

/// An access to a range that its function does not decode at this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The function, by its address when the machine was built.
    pub function: FunctionAddress,
    /// The register that gives the function the range.
    pub register: BaseRegister,
    /// The address space.
    pub space: AddressSpace,
    /// Bytes from the start of the range.
    pub offset: u64,
    /// Bytes accessed.
    pub size: usize,
    /// Which way.
    pub direction: Direction,
    /// Why the function does not decode.
    pub reason: RefusalReason,
}

/// Why a function does not decode a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalReason {
    /// The function was reset, and has not decoded the range since.
    Reset,
    /// It is in D3hot.
    LowPower,
    /// COMMAND or the expansion ROM's enable bit says so.
    DecodingOff,
    /// A bridge above it does not pass the access on.
    NotForwarded,
}
