//! The virtual machine monitors whose guests are checked, and what each has to offer.

use std::fmt;

use devices::probe::Probe;
use serde::{Serialize, Serializer};
use vmm::VirtioTransport;

use crate::guest::Width;

/// What runs the guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vmm {
    /// moat, in this process.
    Moat,
    /// `moat run`, a process of its own, found by PATH.
    MoatProcess,
    /// QEMU's machine q35, and the IOMMU that it has if it has one.
    Qemu(Accelerator, Iommu),
    /// QEMU's machine microvm, without PCI.
    QemuMicrovm(Accelerator),
}

/// What executes a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU itself.
    Tcg,
}

/// An IOMMU's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Iommu {
    /// virtio-iommu. It does not remap interrupts.
    Virtio,
    /// Intel's VT-d.
    Intel,
}

/// A feature that not every monitor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// A function that raises MSI-X by a register write, and has a reset of its own.
    Probe,
    /// Functions behind a bridge to conventional PCI, with the IOMMU above them.
    ConventionalPci,
    /// Counters of what reaches the virtio-mem device and its unplugged memory.
    Counters,
}

/// A PCI function in a role: which it is, and the BAR that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// Its vendor's id.
    pub vendor: u16,
    /// Its id.
    pub device: u16,
    /// The number of a BAR with memory in it.
    pub bar: usize,
    /// A register in that BAR that always reads the same.
    pub identity: KnownRegister,
    /// The offset of 4 bytes in that BAR that may be written at any time.
    pub scratch: u64,
    /// Its DMA engine, with registers in that BAR.
    pub dma: Option<DmaEngine>,
    /// The 32-bit register in that BAR to write to assert INTx or deassert it, and the value.
    pub intx: Option<fn(is_asserted: bool) -> (u64, u32)>,
}

/// A device's DMA engine, which moves bytes between memory and a buffer of the device's.
#[derive(Clone, Copy, Debug)]
pub struct DmaEngine {
    /// The 32-bit registers to write, in this order, for a transfer of so many bytes.
    pub start: fn(Direction, address: u32, length: u32) -> [(u64, u32); 4],
    /// The register that shows whether a transfer is going on.
    pub status: u64,
    /// The bits of that register that show it: a mask, and their value during a transfer.
    pub busy: (u32, u32),
}

/// Where DMA goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From memory into the device's buffer.
    FromMemory,
    /// From the device's buffer to memory.
    ToMemory,
}

/// A register of a device, and what it reads.
#[derive(Clone, Copy, Debug)]
pub struct KnownRegister {
    /// Its offset in the BAR.
    pub offset: u64,
    /// How wide it is.
    pub width: Width,
    /// What it reads.
    pub value: u64,
}

/// Which functions play which role.
#[derive(Clone, Copy, Debug)]
pub struct Endpoints {
    /// A virtio function, which virtio-pci drives and claims the BAR of.
    pub driven: Endpoint,
    /// One that no driver claims, with a DMA engine and INTx.
    pub idle: Endpoint,
    /// One that no driver claims, with MSI-X, a ROM and power management, in a machine with an IOMMU.
    pub equipped: Endpoint,
    /// One whose 64-bit BAR is as large as the virtio-mem region.
    pub large_bar: Endpoint,
}

/// A virtio-rng device, with its common configuration at the start of a BAR: virtio 1.3, 4.1.4.3.
/// It has one queue. Which feature bits are shown may be chosen at any time.
const VIRTIO_RNG: Endpoint = Endpoint {
    vendor: 0x1af4,
    device: 0x1044,
    bar: 4,
    identity: KnownRegister { offset: 0x12, width: Width::Word, value: 1 },
    scratch: 0,
    dma: None,
    intx: None,
};

/// QEMU's docs/specs/edu.rst: its identification, and the register that inverts what is written.
const EDU: Endpoint = Endpoint {
    vendor: 0x1234,
    device: 0x11e8,
    bar: 0,
    identity: KnownRegister { offset: 0, width: Width::Long, value: 0x0100_00ed },
    scratch: 4,
    dma: Some(DmaEngine { start: edu_transfer, status: 0x98, busy: (1, 1) }),
    intx: Some(|is_asserted| (if is_asserted { 0x60 } else { 0x64 }, 1)),
};

/// Source, destination, number of bytes and command: 1 starts, and 2 is for DMA to memory.
fn edu_transfer(direction: Direction, address: u32, length: u32) -> [(u64, u32); 4] {
    const BUFFER: u32 = 0x4_0000;
    let (source, destination, command) = match direction {
        Direction::FromMemory => (address, BUFFER, 1),
        Direction::ToMemory => (BUFFER, address, 1 | 2),
    };
    [(0x80, source), (0x88, destination), (0x90, length), (0x98, command)]
}

const ZEROS: KnownRegister = KnownRegister { offset: 0, width: Width::Long, value: 0 };

