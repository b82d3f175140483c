//! A machine as seen from outside.

use devices::virtio::iommu::IommuStatus;
use serde::{Deserialize, Serialize};

use crate::board::memory_device::{Enforcement, MemoryDeviceStatus};
use crate::board::pci::PciStatus;

/// Whether a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// It has ended.
    Ended,
}

/// A machine as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Whether it runs.
    pub state: RunState,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// KVM memory slots in use.
    pub memory_slots: u32,
    /// Whether unplugged memory is out of the guest's reach.
    pub enforcement: Enforcement,
    /// The virtio-mem devices.
    pub memory_devices: Vec<MemoryDeviceStatus>,
    /// PCI, if there is any.
    pub pci: Option<PciStatus>,
    /// The IOMMU, if there is one.
    pub iommu: Option<IommuStatus>,
}

/// The answer to a resize that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resizing {
    /// The device as it is now.
    #[serde(flatten)]
    pub device: MemoryDeviceStatus,
    /// What may go wrong, in words.
    pub warning: Option<String>,
}
