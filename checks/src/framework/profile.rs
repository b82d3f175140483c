//! The guests that cases run in.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use testvm::{
    MIB,
    initramfs::Initramfs,
    kernel::GuestKernel,
    vm::{Iommu, IommuConfig, VmConfig, VmError, Vmm},
};
use vmm::{MemoryDeviceConfig, PciPlace, ProbeConfig, Size, VirtioTransport};

use super::misaligned_device;

/// Bytes of the virtio-mem region.
const REGION_SIZE: u64 = 1024 * MIB;

/// A guest: its kernel's parameters, its devices, and what its virtio-mem device requests at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// No parameters. Added memory is used as by the kernel's own default.
    Plain,
    /// The checks of I/O memory relaxed. Added memory is for the kernel, and may stay for good.
    Relaxed,
    /// Added memory is in ZONE_MOVABLE, so that it can be unplugged.
    Movable,
    /// Added memory stays offline until user space brings it online.
    Offline,
    /// Lockdown: user space may not change the running kernel.
    Lockdown,
    /// A BAR may be anywhere, over the virtio-mem region too, and nothing is plugged.
    BarOverRegion,
    /// Likewise, with memory plugged, and the checks of I/O memory relaxed.
    BarOverRegionRelaxed,
    /// There is an IOMMU, and it is in use.
    Iommu,
    /// Likewise, without interrupt remapping: a device can raise any interrupt.
    IommuWithoutRemapping,
    /// A device has registers that do not start on a page boundary.
    Misaligned,
}

impl Profile {
    /// All of them, in the order in which they are started.
    pub const ALL: [Self; 10] = [
        Self::Plain,
        Self::Relaxed,
        Self::Movable,
        Self::Offline,
        Self::Lockdown,
        Self::BarOverRegion,
        Self::BarOverRegionRelaxed,
        Self::Iommu,
        Self::IommuWithoutRemapping,
        Self::Misaligned,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Relaxed => "relaxed",
            Self::Movable => "movable",
            Self::Offline => "offline",
            Self::Lockdown => "lockdown",
            Self::BarOverRegion => "BAR over region",
            Self::BarOverRegionRelaxed => "BAR over region, relaxed",
            Self::Iommu => "IOMMU",
            Self::IommuWithoutRemapping => "IOMMU, no remapping",
            Self::Misaligned => "misaligned",
        }
    }

    /// The kernel's parameters.
    pub fn parameters(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::BarOverRegion => "pci=nocrs",
            Self::BarOverRegionRelaxed => "pci=nocrs iomem=relaxed",
            Self::Relaxed => "iomem=relaxed memhp_default_state=online_kernel",
            Self::Movable => "memhp_default_state=online_movable",
            Self::Offline => "memhp_default_state=offline",
            Self::Lockdown => "lockdown=integrity",
            // A kernel that hits a BUG ends there, and does not go on with locks held.
            Self::Iommu => "intel_iommu=on oops=panic",
            Self::IommuWithoutRemapping => "intel_iommu=on intremap=off",
            Self::Misaligned => misaligned_device::PARAMETERS,
        }
    }

    /// The parameters, in words where there are none.
    pub fn summary(self) -> &'static str {
        match self.parameters() {
            "" => "no parameters",
            parameters => parameters,
        }
    }

    /// Whether its machine has an IOMMU.
    pub fn has_iommu(self) -> bool {
        matches!(self, Self::Iommu | Self::IommuWithoutRemapping)
    }

    /// Bytes that the device requests when the guest starts.
    pub fn requested(self) -> u64 {
        match self {
            // So that VM6, which comes first there, sees a region in which nothing ever was, and
            // VM9 a claim of the driver's that holds no memory yet.
            Self::Offline | Self::BarOverRegion => 0,
            _ => 256 * MIB,
        }
    }

    /// Its machine, with these modules in its initramfs.
    pub fn machine(
        self,
        vmm: Vmm,
        kernel: &GuestKernel,
        modules: &[&str],
    ) -> Result<VmConfig, VmError> {
        let mut initramfs = Initramfs::new().with_modules(kernel.modules(modules)?);
        if self == Self::Misaligned {
            initramfs = initramfs.with_acpi_table(misaligned_device::acpi_table());
        }
        let device = MemoryDeviceConfig {
            requested: Size(self.requested()),
            ..MemoryDeviceConfig::new(REGION_SIZE)
        };
        Ok(VmConfig {
            initrd: initramfs.build(),
            // What goes wrong before there is a driver for the console is printed, too.
            parameters: format!("earlyprintk=ttyS0,115200 {}", self.parameters()),
            virtio_transport: VirtioTransport::Pci,
            memory_devices: vec![device],
            entropy: true,
            probes: self.probes(),
            nic: self.has_iommu() && vmm != Vmm::Moat,
            iommu: self.has_iommu().then(|| match vmm.iommu() {
                Iommu::Virtio => IommuConfig::Virtio { bypass: vmm == Vmm::Moat },
                Iommu::Intel => IommuConfig::Intel,
            }),
            ..VmConfig::new(vmm, kernel.image().to_owned())
        })
    }

    /// The first is the one that is idle. With an IOMMU there are two in one slot, two behind a bridge to
    /// conventional PCI, and one behind each of two root ports, without access control and with.
    fn probes(self) -> Vec<ProbeConfig> {
        let idle = ProbeConfig::default();
        match self {
            // A BAR as large as the virtio-mem region.
            Self::BarOverRegion | Self::BarOverRegionRelaxed => {
                vec![ProbeConfig { memory: REGION_SIZE as u32, ..idle }]
            }
            Self::Iommu | Self::IommuWithoutRemapping => {
                let at = |place| ProbeConfig { place, ..idle };
                vec![
                    idle,
                    ProbeConfig { functions: 2, ..idle },
                    at(PciPlace::ConventionalBridge),
                    at(PciPlace::ConventionalBridge),
                    at(PciPlace::RootPort { access_control: false }),
                    at(PciPlace::RootPort { access_control: true }),
                ]
            }
            _ => vec![idle],
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Profile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Profile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = Self::ALL.into_iter().find(|profile| profile.name() == name);
        found.ok_or_else(|| D::Error::custom(format!("unknown guest {name}")))
    }
}
