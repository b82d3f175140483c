//! What is at a guest's port or address that no memory slot covers.

use std::sync::Arc;

use devices::bus::Bus;
use devices::pci::{Access, Direction};

use super::memory_device::{MemoryDevice, UnpluggedMemoryAccess};
use super::pci::{Pci, RefusedAccess};
use crate::memory::slots::SlotError;

/// All that a vCPU reaches beside memory.
#[derive(Default)]
pub struct GuestBuses {
    /// Devices by I/O port.
    pub ports: Bus,
    /// Devices by guest address.
    pub memory: Bus,
    /// PCI functions, which decode what they are told to.
    pub pci: Option<Arc<Pci>>,
    /// Devices whose unplugged memory a guest may try to touch.
    pub memory_devices: Vec<Arc<MemoryDevice>>,
}

/// An access of a vCPU to what is not there, already answered.
#[must_use]
pub enum StrayAccess<'a> {
    /// To an unplugged block.
    Unplugged(UnpluggedMemoryAccess<'a>),
    /// To what a PCI function does not decode.
    Refused(RefusedAccess<'a>),
}

impl StrayAccess<'_> {
    /// Counts the access as `vcpu`'s.
    pub fn record(self, vcpu: u32, instruction_pointer: u64) {
        match self {
            Self::Unplugged(access) => access.record(vcpu, instruction_pointer),
            Self::Refused(access) => access.record(vcpu, instruction_pointer),
        }
    }
}

impl GuestBuses {
    /// Reads a port; all ones where there is nothing.
    pub fn read_port(&self, port: u16, data: &mut [u8]) -> Option<StrayAccess<'_>> {
        if self.ports.read(port.into(), data) {
            return None;
        }
        data.fill(0xff);
        let pci = self.pci.as_deref()?;
        pci.refused(port.into(), pci.root().read_io(port, data)).map(StrayAccess::Refused)
    }

    /// Writes a port; nothing happens where there is nothing.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<StrayAccess<'_>> {
        if self.ports.write(port.into(), data) {
            return None;
        }
        let pci = self.pci.as_deref()?;
        pci.refused(port.into(), pci.root().write_io(port, data)).map(StrayAccess::Refused)
    }

    /// Reads a guest address; all ones where there is nothing. What is not there although somebody
    /// owns it is answered, and returned to be recorded.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) -> Option<StrayAccess<'_>> {
        if self.memory.read(address, data) {
            return None;
        }
        if let Some(pci) = self.pci.as_deref() {
            let access = pci.root().read_memory(address, data);
            if access != Access::Nobody {
                return pci.refused(address, access).map(StrayAccess::Refused);
            }
        }
        let access = self.unplugged(address, data.len(), Direction::Read);
        data.fill(access.as_ref().map_or(0xff, UnpluggedMemoryAccess::fill));
        access.map(StrayAccess::Unplugged)
    }

    /// Writes a guest address, likewise.
    pub fn write_memory(&self, address: u64, data: &[u8]) -> Option<StrayAccess<'_>> {
        if self.memory.write(address, data) {
            return None;
        }
        if let Some(pci) = self.pci.as_deref() {
            let access = pci.root().write_memory(address, data);
            if access != Access::Nobody {
                return pci.refused(address, access).map(StrayAccess::Refused);
            }
        }
        self.unplugged(address, data.len(), Direction::Write).map(StrayAccess::Unplugged)
    }

    /// Takes unplugged blocks out of the memory slots. Returns whether there were any.
    pub fn withdraw_unplugged(&self) -> Result<bool, SlotError> {
        let mut withdrawn = false;
        for device in &self.memory_devices {
            withdrawn |= device.withdraw_unplugged()?;
        }
        Ok(withdrawn)
    }

    fn unplugged(
        &self,
        address: u64,
        size: usize,
        direction: Direction,
    ) -> Option<UnpluggedMemoryAccess<'_>> {
        self.memory_devices.iter().find_map(|device| {
            let block = device.block_at(address)?;
            Some(UnpluggedMemoryAccess::new(device, block, address, size, direction))
        })
    }
}
