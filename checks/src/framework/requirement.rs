//! What a kernel must have for a scenario.

use testvm::{
    kernel::GuestKernel,
    vm::{BUS, DRIVER, Feature, IOMMU_DRIVER, Iommu, Vmm},
};

/// What a kernel, or the monitor that runs it, must have for a scenario. A kernel that came without its
/// configuration is taken to have what only the configuration shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// The virtio-mem driver as a module: cases start before it is loaded.
    Driver,
    /// /dev/mem.
    DevMem,
    /// Checks of I/O memory that `iomem=relaxed` can relax.
    IoStrictDevmem,
    /// /proc/kpageflags.
    PageFlags,
    /// Lockdown.
    Lockdown,
    /// Configurations that other settings would have led to.
    OtherConfigs,
    /// ACPI tables in an initramfs.
    AcpiTables,
    /// virtio-pci, built in or as a module.
    VirtioPci,
    /// uio_pci_generic.
    UioPciGeneric,
    /// virtio-mmio, built in or as a module.
    VirtioMmio,
    /// pci-stub.
    PciStub,
    /// A driver of the monitor's IOMMU.
    Iommu,
    /// vfio-pci, with an IOMMU or without.
    Vfio,
    /// VFIO by files of functions and iommufd, besides groups and containers.
    Iommufd,
    /// A feature that not every monitor has.
    Monitor(Feature),
}

impl Requirement {
    /// The modules that provide it.
    pub fn modules(self, kernel: &GuestKernel, vmm: Vmm) -> Vec<&'static str> {
        match self {
            Self::Driver => vec![BUS, DRIVER],
            Self::VirtioPci => vec![BUS],
            Self::UioPciGeneric => vec!["uio_pci_generic"],
            Self::PciStub => vec!["pci_stub"],
            Self::VirtioMmio => vec!["virtio_mmio"],
            Self::Iommu if vmm.iommu() == Iommu::Virtio => vec![BUS, IOMMU_DRIVER],
            Self::Vfio => {
                let mut modules = vec!["vfio_pci", "vfio_iommu_type1"];
                if Self::Iommu.missing_in(kernel, vmm).is_none() {
                    modules.extend(Self::Iommu.modules(kernel, vmm));
                }
                modules
            }
            _ => vec![],
        }
    }

    /// Why a kernel, or the monitor that runs it, does not have it, if so.
    pub fn missing_in(self, kernel: &GuestKernel, vmm: Vmm) -> Option<String> {
        let off = |symbol: &str| {
            let is_off = kernel.config().is_some_and(|config| !config.is_on(symbol));
            is_off.then(|| format!("{symbol} is off in this kernel"))
        };
        let module_missing = || {
            let modules = kernel.modules(&self.modules(kernel, vmm));
            modules.err().map(|error| error.to_string())
        };
        match self {
            Self::Driver if kernel.has_built_in(DRIVER) => Some(format!(
                "{DRIVER} is built into this kernel, but the case starts before it is loaded: make it a module"
            )),
            Self::Iommu if vmm.iommu() == Iommu::Intel => off("INTEL_IOMMU"),
            Self::Driver
            | Self::VirtioPci
            | Self::UioPciGeneric
            | Self::PciStub
            | Self::VirtioMmio
            | Self::Iommu => module_missing(),
            Self::Vfio => module_missing().or_else(|| {
                let no_iommu = Self::Iommu.missing_in(kernel, vmm)?;
                off("VFIO_NOIOMMU").map(|without| format!("{no_iommu}, and {without}"))
            }),
            Self::Monitor(feature) => vmm.lacks(feature).map(str::to_owned),
            Self::AcpiTables => off("ACPI_TABLE_UPGRADE"),
            Self::Iommufd => off("VFIO_DEVICE_CDEV"),
            Self::DevMem => off("DEVMEM"),
            Self::IoStrictDevmem => {
                off("IO_STRICT_DEVMEM").map(|why| format!("{why}: nothing is left to relax"))
            }
            Self::PageFlags => off("PROC_PAGE_MONITOR"),
            Self::Lockdown => off("SECURITY_LOCKDOWN_LSM"),
            Self::OtherConfigs => kernel.other_configs().is_empty().then(|| {
                "its directory has no kconfig/ with the configurations that other settings of the same \
                 source lead to"
                    .to_owned()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    fn kernel(config: &str, built_in: &str) -> GuestKernel {
        let directory = TempDir::new().unwrap();
        // A bzImage with all that is read of it: its header, and a paragraph of kernel.
        let mut image = vec![0; 0x410];
        for (at, bytes) in [
            (0x1f1, &b"\x01"[..]),
            (0x1f4, b"\x01"),
            (0x202, b"HdrS\x0f\x02"),
            (0x20e, b"\x00\x01"),
            (0x236, b"\x01"),
            (0x300, b"6.12.0 "),
        ] {
            image[at..at + bytes.len()].copy_from_slice(bytes);
        }
        fs::create_dir(directory.path().join("modules")).unwrap();
        for (path, contents) in [
            ("bzImage", image.as_slice()),
            ("release", b"6.12.0"),
            ("config", config.as_bytes()),
            ("modules/modules.dep", b""),
            ("modules/modules.builtin", built_in.as_bytes()),
        ] {
            fs::write(directory.path().join(path), contents).unwrap();
        }
        GuestKernel::open(directory.path()).unwrap()
    }

    #[test]
    fn the_reason_names_what_is_off() {
        let kernel = kernel("CONFIG_DEVMEM=y\n", "");
        assert_eq!(Requirement::DevMem.missing_in(&kernel, Vmm::Moat), None);
        for (requirement, named) in [
            (Requirement::IoStrictDevmem, "IO_STRICT_DEVMEM is off"),
            (Requirement::PageFlags, "PROC_PAGE_MONITOR is off"),
            (Requirement::Lockdown, "SECURITY_LOCKDOWN_LSM is off"),
            (Requirement::Driver, "no module"),
            (Requirement::OtherConfigs, "kconfig/"),
            (Requirement::AcpiTables, "ACPI_TABLE_UPGRADE is off"),
            (Requirement::UioPciGeneric, "no module uio_pci_generic"),
            (Requirement::Vfio, "no module"),
            (Requirement::Iommu, "no module"),
            (Requirement::Iommufd, "VFIO_DEVICE_CDEV is off"),
        ] {
            let why = requirement.missing_in(&kernel, Vmm::Moat).unwrap();
            assert!(why.contains(named), "{why}");
        }
    }

    #[test]
    fn a_built_in_driver_is_not_enough() {
        let kernel = kernel("", "virtio/virtio_mem.ko\nvirtio/virtio_mmio.ko\n");
        let why = Requirement::Driver.missing_in(&kernel, Vmm::Moat).unwrap();
        assert!(why.contains("make it a module"), "{why}");
    }
}
