//! The monitors that are compared, and the machines that they run.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use bare_metal::{
    Program,
    virtio_mem::{MOAT_ECAM, Q35_ECAM, mmio_registers, pci_registers},
};
use testvm::vm::{Accelerator, Iommu, Vm, VmConfig, Vmm};
use virtio_driver::Registers;
use vmm::{
    Enforcement, MemoryDeviceConfig, VirtioTransport,
    memory::{backing::Backing, host::HostMemoryConfig},
};

/// What runs in the machines.
pub struct Guests {
    /// Linux.
    pub kernel: PathBuf,
    /// Its initramfs, with the agent and all modules.
    pub initramfs: Vec<u8>,
    /// The bare-metal guest, which drives devices on the host's commands.
    pub program: PathBuf,
}

/// Boots Linux.
pub fn boot(monitor: Monitor, config: &VmConfig) -> anyhow::Result<Vm> {
    Vm::boot(config).map_err(|trouble| anyhow!("{}: {trouble}\n{}", monitor.name, trouble.console))
}

/// A monitor, and how its machines differ from the usual.
#[derive(Clone, Copy)]
pub struct Monitor {
    pub name: &'static str,
    pub vmm: Vmm,
    pub virtio_transport: VirtioTransport,
    pub enforcement: Enforcement,
    /// Whether moat asks the host for transparent huge pages. QEMU always does.
    pub huge_pages: bool,
}

impl Monitor {
    pub const MOAT: Self = Self {
        name: "moat",
        vmm: Vmm::MoatProcess,
        virtio_transport: VirtioTransport::Mmio,
        enforcement: Enforcement::Strict,
        huge_pages: true,
    };
    pub const MOAT_PCI: Self =
        Self { name: "moat --transport pci", virtio_transport: VirtioTransport::Pci, ..Self::MOAT };
    pub const MOAT_SMALL_PAGES: Self =
        Self { name: "moat, huge-pages=off", huge_pages: false, ..Self::MOAT };
    pub const MOAT_UNENFORCED: Self =
        Self { name: "moat --enforce off", enforcement: Enforcement::Off, ..Self::MOAT };
    pub const QEMU_MICROVM: Self =
        Self { name: "QEMU microvm", vmm: Vmm::QemuMicrovm(Accelerator::Kvm), ..Self::MOAT };
    pub const QEMU_Q35: Self = Self {
        name: "QEMU q35",
        vmm: Vmm::Qemu(Accelerator::Kvm, Iommu::Virtio),
        virtio_transport: VirtioTransport::Pci,
        ..Self::MOAT
    };

    /// In the order of the report.
    pub const ALL: [Self; 6] = [
        Self::MOAT,
        Self::MOAT_PCI,
        Self::MOAT_SMALL_PAGES,
        Self::MOAT_UNENFORCED,
        Self::QEMU_MICROVM,
        Self::QEMU_Q35,
    ];

    /// A machine that runs Linux, with the agent at its second serial port.
    pub fn linux(self, guests: &Guests) -> VmConfig {
        VmConfig {
            initrd: guests.initramfs.clone(),
            // Movable, since memory that the kernel itself uses cannot be unplugged.
            parameters: "memhp_default_state=online_movable".to_owned(),
            ..self.machine(&guests.kernel)
        }
    }

    /// A machine that runs the bare-metal guest, with a virtio-mem device and its RAM in a file.
    pub fn bare_metal(self, guests: &Guests, ram: &Path, device: MemoryDeviceConfig) -> VmConfig {
        VmConfig {
            ram: Backing::File(ram.to_owned()).into(),
            memory_devices: vec![device],
            ..self.machine(&guests.program)
        }
    }

    /// How its guests' memory is allocated.
    pub fn memory(self) -> HostMemoryConfig {
        HostMemoryConfig { huge_pages: self.huge_pages, ..HostMemoryConfig::default() }
    }

    fn machine(self, kernel: &Path) -> VmConfig {
        VmConfig {
            virtio_transport: self.virtio_transport,
            enforcement: self.enforcement,
            ram: self.memory(),
            ..VmConfig::new(self.vmm, kernel.to_owned())
        }
    }

    /// The registers of its virtio-mem device, which `program` is to drive.
    pub fn registers(self, program: &mut Program) -> Registers {
        match (self.vmm, self.virtio_transport) {
            (_, VirtioTransport::Mmio) => mmio_registers(),
            (Vmm::MoatProcess, VirtioTransport::Pci) => pci_registers(program, MOAT_ECAM),
            (_, VirtioTransport::Pci) => pci_registers(program, Q35_ECAM),
        }
    }
}
