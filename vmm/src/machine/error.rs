//! Why a machine cannot be created, or a request to it fails.

use devices::virtio::console::ConsoleError;
use devices::virtio::fs::InvalidTag;
use devices::virtio::mem::ResizeError;
use thiserror::Error;

use super::files::InitrdError;
use crate::arch::x86_64::boot::BootError;
use crate::board::memory_device::MemoryDeviceError;
use crate::board::worker::WorkerError;
use crate::firmware::acpi::AcpiError;
use crate::kvm::KvmError;
use crate::kvm::VcpuError;
use crate::memory::MemoryError;
use crate::symbols::SymbolFileError;

/// Why a machine cannot be created or started.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum MachineError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error("invalid number of vCPUs {requested}: this KVM runs 1 to {maximum}")]
    VcpuCount { requested: u32, maximum: u32 },
    #[error(
        "invalid memory size {requested}: expected a multiple of 4096 bytes, at least {minimum}{}",
        if *requested < 1 << 16 { format!("; did you mean {requested}M?") } else { String::new() }
    )]
    MemorySize { requested: u64, minimum: u64 },
    #[error(
        "memory up to {end:#x} is beyond the {bits} bits of a guest physical address on this host; \
         use less memory or smaller virtio-mem regions"
    )]
    AddressSpace { end: u64, bits: u32 },
    #[error(
        "{requested} virtio-mem devices: virtio-mmio has interrupts for {maximum}; use virtio-pci, \
         which has room for more"
    )]
    TooManyDevices { requested: usize, maximum: usize },
    #[error(
        "{requested} shared directories, the root among them: virtio-mmio has interrupts for {maximum}; \
         use virtio-pci, which has room for more"
    )]
    TooManyFileSystems { requested: usize, maximum: usize },
    #[error(transparent)]
    Console(#[from] ConsoleError),
    #[error(transparent)]
    FileSystem(#[from] InvalidTag),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    MemoryDevice(#[from] MemoryDeviceError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    #[error(transparent)]
    Symbols(#[from] SymbolFileError),
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error("cannot put a device on the bus: {0}")]
    Bus(#[from] devices::bus::BusError),
    #[error("cannot build a PCI function: {0}")]
    PciFunction(#[from] devices::pci::FunctionError),
    #[error("cannot put a device on PCI: {0}")]
    PciTopology(#[from] devices::pci::TopologyError),
    #[error("cannot lay out memory: {0}")]
    Layout(#[from] vm_memory::GuestRegionCollectionError),
    #[error("cannot make memory available to devices: {0}")]
    DmaMemory(#[from] devices::dma::UnsortedRegions),
    #[error("{what}: {source}")]
    Host { what: &'static str, source: std::io::Error },
    #[error("the machine was stopped while it was starting")]
    Stopped,
}

/// The machine is starting, starting again after a reset, or has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the machine is not running: it is starting, or has ended")]
pub struct NotRunning;

impl MachineError {
    /// For `map_err` on an error of the host.
    pub(super) fn host(what: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Host { what, source }
    }

    /// For `map_err` on the ioctl called `name`.
    pub(super) fn kvm(name: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Vcpu(VcpuError::Ioctl { name, source })
    }
}

/// Why a resize is refused.
#[derive(Debug, Error)]
pub enum ResizeRefused {
    /// There is no running guest whose driver could be asked.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// There is no such device.
    #[error("there is no device {id}; this machine has {known}")]
    UnknownDevice {
        /// The name in the request.
        id: String,
        /// The names of the devices that exist.
        known: String,
    },
    /// The size is invalid.
    #[error("{id}: {source}")]
    Size {
        /// The device.
        id: String,
        /// Why.
        source: ResizeError,
    },
}
