//! A function: its configuration space, what answers in its address ranges, and the description
//! that both are made from.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use thiserror::Error;

use super::{
    BarIndex, BarKind, FunctionState, InterruptPin, IntxPin, MessageSink, Msix, MsixLayout,
    PciDevice,
};

/// The kind of a function (PCI Express Base 6.0, section 7.5.1.1.6; PCI Code and ID Assignment).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassCode {
    /// Base class.
    pub base: u8,
    /// Sub-class.
    pub sub: u8,
    /// Programming interface.
    pub interface: u8,
}

/// What a driver recognises a function by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code.
    pub class: ClassCode,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// A vendor-specific capability (PCI Express Base 6.0, section 7.9.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VendorCapability {
    /// All of it. The first three bytes (ID, next pointer, length) are filled in for the device.
    pub bytes: Vec<u8>,
    /// Which bits the guest may write; none beyond the end of this.
    pub writable: Vec<u8>,
    /// The bytes that are the device's own: an access inside them is [`PciDevice`]'s to answer.
    pub device_bytes: Range<usize>,
}

impl VendorCapability {
    /// A capability that only informs.
    pub fn read_only(bytes: Vec<u8>) -> Self {
        Self { bytes, writable: Vec::new(), device_bytes: 0..0 }
    }
}

/// A function that cannot be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FunctionError {
    /// The size of a range.
    #[error("{size:#x} bytes is no size for {kind:?} in BAR {}: want a power of two between {min:#x} and {max:#x}", *.index as u8)]
    BarSize {
        /// The register.
        index: BarIndex,
        /// What it was to give room to.
        kind: BarKind,
        /// The size asked for.
        size: u64,
        /// The smallest that can be.
        min: u64,
        /// The largest that can be.
        max: u64,
    },
    /// The register, or the one after it that a 64-bit address needs, is taken or does not exist.
    #[error("BAR {} or the upper half of its address has no free register", *.0 as u8)]
    BarTaken(BarIndex),
    /// The expansion ROM's contents.
    #[error("an expansion ROM of {0} bytes cannot be: want 1 byte to 16 MiB")]
    RomSize(usize),
    /// The MSI-X structures.
    #[error("the MSI-X table and pending bits do not fit as {0:?} says")]
    MsixLayout(MsixLayout),
    /// Too many or too long capabilities.
    #[error("a capability of {0} bytes does not fit into configuration space")]
    CapabilitySpace(usize),
}

/// Describes a function, and hands out what its device model is made with.
pub struct FunctionBuilder {
    state: Arc<FunctionState>,
}

impl FunctionBuilder {
    /// A function without ranges or interrupts. It has power management and, unless it ends up on
    /// a conventional bus, a PCI Express capability with Function Level Reset.
    pub fn new(identity: Identity) -> Self {
        let _ = identity;
        Self { state: Arc::default() }
    }

    /// What the device model may ask about the function.
    pub fn state(&self) -> Arc<FunctionState> {
        Arc::clone(&self.state)
    }

    /// Adds a range of `size` bytes, a power of two.
    pub fn bar(&mut self, index: BarIndex, kind: BarKind, size: u64) -> Result<(), FunctionError> {
        let _ = (kind, size);
        Err(FunctionError::BarTaken(index))
    }

    /// Adds an expansion ROM with these contents, zeros up to the next power of two.
    pub fn rom(&mut self, contents: Vec<u8>) -> Result<(), FunctionError> {
        Err(FunctionError::RomSize(contents.len()))
    }

    /// Adds MSI-X, whose structures lie in a BAR added before. The device model never sees
    /// accesses to them.
    pub fn msix(
        &mut self,
        layout: MsixLayout,
        sink: Arc<dyn MessageSink>,
    ) -> Result<Arc<Msix>, FunctionError> {
        Ok(Arc::new(Msix::new(&layout, sink)))
    }

    /// Adds an interrupt pin.
    pub fn intx(&mut self, pin: InterruptPin) -> Arc<IntxPin> {
        Arc::new(IntxPin::new(pin))
    }

    /// Adds a vendor-specific capability.
    pub fn vendor_capability(
        &mut self,
        capability: &VendorCapability,
    ) -> Result<(), FunctionError> {
        Err(FunctionError::CapabilitySpace(capability.bytes.len()))
    }

    /// Adds Access Control Services, which a function of a multi-function device needs to be
    /// isolated from its siblings.
    pub fn access_control(&mut self) {}

    /// The function, whose ranges and resets `device` answers to.
    pub fn build(self, device: Arc<Mutex<dyn PciDevice>>) -> Function {
        Function { _device: device }
    }
}

/// A function that has no place yet.
pub struct Function {
    _device: Arc<Mutex<dyn PciDevice>>,
}
