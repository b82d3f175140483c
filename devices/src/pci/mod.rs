//! PCI Express: a root complex, what hangs below it, and who answers where.
//!
//! A machine describes what it has as a [`Topology`]: devices, root ports, bridges. Each
//! [`Function`] of a device comes out of a [`FunctionBuilder`], which hands out what the device
//! model needs: its [`FunctionState`], and the [`Msix`] and [`IntxPin`] to interrupt with.
//! [`RootComplex`] keeps every function's configuration space and serves everything that needs no
//! device: configuration accesses, MSI-X tables, expansion ROMs. A device model is a [`PciDevice`]
//! and sees accesses to its base address ranges only, and resets.
//!
//! Registers decide who decodes an address, never the other way round: after a write to a
//! configuration register the whole map of addresses is computed anew from all registers. A range
//! whose function does not decode it is not there. The root complex still remembers whose it was,
//! so that a stray access can be told to its culprit's owner ([`Refusal`]). A [`Doorbell`] is told
//! where it is whenever that changes, for it can be rung without a device.
//!
//! Locks: one for all configuration space, one for the map, one a device. None is held while
//! another thread's device works, so a busy device delays its own accesses only.

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

/// Where a function is (PCI Express Base 6.0, section 2.2.4.2): what config requests name, and
/// what the function's own requests carry.
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

    /// Function `function` of device `device`; none where there cannot be one.
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

/// What a function does beside its configuration space, which the root complex keeps.
///
/// An access is handed over as the guest made it: any width, any alignment, but never past the end
/// of the range. String I/O arrives as one access of many bytes. Accesses run on a vCPU's thread
/// and must only touch registers.
pub trait PciDevice: Send {
    /// Fills `data` with what the guest reads at `offset` of a base address range.
    fn read_bar(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]);

    /// Takes what the guest writes at `offset` of a base address range.
    fn write_bar(&mut self, bar: BarIndex, offset: u64, data: &[u8]);

    /// Everything becomes as after power-on. The registers already are, and MSI-X and INTx will
    /// be.
    fn reset(&mut self, kind: ResetKind);

    /// Fills `data` with what the guest reads from the device's own bytes of a vendor-specific
    /// capability ([`VendorCapability::device_bytes`]). `capability` is all of it as it stands in
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
    /// The way from D3hot to D0 without No_Soft_Reset (section 5.3.1.4).
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
    /// Asserts the line or takes that back. Called from any thread, and never waits.
    fn set_level(&self, asserted: bool);
}
