//! What is at a guest's port or address that no memory slot covers.

use std::sync::Arc;

use devices::bus::Bus;

use super::memory_device::{MemoryDevice, UnpluggedMemoryAccess};
use crate::memory::violations::Direction;

/// All that a vCPU reaches beside memory.
#[derive(Default)]
pub struct GuestBuses {
    /// Devices by I/O port.
    pub ports: Bus,
    /// Devices by guest address.
    pub memory: Bus,
    /// Devices whose unplugged memory a guest may try to touch.
    pub memory_devices: Vec<Arc<MemoryDevice>>,
}

impl GuestBuses {
    /// Reads a port; all ones where there is nothing.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        if !self.ports.read(port.into(), data) {
            data.fill(0xff);
        }
    }

    /// Writes a port; nothing happens where there is nothing.
    pub fn write_port(&self, port: u16, data: &[u8]) {
        self.ports.write(port.into(), data);
    }

    /// Reads a guest address; all ones where there is nothing. Unplugged memory is answered, and
    /// returned to be recorded.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) -> Option<UnpluggedMemoryAccess<'_>> {
        if self.memory.read(address, data) {
            return None;
        }
        let access = self.unplugged(address, data.len(), Direction::Read);
        data.fill(access.as_ref().map_or(0xff, UnpluggedMemoryAccess::fill));
        access
    }

    /// Writes a guest address, likewise.
    pub fn write_memory(&self, address: u64, data: &[u8]) -> Option<UnpluggedMemoryAccess<'_>> {
        if self.memory.write(address, data) {
            return None;
        }
        self.unplugged(address, data.len(), Direction::Write)
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
