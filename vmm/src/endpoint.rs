//! The IDs by which devices are told apart when they access memory.

use std::ops::RangeInclusive;

use devices::pci::FunctionAddress;
use devices::virtio::transport::MmioTransport;

use crate::memory::layout::VIRTIO_MMIO as REGISTERS;

/// PCI functions: their requester IDs.
pub const PCI: RangeInclusive<u32> = 0..=0xffff;
/// virtio-mmio devices, in the order of their addresses.
pub const VIRTIO_MMIO: RangeInclusive<u32> = 0x1_0000..=0x1_00ff;

/// Bus, device and function, or where the registers are.
pub fn name(id: u32) -> String {
    match u16::try_from(id) {
        Ok(requester_id) => FunctionAddress::from(requester_id).to_string(),
        Err(_) => {
            let index = u64::from(id - VIRTIO_MMIO.start());
            format!("virtio-mmio at {:#x}", REGISTERS.0 + index * MmioTransport::SIZE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_guests() {
        assert_eq!(name(0x0110), "01:02.0");
        assert_eq!(
            name(0x1_0001),
            format!("virtio-mmio at {:#x}", 0xd000_0000_u64 + MmioTransport::SIZE)
        );
    }
}
