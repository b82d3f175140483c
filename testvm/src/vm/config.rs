//! What a virtual machine is to consist of, whichever monitor makes it.

use std::path::PathBuf;

use vmm::{
    Enforcement, MachineSpec, MemoryDeviceConfig, OnReset, ProbeConfig, VirtioTransport,
    arch::x86_64::boot::BootProtocol,
    memory::{backing::Backing, host::HostMemoryConfig},
};

use super::{Accelerator, Vmm};
use crate::{
    MIB,
    initramfs::Initramfs,
    kernel::{GuestKernel, KernelError},
};

/// The description of a virtual machine. A monitor that cannot make it fails with
/// [`VmError::Unsupported`](super::VmError::Unsupported) before it starts anything.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// What runs it.
    pub vmm: Vmm,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// How its RAM is allocated from the host.
    pub ram: HostMemoryConfig,
    /// The kernel image, or a bare-metal program.
    pub kernel: PathBuf,
    /// How to enter it. QEMU chooses by itself.
    pub protocol: BootProtocol,
    /// The initramfs; empty for none.
    pub initrd: Vec<u8>,
    /// Parameters for the kernel, besides those for its console and for ending when it panics.
    pub parameters: String,
    /// How drivers reach virtio devices.
    pub virtio_transport: VirtioTransport,
    /// Its virtio-mem devices: `mem0`, `mem1` and so on.
    pub memory_devices: Vec<MemoryDeviceConfig>,
    /// Whether it has a virtio-rng device. moat's machines always do.
    pub entropy: bool,
    /// PCI devices that no driver claims, with a DMA engine. On QEMU these are `edu`, and for one with
    /// memory of another size than usual there is a `pci-testdev` with that memory too.
    pub probes: Vec<ProbeConfig>,
    /// Whether it has an Intel 82574 without a network: a function with MSI-X, a ROM and power
    /// management, as moat's probes have them.
    pub nic: bool,
    /// Its IOMMU, with every device behind it.
    pub iommu: Option<IommuConfig>,
    /// Whether unplugged memory is out of the guest's reach. On QEMU it never is.
    pub enforcement: Enforcement,
    /// What happens when the guest resets the machine.
    pub on_reset: OnReset,
}

/// The description of an IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IommuConfig {
    /// virtio-iommu.
    Virtio {
        /// Whether devices reach memory by guest addresses until a driver configures the IOMMU.
        bypass: bool,
    },
    /// Intel's VT-d, with interrupt remapping.
    Intel,
}

impl VmConfig {
    /// A machine with 1 vCPU, 512 MiB and no devices that boots `kernel`.
    pub fn new(vmm: Vmm, kernel: PathBuf) -> Self {
        Self {
            vmm,
            vcpus: 1,
            // Less than 4 GiB, so that a virtio-mem region is the first thing above it.
            memory: 512 * MIB,
            ram: Backing::default().into(),
            kernel,
            protocol: BootProtocol::default(),
            initrd: Vec::new(),
            parameters: String::new(),
            virtio_transport: vmm.usual_transport(),
            memory_devices: Vec::new(),
            entropy: false,
            probes: Vec::new(),
            nic: false,
            iommu: None,
            enforcement: Enforcement::default(),
            on_reset: OnReset::default(),
        }
    }

    /// Such a machine that boots Linux with the agent and these modules.
    pub fn linux(vmm: Vmm, kernel: &GuestKernel, modules: &[&str]) -> Result<Self, KernelError> {
        let initrd = Initramfs::new().with_modules(kernel.modules(modules)?).build();
        Ok(Self { initrd, ..Self::new(vmm, kernel.image().to_owned()) })
    }

    /// The kernel's command line.
    pub(super) fn command_line(&self) -> String {
        // On KVM the kernel skips this check by itself. Emulated, on a busy machine, the check would find
        // that the timer does not work.
        let timer = match self.vmm.accelerator() {
            Accelerator::Kvm => "",
            Accelerator::Tcg => "no_timer_check ",
        };
        format!("{} {timer}{}", MachineSpec::DEFAULT_COMMAND_LINE, self.parameters)
    }

    /// Whether its memory has no settings besides sizes, block sizes and backings.
    pub(super) fn has_plain_memory(&self) -> bool {
        self.ram == self.ram.backing.clone().into()
            && self.memory_devices.iter().all(|device| {
                let memory = device.memory.backing.clone().into();
                let MemoryDeviceConfig { size, requested, block_size, .. } = *device;
                let plain = MemoryDeviceConfig::new(size.0);
                *device == MemoryDeviceConfig { requested, block_size, memory, ..plain }
            })
    }
}
