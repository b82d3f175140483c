//! What is at a guest's ports and addresses.

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

/// All that a vCPU reaches.
pub struct GuestBuses {
    /// The memory slots, which are what it reaches without an exit.
    pub slots: MemorySlots,
    /// The accesses of devices.
    pub leases: Leases,
    /// What it reaches without an exit and for ever.
    pub ram: GuestMemoryMmap,
    /// Devices by I/O port.
    pub ports: Bus,
    /// Devices by guest address.
    pub memory: Bus,
    /// PCI functions, which decode what they are told to.
    pub pci: Option<Arc<Pci>>,
    /// Devices whose unplugged memory a guest may try to touch.
    pub memory_devices: Vec<Arc<MemoryDevice>>,
    /// What the guest's kernel calls its functions.
    pub symbols: Option<Arc<GuestSymbols>>,
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
    /// Counts the access, made by what `accessor` finds out, and does with it what is to be done.
    pub fn record(self, accessor: impl FnOnce(&GuestAccess) -> Accessor) -> Consequence {
        match self {
            Self::Unplugged(access) => access.record(accessor),
            Self::Refused(access) => access.record(accessor),
        }
    }
}

/// What is read in, or written from, `data`.
fn access(space: AddressSpace, address: u64, data: &[u8], operation: Operation) -> GuestAccess {
    let value = (operation == Operation::Write && data.len() <= 8).then(|| {
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        u64::from_le_bytes(bytes)
    });
    GuestAccess { space, address, size: data.len() as u32, operation, value }
}

impl GuestBuses {
    /// With nothing on them.
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

    /// Reads a port; all ones where there is nothing.
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

    /// Writes a port; nothing happens where there is nothing.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<StrayAccess<'_>> {
        if self.ports.write(port.into(), data) {
            return None;
        }
        let pci = self.pci.as_deref()?;
        let outcome = pci.root().write_io(port, data);
        let access = access(AddressSpace::Io, port.into(), data, Operation::Write);
        pci.refused(access, outcome).map(StrayAccess::Refused)
    }

    /// Reads a guest address that no memory slot covers; all ones where there is nothing. What is
    /// not there although somebody owns it is answered, and returned to be recorded.
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

    /// Takes unplugged blocks out of the memory slots. Returns whether there were any.
    pub fn withdraw_unplugged(&self) -> Result<bool, SlotError> {
        let mut withdrawn = false;
        for device in &self.memory_devices {
            withdrawn |= device.withdraw_unplugged()?;
        }
        Ok(withdrawn)
    }

    /// What `access` is if it is to a block that may be unplugged, and no memory slot covers it.
    pub fn unplugged(&self, access: GuestAccess) -> Option<UnpluggedMemoryAccess<'_>> {
        self.memory_devices.iter().find_map(|device| {
            let block = device.block_at(access.address)?;
            Some(UnpluggedMemoryAccess::new(device, block, access))
        })
    }

    /// Reads what a vCPU would read at `address` without an exit, of one page at most. False if
    /// there is no memory.
    pub fn peek(&self, address: u64, data: &mut [u8]) -> bool {
        self.ram.read_slice(data, GuestAddress(address)).is_ok()
            || self.memory_devices.iter().any(|device| device.peek(address, data))
    }
}
