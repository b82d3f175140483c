//! A virtio driver for tests: the unit tests of the device models, the fuzz targets and the bare-metal
//! guest use it to access a device, correctly or not, through any [`Bus`].
//!
//! Offsets and bits are defined here a second time: a test with the device's own constants would not
//! find a wrong one. Failures are panics.

mod queue;
mod registers;

pub use queue::{Buffer, Rings, Used, Virtqueue, flags};
pub use registers::{
    Field, Register, Registers, Structure, capabilities, cfg_type, field, field_of, mmio, status,
    structures,
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Addresses as the guest's processors see them: memory, registers or both.
pub trait Bus {
    /// Reads at `address`, as many bytes as `data` has.
    fn read(&mut self, address: u64, data: &mut [u8]);

    /// Writes at `address`.
    fn write(&mut self, address: u64, data: &[u8]);
}

impl Bus for GuestMemoryMmap {
    fn read(&mut self, address: u64, data: &mut [u8]) {
        self.read_slice(data, GuestAddress(address)).expect("the driver's memory");
    }

    fn write(&mut self, address: u64, data: &[u8]) {
        self.write_slice(data, GuestAddress(address)).expect("the driver's memory");
    }
}
