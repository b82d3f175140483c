//! Capabilities: registers that a function has beside its header, in a list (PCI Express Base
//! 6.0, sections 7.5.2, 7.5.3, 7.7 and 7.9).

pub(super) mod express;
pub(super) mod power;

use std::ops::Range;

use bitflags::bitflags;

use super::config_space::ConfigSpace;
use super::header::register;
use super::msix::{MessageControl, MsixLayout};

/// Capability IDs (PCI Code and ID Assignment, section 2).
mod id {
    pub const POWER_MANAGEMENT: u8 = 0x01;
    pub const VENDOR_SPECIFIC: u8 = 0x09;
    pub const PCI_EXPRESS: u8 = 0x10;
    pub const MSI_X: u8 = 0x11;
}

/// Where a function's capabilities are put: one after the other, between two that every function has at
/// fixed offsets.
pub(super) struct CapabilityList {
    /// The byte that is to point at the next one.
    link: usize,
    end: usize,
}

impl CapabilityList {
    pub fn new() -> Self {
        Self { link: register::CAPABILITIES_POINTER, end: power::OFFSET + power::SIZE }
    }

    /// Adds a capability of `size` bytes and returns its offset; none if there is no room.
    fn add(&mut self, config: &mut ConfigSpace, id: u8, size: usize) -> Option<usize> {
        let offset = self.end;
        let end = offset.checked_add(size)?.checked_next_multiple_of(4)?;
        if end > express::OFFSET {
            return None;
        }
        self.end = end;
        self.link(config, id, offset);
        Some(offset)
    }

    fn link(&mut self, config: &mut ConfigSpace, id: u8, offset: usize) {
        config.set(self.link, &[offset as u8]);
        config.set(offset, &[id]);
        self.link = offset + 1;
    }
}

/// A vendor-specific capability (section 7.9.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VendorCapability {
    /// All of it. The first three bytes (ID, next pointer, length) are filled in for the device.
    pub bytes: Vec<u8>,
    /// Which bits the guest may write; none beyond the end of this, nor in the first three bytes.
    pub writable: Vec<u8>,
    /// The bytes that are the device's own: [`PciDevice`] answers accesses inside them.
    ///
    /// [`PciDevice`]: super::PciDevice
    pub device_bytes: Range<usize>,
}

impl VendorCapability {
    const LENGTH: usize = 2;
    const BODY: usize = 3;

    /// A capability without writable bits.
    pub fn read_only(bytes: Vec<u8>) -> Self {
        Self { bytes, writable: Vec::new(), device_bytes: 0..0 }
    }

    /// Adds the capability and returns its offset; none if there is no room.
    pub(super) fn add(
        &self,
        list: &mut CapabilityList,
        config: &mut ConfigSpace,
    ) -> Option<Range<usize>> {
        let size = self.bytes.len().max(Self::BODY);
        let offset = list.add(config, id::VENDOR_SPECIFIC, size)?;
        config.set(offset + Self::LENGTH, &[size as u8]);
        config.set(offset + Self::BODY, self.bytes.get(Self::BODY..).unwrap_or_default());
        let writable = &self.writable[..self.writable.len().min(size)];
        config.allow(offset + Self::BODY, writable.get(Self::BODY..).unwrap_or_default());
        Some(offset..offset + size)
    }
}

/// The MSI-X capability (section 7.7.2).
#[derive(Clone, Copy)]
pub(super) struct MsixCapability {
    offset: usize,
}

impl MsixCapability {
    const SIZE: usize = 12;
    const CONTROL: usize = 2;
    const TABLE: usize = 4;
    const PENDING: usize = 8;

    /// Adds the capability; none if there is no room.
    pub fn add(
        list: &mut CapabilityList,
        config: &mut ConfigSpace,
        layout: &MsixLayout,
    ) -> Option<Self> {
        let offset = list.add(config, id::MSI_X, Self::SIZE)?;
        let bar = layout.bar as u32;
        config.set(offset + Self::CONTROL, &(layout.vectors - 1).to_le_bytes());
        config.set(offset + Self::TABLE, &(layout.table | bar).to_le_bytes());
        config.set(offset + Self::PENDING, &(layout.pending | bar).to_le_bytes());
        config.allow(offset + Self::CONTROL, &MessageControl::all().bits().to_le_bytes());
        Some(Self { offset })
    }

    pub fn control(self, config: &ConfigSpace) -> MessageControl {
        MessageControl::from_bits_truncate(config.u16(self.offset + Self::CONTROL))
    }
}

bitflags! {
    /// ACS Capability and Control registers (section 7.7.11.2).
    #[derive(Clone, Copy)]
    pub(super) struct AccessControl: u16 {
        const SOURCE_VALIDATION = 1 << 0;
        const TRANSLATION_BLOCKING = 1 << 1;
        const REQUEST_REDIRECT = 1 << 2;
        const COMPLETION_REDIRECT = 1 << 3;
        const UPSTREAM_FORWARDING = 1 << 4;
    }
}

impl AccessControl {
    /// What a root port has.
    pub const ROOT_PORT: Self = Self::all();
    /// What a function of a multi-function device has.
    pub const MULTI_FUNCTION: Self = Self::REQUEST_REDIRECT.union(Self::COMPLETION_REDIRECT);

    /// The capability's ID and version.
    const HEADER: u32 = 0x0001_000d;
    /// Extended capabilities start here, and this is the only one.
    const OFFSET: usize = 0x100;
    const CAPABILITY: usize = Self::OFFSET + 4;
    const CONTROL: usize = Self::OFFSET + 6;

    /// Adds Access Control Services with these capabilities. What they control happens between devices
    /// and the IOMMU, not here: the guest may turn them on and off without further effect.
    pub fn add(self, config: &mut ConfigSpace) {
        config.set(Self::OFFSET, &Self::HEADER.to_le_bytes());
        config.set(Self::CAPABILITY, &self.bits().to_le_bytes());
        config.allow(Self::CONTROL, &self.bits().to_le_bytes());
    }
}
