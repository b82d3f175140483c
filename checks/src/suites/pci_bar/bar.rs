//! A PCI device's BAR in a guest, and the ways to it from user space.

use std::{fmt, ops::Range};

use testvm::{
    PAGE,
    guest::{
        Denial, Errno, File, GuestError, Mapping, Observe as _, OpenFlags, PciFunction, Process,
        Protection, Sharing,
    },
    vm::{BarAccesses, Endpoint, Vm, VmError},
};

use crate::framework::{Expect as _, Expected, Finding, Mitigation};

/// The driver that claims the BARs of virtio functions, and its module.
const VIRTIO_PCI: &str = "virtio-pci";
const VIRTIO_PCI_MODULE: &str = "virtio_pci";

/// A way to map a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// /dev/mem.
    DevMem,
    /// sysfs: the file `resourceN`.
    Sysfs,
    /// sysfs: the file `resourceN_wc`, which only prefetchable BARs have.
    WriteCombining,
    /// procfs: `/proc/bus/pci/BB/DD.F`.
    Procfs,
}

impl Way {
    const ALL: [Self; 4] = [Self::DevMem, Self::Sysfs, Self::WriteCombining, Self::Procfs];

    /// What becomes of it where a driver has claimed the BAR: `devmem_is_allowed()` gives EPERM,
    /// `pci_mmap_resource()` and `proc_bus_pci_mmap()` give EINVAL.
    pub fn refused(self) -> Expected {
        match self {
            Self::DevMem => Errno::EPERM.by(&[Mitigation::IoStrictDevmem]),
            Self::Sysfs | Self::WriteCombining => Errno::EINVAL.by(&[Mitigation::IoStrictDevmem]),
            Self::Procfs => {
                Errno::EINVAL.by(&[Mitigation::IoStrictDevmem, Mitigation::PciRevocation])
            }
        }
    }

    /// What has mappings torn down that were made so.
    pub fn torn_down_by(self) -> &'static [Mitigation] {
        match self {
            Self::DevMem => &[Mitigation::IoStrictDevmem],
            Self::Sysfs | Self::WriteCombining | Self::Procfs => {
                &[Mitigation::IoStrictDevmem, Mitigation::PciRevocation]
            }
        }
    }

    /// What becomes of an access by a mapping that was made so when a driver claims the BAR.
    pub fn torn_down(self) -> Expected {
        Denial::SIGBUS.by(self.torn_down_by())
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DevMem => "/dev/mem",
            Self::Sysfs => "sysfs",
            Self::WriteCombining => "sysfs, write-combining",
            Self::Procfs => "procfs",
        })
    }
}

/// A BAR, and a process that asks for it.
#[derive(Clone, Debug)]
pub struct Bar {
    /// The function that it is of.
    pub function: PciFunction,
    /// Its guest physical addresses.
    pub range: Range<u64>,
    endpoint: Endpoint,
    process: Process,
}

impl Bar {
    /// That of the virtio function, which no driver has claimed now.
    pub fn driven(vm: &Vm) -> Result<Self, VmError> {
        // Built in or loaded already, it is there.
        vm.guest.load_module(VIRTIO_PCI_MODULE, "").outcome()?;
        let bar = Self::of(vm, vm.vmm().endpoints().driven)?;
        bar.release()?;
        bar.function.decode_memory()?;
        Ok(bar)
    }

    /// That of the function that no driver claims.
    pub fn idle(vm: &Vm) -> Result<Self, VmError> {
        let bar = Self::of(vm, vm.vmm().endpoints().idle)?;
        bar.function.decode_memory()?;
        Ok(bar)
    }

    /// That of the function in a role.
    pub fn of(vm: &Vm, endpoint: Endpoint) -> Result<Self, VmError> {
        let function = vm
            .guest
            .pci_function(endpoint.vendor, endpoint.device)?
            .ok_or(VmError::Absent("PCI function that its machine should have"))?;
        let range = function
            .bar(endpoint.bar)?
            .ok_or(VmError::Absent("memory in the BAR of a PCI function"))?;
        Ok(Self { function, range, endpoint, process: vm.guest.spawn()? })
    }

    /// The ways to it.
    pub fn ways(&self) -> Result<Vec<Way>, VmError> {
        let has_write_combining = self.function.has_file(&self.file_name(Way::WriteCombining))?;
        let is_there = |way: &Way| *way != Way::WriteCombining || has_write_combining;
        Ok(Way::ALL.into_iter().filter(is_there).collect())
    }

    /// Has a driver claim it.
    pub fn claim(&self) -> Result<(), GuestError> {
        self.function.bind(VIRTIO_PCI)
    }

    /// Takes the driver away.
    pub fn release(&self) -> Result<(), GuestError> {
        self.function.unbind()
    }

    /// Maps its first page in every way.
    pub fn map_every_way(&self) -> Result<Vec<(Way, Mapping)>, VmError> {
        self.ways()?.into_iter().map(|way| Ok((way, self.map(way)?))).collect()
    }

    /// Maps its first page.
    pub fn map(&self, way: Way) -> Result<Mapping, GuestError> {
        self.map_as(way, Sharing::Shared)
    }

    /// Maps its first page, shared or not.
    pub fn map_as(&self, way: Way, sharing: Sharing) -> Result<Mapping, GuestError> {
        let (file, offset) = self.open(way)?;
        let mapping = file.mmap(offset, PAGE, Protection::ReadWrite, sharing);
        // What is mapped stays mapped.
        file.close()?;
        mapping
    }

    /// The file, and where in it the BAR starts.
    fn open(&self, way: Way) -> Result<(File, u64), GuestError> {
        /// Linux's include/uapi/linux/pci.h.
        const PCIIOC_MMAP_IS_MEM: u32 = 0x5043_4902;
        let path = match way {
            Way::DevMem => "/dev/mem".to_owned(),
            Way::Sysfs | Way::WriteCombining => self.function.file(&self.file_name(way)),
            Way::Procfs => self.function.procfs_file(),
        };
        let file = self.process.open(&path, OpenFlags::RDWR)?;
        Ok(match way {
            Way::DevMem => (file, self.range.start),
            Way::Sysfs | Way::WriteCombining => (file, 0),
            Way::Procfs => {
                file.ioctl(PCIIOC_MMAP_IS_MEM, 0)?;
                (file, self.range.start)
            }
        })
    }

    fn file_name(&self, way: Way) -> String {
        let suffix = if way == Way::WriteCombining { "_wc" } else { "" };
        format!("resource{}{suffix}", self.endpoint.bar)
    }

    /// Reads the register that always reads the same.
    pub fn read(&self, mapping: &Mapping) -> Result<u64, GuestError> {
        self.read_at(mapping, 0)
    }

    /// Likewise, where the BAR starts inside the mapping.
    pub fn read_at(&self, mapping: &Mapping, start: u64) -> Result<u64, GuestError> {
        let register = self.endpoint.identity;
        mapping.peek(start + register.offset, register.width)
    }

    /// What it reads.
    pub fn identity(&self) -> Finding {
        Finding::Read(self.endpoint.identity.value)
    }

    /// Writes the register that may be written at any time.
    pub fn write(&self, mapping: &Mapping) -> Result<(), GuestError> {
        mapping.poke_u32(self.endpoint.scratch, 0)
    }

    /// How many accesses of vCPUs have reached it, as far as the monitor counts them.
    pub fn accesses(&self, vm: &Vm) -> Option<u64> {
        vm.bar_accesses(self.function.address()).map(BarAccesses::total)
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.endpoint.bar
    }
}
