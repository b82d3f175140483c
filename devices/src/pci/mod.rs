//! PCI Express: a root complex, the functions below it, and which of them answers at which address.
//!
//! A machine describes what it has as a [`Topology`]: devices, root ports, bridges. Each [`Function`]
//! of a device is made by a [`FunctionBuilder`], which provides what the device model needs: its
//! [`FunctionState`], and the [`Msix`] and [`IntxPin`] to interrupt with.
//! [`RootComplex`] keeps every function's configuration space and serves everything that needs no
//! device: configuration accesses, MSI-X tables, expansion ROMs. A device model is a [`PciDevice`]
//! and sees accesses to its base address ranges only, and resets.
//!
//! The registers alone determine which function decodes an address: after a write to a configuration
//! register the whole map of addresses is computed anew from all registers. A range whose function does
//! not decode it does not answer. The root complex still records which function it belongs to, so that
//! a stray access can be reported with it ([`Refusal`]). A [`Doorbell`] is notified whenever its
//! address changes, since it can be rung without the device.
//!
//! Locks: one for all configuration space, one for the map, one a device. No thread waits for a
//! device's lock while it holds one of the other two, so a busy device delays its own accesses only.

mod access;
mod address_map;
mod bar;
mod bridge;
mod builder;
mod bus;
mod capability;
mod completer;
mod config_access;
mod config_space;
mod doorbell;
mod function;
mod header;
mod intx;
mod msix;
mod reach;
mod root_complex;
mod state;
mod topology;

#[cfg(test)]
mod decode_test;
#[cfg(test)]
mod doorbell_test;
#[cfg(test)]
mod requester_test;
#[cfg(test)]
mod root_complex_test;
#[cfg(test)]
mod scribble_test;
#[cfg(test)]
pub(crate) mod test_machine;

use std::fmt;

pub use access::{Access, Direction, Refusal, RefusalReason};
pub use bar::{AddressSpace, BarIndex, BarKind, BaseRegister};
pub use builder::{FunctionBuilder, FunctionError};
pub use capability::VendorCapability;
pub use config_access::{ConfigPorts, Ecam};
pub use doorbell::Doorbell;
pub use function::{Function, FunctionStatus, RangeStatus};
pub use header::{ClassCode, Command, Identity};
pub use intx::{InterruptPin, IntxPin};
pub use msix::{Msix, MsixLayout};
pub use root_complex::RootComplex;
pub use state::{Counters, FunctionState, PowerState};
pub use topology::{Node, RootNode, RootPort, Topology, TopologyError};

/// A function's address (PCI Express Base 6.0, section 2.2.4.2): the target of configuration requests,
/// and the ID that the function's own requests carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionAddress {
    /// Bus number.
    pub bus: u8,
    /// Device and function number on that bus.
    pub slot: Slot,
}

impl FunctionAddress {
    /// The function at `slot` of bus `bus`.
    pub const fn new(bus: u8, slot: Slot) -> Self {
        Self { bus, slot }
    }

    /// The 16 bits on the wire: bus, device, function.
    pub const fn requester_id(self) -> u16 {
        (self.bus as u16) << 8 | self.slot.0 as u16
    }
}

impl From<u16> for FunctionAddress {
    fn from(requester_id: u16) -> Self {
        let [slot, bus] = requester_id.to_le_bytes();
        Self { bus, slot: Slot(slot) }
    }
}

impl fmt::Display for FunctionAddress {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:02x}:{}", self.bus, self.slot)
    }
}

/// A device number, 0 to 31, and a function number, 0 to 7, as one byte (Linux's `devfn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u8);

impl Slot {
    /// Devices on a bus.
    pub const DEVICES: u8 = 32;
    /// Functions in a device.
    pub const FUNCTIONS: u8 = 8;

    /// Function `function` of device `device`; none if one of the numbers is out of range.
    pub const fn new(device: u8, function: u8) -> Option<Self> {
        if device < Self::DEVICES && function < Self::FUNCTIONS {
            Some(Self(device << 3 | function))
        } else {
            None
        }
    }

    /// The device number.
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// The function number.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:02x}.{}", self.device(), self.function())
    }
}

/// The behaviour of a function outside of its configuration space, which the root complex keeps.
///
/// An access is handed over as the guest made it: any width, any alignment, but never past the end
/// of the range. String I/O arrives as one access of many bytes. Accesses run on a vCPU's thread, so
/// they must only access registers and return at once.
pub trait PciDevice: Send {
    /// Fills `data` with what the guest reads at `offset` of a base address range.
    fn read_bar(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]);

    /// Takes what the guest writes at `offset` of a base address range.
    fn write_bar(&mut self, bar: BarIndex, offset: u64, data: &[u8]);

    /// Resets the device to its state after power-on. The registers have been reset before, MSI-X and
    /// INTx will be afterwards.
    fn reset(&mut self, kind: ResetKind);

    /// Fills `data` with what the guest reads from the device's own bytes of a vendor-specific
    /// capability ([`VendorCapability::device_bytes`]). `capability` is all of it as it is in
    /// configuration space, and `offset` counts from its start.
    fn read_capability(&mut self, capability: &[u8], offset: usize, data: &mut [u8]) {
        let _ = (capability, offset, data);
    }

    /// Takes what the guest writes to the device's own bytes of a vendor-specific capability.
    fn write_capability(&mut self, capability: &[u8], offset: usize, data: &[u8]) {
        let _ = (capability, offset, data);
    }
}

/// What resets a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetKind {
    /// Function Level Reset (PCI Express Base 6.0, section 6.6.2).
    FunctionLevel,
    /// A hot reset of the bus that the function is on (section 6.6.1).
    Hot,
    /// The transition from D3hot to D0 without No_Soft_Reset (section 5.3.1.4).
    PowerManagement,
}

/// A message-signalled interrupt: a write of `data` to `address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Where message-signalled interrupts go.
pub trait MessageSink: Send + Sync {
    /// Delivers `message`. Called from any thread, and never waits.
    fn send(&self, message: Message);
}

/// A level-triggered interrupt line.
pub trait InterruptLine: Send + Sync {
    /// Asserts or deasserts the line. Called from any thread, and never waits.
    fn set_level(&self, asserted: bool);
}
