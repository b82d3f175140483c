//! What a machine consists of.

use std::path::PathBuf;

use crate::arch::x86_64::boot::BootProtocol;
use crate::board::memory_device::{Enforcement, MemoryDeviceConfig};
use crate::board::pci::PciPlace;
use crate::board::serial::SerialEndpoint;
use crate::memory::backing::Backing;
use crate::memory::host::HostMemoryConfig;

/// How drivers reach virtio devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VirtioTransport {
    /// Registers in memory that ACPI tells of.
    #[default]
    Mmio,
    /// A PCI function each, on bus 0.
    Pci,
}

/// A probe device to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeConfig {
    /// Where it is.
    pub place: PciPlace,
    /// How many functions it has, each a probe of its own.
    pub functions: u8,
    /// Bytes of the memory in its BAR 2, a power of two.
    pub memory: u32,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self { place: PciPlace::default(), functions: 1, memory: 64 << 10 }
    }
}

/// A virtio-iommu to be, with every device behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IommuConfig {
    /// Whether devices reach memory by guest addresses until a driver says otherwise. A kernel
    /// without such a driver cannot use them else.
    pub bypass: bool,
}

impl Default for IommuConfig {
    fn default() -> Self {
        Self { bypass: true }
    }
}

/// What becomes of a machine that its guest resets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnReset {
    /// It ends.
    #[default]
    End,
    /// It starts anew, with everything as it was at first but the sizes requested of its memory
    /// devices: nothing is plugged, and the kernel and the initramfs are loaded again. A triple fault
    /// counts as a reset, as it does on a PC.
    Restart,
}

/// A machine to be.
pub struct MachineConfig {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// How its RAM is had from the host.
    pub ram: HostMemoryConfig,
    /// The kernel image, a bzImage or a vmlinux.
    pub kernel: PathBuf,
    /// How to enter it.
    pub protocol: BootProtocol,
    /// The initramfs; empty for none.
    pub initrd: Vec<u8>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Where the names of the kernel's functions are: a System.map, a copy of /proc/kallsyms, or a
    /// vmlinux. None to find them in the guest's memory.
    pub symbols: Option<PathBuf>,
    /// How drivers reach virtio devices.
    pub virtio_transport: VirtioTransport,
    /// Its virtio-mem devices, `mem0` first.
    pub memory_devices: Vec<MemoryDeviceConfig>,
    /// Its probe devices. With none of them, and virtio over MMIO, there is no PCI at all.
    pub probes: Vec<ProbeConfig>,
    /// Its IOMMU, if it has one.
    pub iommu: Option<IommuConfig>,
    /// Whether unplugged memory is really gone.
    pub enforcement: Enforcement,
    /// What happens when the guest resets the machine.
    pub on_reset: OnReset,
    /// ttyS0.
    pub console: SerialEndpoint,
    /// ttyS1, which serves before any virtio driver is loaded.
    pub agent: SerialEndpoint,
}

impl MachineConfig {
    /// The least RAM that a kernel can be loaded into.
    pub const MINIMUM_MEMORY: u64 = 16 << 20;

    /// A machine that boots `kernel` and has as little as there can be.
    pub fn new(kernel: PathBuf) -> Self {
        Self {
            vcpus: 1,
            memory: 128 << 20,
            ram: Backing::default().into(),
            kernel,
            protocol: BootProtocol::Auto,
            initrd: Vec::new(),
            cmdline: String::new(),
            symbols: None,
            virtio_transport: VirtioTransport::default(),
            memory_devices: Vec::new(),
            probes: Vec::new(),
            iommu: None,
            enforcement: Enforcement::default(),
            on_reset: OnReset::default(),
            console: SerialEndpoint::null(),
            agent: SerialEndpoint::null(),
        }
    }
}
