//! Virtio devices and the transports that carry them (virtio 1.3).

mod chain;
pub mod console;
pub mod fs;
pub mod iommu;
pub mod mem;
pub mod queue;
pub mod rng;
pub mod transport;

#[cfg(test)]
mod garbage_test;
#[cfg(test)]
mod hostile_queue;
#[cfg(test)]
pub(crate) mod test_driver;

use bitflags::bitflags;

pub use chain::{Chain, ChainReader, ChainWriter};

/// Device types (virtio 1.3, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceType {
    /// Console device.
    Console = 3,
    /// Entropy device.
    Entropy = 4,
    /// IOMMU device.
    Iommu = 23,
    /// Memory device.
    Memory = 24,
    /// File system device.
    FileSystem = 26,
}

bitflags! {
    /// Feature bits that belong to no device type (virtio 1.3, section 6).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Features: u64 {
        /// VIRTIO_F_INDIRECT_DESC.
        const INDIRECT_DESC = 1 << 28;
        /// VIRTIO_F_EVENT_IDX.
        const EVENT_IDX = 1 << 29;
        /// VIRTIO_F_VERSION_1.
        const VERSION_1 = 1 << 32;
        /// VIRTIO_F_ACCESS_PLATFORM.
        const ACCESS_PLATFORM = 1 << 33;
        /// VIRTIO_F_RING_RESET.
        const RING_RESET = 1 << 40;
        // Device-specific bits pass through.
        const _ = !0;
    }

    /// Device status field (virtio 1.3, section 2.1).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct DeviceStatus: u8 {
        /// The guest has noticed the device.
        const ACKNOWLEDGE = 1;
        /// The guest has a driver for it.
        const DRIVER = 2;
        /// The driver is ready.
        const DRIVER_OK = 4;
        /// Feature negotiation is complete.
        const FEATURES_OK = 8;
        /// The device has met an error from which only a reset recovers.
        const DEVICE_NEEDS_RESET = 64;
        /// The guest has given up on the device.
        const FAILED = 128;
    }
}

/// A virtio device as its transport uses it.
///
/// The transport owns queues, features, status and interrupts. A device gets descriptor chains and
/// answers them, and does not depend on the transport.
///
/// Every method but [`process_chain`](Self::process_chain) runs on a vCPU's thread, with the transport's
/// lock held, and returns at once. `process_chain` may take as long as the host does. So a device keeps
/// what they share under locks of its own, and holds none of those while the host works.
pub trait VirtioDevice: Send + Sync {
    /// The device's type.
    fn device_type(&self) -> DeviceType;

    /// The feature bits of the device type that the device offers.
    fn features(&self) -> u64 {
        0
    }

    /// The largest size of each queue.
    fn queue_max_sizes(&self) -> &'static [u16];

    /// Fills `data` from the configuration space at `offset`; zeros past its end.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _ = offset;
        data.fill(0);
    }

    /// Takes what the driver writes to the configuration space at `offset`. Most of it is read-only.
    fn write_config(&self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Takes the features that the driver accepted. False refuses them: FEATURES_OK stays clear.
    fn accept_features(&self, features: u64) -> bool {
        let _ = features;
        true
    }

    /// Whether the device can use another chain of `queue` now. If not, the chain stays available.
    fn wants_chain(&self, queue: u16) -> bool {
        let _ = queue;
        true
    }

    /// Answers one chain of `queue`, and returns how many bytes were written to it. Calls for a queue
    /// come one after the other.
    fn process_chain(&self, queue: u16, chain: &Chain<'_>) -> u32;

    /// Everything that the driver made available on `queue` up to now has been answered.
    fn ran_empty(&self, queue: u16) {
        let _ = queue;
    }

    /// The driver reset the device. A chain may still be under way: it is not returned to the driver.
    fn reset(&self) {}
}

/// Fills `data` from `config` at `offset`, with zeros past the end of `config`. Any width and offset is
/// valid.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).map_or(config.len(), |offset| offset.min(config.len()));
    let available = &config[from..];
    let copied = available.len().min(data.len());
    data[..copied].copy_from_slice(&available[..copied]);
    data[copied..].fill(0);
}
