//! The guests that cases run in.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use testvm::{MIB, vm::Special};

use super::misaligned_device;

/// A guest: how its kernel is started, and what its virtio-mem device requests at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// As most kernels run. What becomes of added memory is the kernel's own default.
    Plain,
    /// The checks of I/O memory relaxed. Added memory is for the kernel, and may stay for good.
    Relaxed,
    /// Added memory is for what can be moved away, so that it can be unplugged.
    Movable,
    /// Added memory waits for somebody to bring it online.
    Offline,
    /// Nobody may change the running kernel.
    Lockdown,
    /// A BAR may be anywhere, over the virtio-mem region too, and nothing is plugged.
    Overlaid,
    /// Likewise, with memory plugged, and the checks of I/O memory relaxed.
    OverlaidRelaxed,
    /// There is an IOMMU, and it is in use.
    Iommu,
    /// Likewise, and nothing keeps a device from raising interrupts that are not its own.
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
        Self::Overlaid,
        Self::OverlaidRelaxed,
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
            Self::Overlaid => "overlaid",
            Self::OverlaidRelaxed => "overlaid, relaxed",
            Self::Iommu => "IOMMU",
            Self::IommuWithoutRemapping => "IOMMU, no remapping",
            Self::Misaligned => "misaligned",
        }
    }

    /// The kernel's parameters.
    pub fn parameters(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Overlaid => "pci=nocrs",
            Self::OverlaidRelaxed => "pci=nocrs iomem=relaxed",
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
        self.special() == Special::Iommu
    }

    /// Bytes that the device requests when the guest starts.
    pub fn requested(self) -> u64 {
        match self {
            // So that VM6, which comes first there, sees a region in which nothing ever was, and
            // VM9 a claim of the driver's that holds no memory yet.
            Self::Offline | Self::Overlaid => 0,
            _ => 256 * MIB,
        }
    }

    /// What is special about its machine.
    pub fn special(self) -> Special {
        match self {
            Self::Overlaid | Self::OverlaidRelaxed => Special::LargeBar,
            Self::Iommu | Self::IommuWithoutRemapping => Special::Iommu,
            _ => Special::None,
        }
    }

    /// An ACPI table in its initramfs.
    pub fn acpi_table(self) -> Option<Vec<u8>> {
        (self == Self::Misaligned).then(misaligned_device::acpi_table)
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
        found.ok_or_else(|| D::Error::custom(format!("there is no guest {name}")))
    }
}