/// Intel 82574: the VLAN ethertype, which reset sets, and the flow control timer.
const E1000E: Endpoint = Endpoint {
    vendor: 0x8086,
    device: 0x10d3,
    bar: 0,
    identity: KnownRegister { offset: 0x38, width: Width::Long, value: 0x8100 },
    scratch: 0x170,
    dma: None,
    intx: None,
};

/// QEMU's docs/specs/pci-testdev.rst: with `membar`, plain memory.
const PCI_TESTDEV: Endpoint = Endpoint {
    vendor: 0x1b36,
    device: 0x0005,
    bar: 2,
    identity: ZEROS,
    scratch: 0,
    dma: None,
    intx: None,
};

/// docs/probe.md: its registers, with a magic number and an area without a meaning.
const PROBE: Endpoint = Endpoint {
    vendor: Probe::IDENTITY.vendor,
    device: Probe::IDENTITY.device,
    bar: 0,
    identity: KnownRegister { offset: 0, width: Width::Long, value: 0x7461_6f6d },
    scratch: 0x200,
    dma: Some(DmaEngine { start: probe_transfer, status: 0x008, busy: (u32::MAX, 1) }),
    intx: Some(|is_asserted| (0x104, is_asserted.into())),
};

/// Address, its high half, length and command.
fn probe_transfer(direction: Direction, address: u32, length: u32) -> [(u64, u32); 4] {
    let command = match direction {
        Direction::FromMemory => 1,
        Direction::ToMemory => 2,
    };
    [(0x108, address), (0x10c, 0), (0x110, length), (0x11c, command)]
}

impl Vmm {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Moat => "moat",
            Self::MoatProcess => "moat run",
            Self::Qemu(_, Iommu::Virtio) => "QEMU",
            Self::Qemu(_, Iommu::Intel) => "QEMU with VT-d",
            Self::QemuMicrovm(_) => "QEMU microvm",
        }
    }

    /// What executes its guests' instructions.
    pub fn accelerator(self) -> Accelerator {
        match self {
            Self::Moat | Self::MoatProcess => Accelerator::Kvm,
            Self::Qemu(accelerator, _) | Self::QemuMicrovm(accelerator) => accelerator,
        }
    }

    /// How drivers reach its virtio devices by default.
    pub(super) fn usual_transport(self) -> VirtioTransport {
        match self {
            Self::Moat | Self::MoatProcess | Self::QemuMicrovm(_) => VirtioTransport::Mmio,
            Self::Qemu(..) => VirtioTransport::Pci,
        }
    }

    /// Why it lacks a feature, if it does.
    pub fn lacks(self, feature: Feature) -> Option<&'static str> {
        match (self, feature) {
            (Self::Moat, _) => None,
            (Self::MoatProcess, Feature::Counters) => {
                Some("the counters of a moat process are not read by the checks")
            }
            (Self::MoatProcess, _) => None,
            (Self::Qemu(..) | Self::QemuMicrovm(_), Feature::Counters) => {
                Some("QEMU does not count what reaches its virtio-mem device")
            }
            (Self::QemuMicrovm(_), _) => Some("QEMU's machine microvm has no PCI"),
            (Self::Qemu(_, Iommu::Virtio), Feature::ConventionalPci) => {
                Some("QEMU's virtio-iommu has no endpoints behind a bridge to conventional PCI")
            }
            (Self::Qemu(_, Iommu::Intel), Feature::ConventionalPci) => None,
            (Self::Qemu(..), Feature::Probe) => Some(
                "QEMU has no device with a reset of its own that raises MSI-X by a register write",
            ),
        }
    }

    /// The IOMMU of its machines that have one.
    pub fn iommu(self) -> Iommu {
        match self {
            Self::Moat | Self::MoatProcess | Self::QemuMicrovm(_) => Iommu::Virtio,
            Self::Qemu(_, iommu) => iommu,
        }
    }

    /// Its PCI functions.
    pub fn endpoints(self) -> Endpoints {
        match self {
            Self::Moat | Self::MoatProcess => Endpoints {
                driven: Endpoint { bar: 0, ..VIRTIO_RNG },
                idle: PROBE,
                equipped: PROBE,
                // Its memory, plain bytes.
                large_bar: Endpoint { bar: 2, identity: ZEROS, scratch: 0, dma: None, ..PROBE },
            },
            Self::Qemu(..) | Self::QemuMicrovm(_) => Endpoints {
                driven: VIRTIO_RNG,
                idle: EDU,
                equipped: E1000E,
                large_bar: PCI_TESTDEV,
            },
        }
    }
}

impl Accelerator {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Iommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Virtio => "virtio-iommu",
            Self::Intel => "VT-d",
        })
    }
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moat | Self::MoatProcess => f.write_str(self.name()),
            Self::Qemu(accelerator, _) | Self::QemuMicrovm(accelerator) => {
                write!(f, "{}, {}", self.name(), accelerator.name())
            }
        }
    }
}

impl Serialize for Vmm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
