//! The kernel's protections of device memory, each of which a kernel may lack.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A protection that a kernel may have been built without, or be too old for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mitigation {
    /// IO_STRICT_DEVMEM: what a driver has claimed is closed, and mappings of it are torn down.
    IoStrictDevmem,
    /// Mappings of PCI BARs by sysfs and procfs are torn down too, and procfs looks at claims before it
    /// makes new ones: Linux 5.12.
    PciRevocation,
    /// The virtio-mem region is EXCLUSIVE, whatever the policy for other devices: Linux 5.16.
    ExclusiveRegion,
    /// VFIO denies accesses to BARs that are not decoded: Linux 5.8.
    VfioMemoryCheck,
    /// VFIO tears mappings of BARs down when they are no longer decoded: Linux 5.8.
    VfioZap,
    /// VFIO denies accesses to functions in D3hot: Linux 5.19.
    VfioPowerCheck,
    /// No driver binds in an IOMMU group that user space owns: Linux 5.19.
    GroupOwnership,
    /// User space is refused a group in which a driver has bound: Linux 5.19.
    GroupClaim,
}

impl Mitigation {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::IoStrictDevmem,
        Self::PciRevocation,
        Self::ExclusiveRegion,
        Self::VfioMemoryCheck,
        Self::VfioZap,
        Self::VfioPowerCheck,
        Self::GroupOwnership,
        Self::GroupClaim,
    ];

    /// Its name on command lines and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::IoStrictDevmem => "io-strict-devmem",
            Self::PciRevocation => "pci-revocation",
            Self::ExclusiveRegion => "exclusive-region",
            Self::VfioMemoryCheck => "vfio-memory-check",
            Self::VfioZap => "vfio-zap",
            Self::VfioPowerCheck => "vfio-power-check",
            Self::GroupOwnership => "group-ownership",
            Self::GroupClaim => "group-claim",
        }
    }

    /// What a kernel with it does, and which kernels have it.
    pub fn description(self) -> &'static str {
        match self {
            Self::IoStrictDevmem => {
                "what a driver has claimed is closed, and mappings of it are torn down \
                 (CONFIG_IO_STRICT_DEVMEM)"
            }
            Self::PciRevocation => {
                "mappings of BARs by sysfs and procfs are torn down too (Linux 5.12)"
            }
            Self::ExclusiveRegion => "the virtio-mem region is EXCLUSIVE (Linux 5.16)",
            Self::VfioMemoryCheck => {
                "VFIO denies accesses to BARs that are not decoded (Linux 5.8)"
            }
            Self::VfioZap => {
                "VFIO tears mappings of BARs down when they are no longer decoded (Linux 5.8)"
            }
            Self::VfioPowerCheck => "VFIO denies accesses to functions in D3hot (Linux 5.19)",
            Self::GroupOwnership => {
                "no driver binds in an IOMMU group that user space owns (Linux 5.19)"
            }
            Self::GroupClaim => {
                "user space is refused an IOMMU group in which a driver has bound (Linux 5.19)"
            }
        }
    }
}

impl fmt::Display for Mitigation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of a mitigation that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("unknown mitigation {0}: expected one of {names}", names = Mitigation::ALL.map(Mitigation::name).join(", "))]
pub struct UnknownMitigation(String);

impl FromStr for Mitigation {
    type Err = UnknownMitigation;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|mitigation| mitigation.name() == name);
        found.ok_or_else(|| UnknownMitigation(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mitigation_has_one_name_everywhere() {
        for mitigation in Mitigation::ALL {
            assert_eq!(mitigation.name().parse::<Mitigation>().unwrap(), mitigation);
            assert_eq!(serde_json::to_value(mitigation).unwrap(), mitigation.name());
        }
        let error = "everything".parse::<Mitigation>().unwrap_err().to_string();
        assert!(error.contains("everything: expected one of io-strict-devmem, "), "{error}");
    }
}
