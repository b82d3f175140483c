//! The devices and memory at a guest's ports and addresses.

use std::sync::Arc;

use devices::bus::Bus;
use devices::dma::Leases;
use devices::pci::{Access, AddressSpace};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::memory_device::{MemoryDevice, UnpluggedMemoryAccess};
use super::pci::{Pci, RefusedAccess};
use crate::memory::slots::{MemorySlots, SlotError};
use crate::symbols::GuestSymbols;
use crate::violations::{Accessor, Consequence, GuestAccess, Operation};

/// Everything that a vCPU can access.
pub struct GuestBuses {
    /// The memory slots: what it accesses without an exit.
    pub slots: MemorySlots,
    /// The leases under which devices access memory.
    pub leases: Leases,
    /// RAM, which stays in its memory slots until the machine ends.
    pub ram: GuestMemoryMmap,
    /// Devices by I/O port.
    pub ports: Bus,
    /// Devices by guest address.
    pub memory: Bus,
    /// PCI functions, at the addresses that their registers decode.
    pub pci: Option<Arc<Pci>>,
    /// The virtio-mem devices, whose unplugged memory a guest may try to access.
    pub memory_devices: Vec<Arc<MemoryDevice>>,
    /// The names of the functions of the guest's kernel.
    pub symbols: Option<Arc<GuestSymbols>>,
}

/// An access of a vCPU to what is unplugged or not decoded. A read has its data already.
#[must_use]
pub enum StrayAccess<'a> {
    /// To an unplugged block.
    Unplugged(UnpluggedMemoryAccess<'a>),
    /// To what a PCI function does not decode.
    Refused(RefusedAccess<'a>),
}

impl StrayAccess<'_> {
    /// Records the access, and returns what it leads to. `accessor` finds out what made it.
    pub fn record(self, accessor: impl FnOnce(&GuestAccess) -> Accessor) -> Consequence {
        match self {
            Self::Unplugged(access) => access.record(accessor),
            Self::Refused(access) => access.record(accessor),
        }
    }
}

/// An access that reads into `data`, or writes it.
fn access(space: AddressSpace, address: u64, data: &[u8], operation: Operation) -> GuestAccess {
    let value = (operation == Operation::Write && data.len() <= 8).then(|| {
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        u64::from_le_bytes(bytes)
    });
    GuestAccess { space, address, size: data.len() as u32, operation, value }
}

impl GuestBuses {
    /// Buses without devices.
    pub fn new(slots: MemorySlots, leases: Leases) -> Self {
        Self {
            slots,
            leases,
            ram: GuestMemoryMmap::default(),
            ports: Bus::default(),
            memory: Bus::default(),
            pci: None,
            memory_devices: Vec::new(),
            symbols: None,
        }
    }

    /// Reads a port; all ones if no device is there.
    pub fn read_port(&self, port: u16, data: &mut [u8]) -> Option<StrayAccess<'_>> {
        if self.ports.read(port.into(), data) {
            return None;
        }
        data.fill(0xff);
        let pci = self.pci.as_deref()?;
        let outcome = pci.root().read_io(port, data);
        let access = access(AddressSpace::Io, port.into(), data, Operation::Read);
        pci.refused(access, outcome).map(StrayAccess::Refused)
    }

    /// Writes a port; ignored if no device is there.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<StrayAccess<'_>> {
        if self.ports.write(port.into(), data) {
            return None;
        }
        let pci = self.pci.as_deref()?;
        let outcome = pci.root().write_io(port, data);
        let access = access(AddressSpace::Io, port.into(), data, Operation::Write);
        pci.refused(access, outcome).map(StrayAccess::Refused)
    }

    /// Reads a guest address that no memory slot covers; all ones if no device is there. An access to an
    /// address that belongs to a device but is unplugged or not decoded is returned to be recorded.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) -> Option<StrayAccess<'_>> {
        if self.memory.read(address, data) {
            return None;
        }
        let access = access(AddressSpace::Memory, address, data, Operation::Read);
        if let Some(pci) = self.pci.as_deref() {
            let outcome = pci.root().read_memory(address, data);
            if outcome != Access::Unmapped {
                return pci.refused(access, outcome).map(StrayAccess::Refused);
            }
        }
        let unplugged = self.unplugged(access);
        data.fill(unplugged.as_ref().map_or(0xff, UnpluggedMemoryAccess::fill));
        unplugged.map(StrayAccess::Unplugged)
    }

    /// Writes a guest address, likewise.
    pub fn write_memory(&self, address: u64, data: &[u8]) -> Option<StrayAccess<'_>> {
        if self.memory.write(address, data) {
            return None;
        }
        let access = access(AddressSpace::Memory, address, data, Operation::Write);
        if let Some(pci) = self.pci.as_deref() {
            let outcome = pci.root().write_memory(address, data);
            if outcome != Access::Unmapped {
                return pci.refused(access, outcome).map(StrayAccess::Refused);
            }
        }
        self.unplugged(access).map(StrayAccess::Unplugged)
    }

    /// Removes unplugged blocks from the memory slots. Returns whether any were in one.
    pub fn withdraw_unplugged(&self) -> Result<bool, SlotError> {
        let mut withdrawn = false;
        for device in &self.memory_devices {
            withdrawn |= device.withdraw_unplugged()?;
        }
        Ok(withdrawn)
    }

    /// `access`, which no memory slot covers, as one to an unplugged block, if it is in a virtio-mem region.
    pub fn unplugged(&self, access: GuestAccess) -> Option<UnpluggedMemoryAccess<'_>> {
        self.memory_devices.iter().find_map(|device| {
            let block = device.block_at(access.address)?;
            Some(UnpluggedMemoryAccess::new(device, block, access))
        })
    }

    /// Reads what a vCPU would read at `address` without an exit, within one page. False if no memory is
    /// there.
    pub fn peek(&self, address: u64, data: &mut [u8]) -> bool {
        self.ram.read_slice(data, GuestAddress(address)).is_ok()
            || self.memory_devices.iter().any(|device| device.peek(address, data))
    }
}
