//! The IOMMU groups and DMA mappings of VFIO: Linux's Documentation/driver-api/vfio.rst and
//! include/uapi/linux/vfio.h.

use super::{
    VfioDevice,
    wire::{
        DMA_MAP_READ_AND_WRITE, DmaMap, DmaUnmap, GROUP_VIABLE, GroupStatus, HotReset, Payload,
        vfio,
    },
};
use crate::guest::{File, GuestError, Mapping, OpenFlags, PciFunction, Process};

const SET_IOMMU: u32 = vfio(2);
const GROUP_SET_CONTAINER: u32 = vfio(4);
const GROUP_GET_DEVICE_FD: u32 = vfio(6);

/// How a container's devices reach memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum VfioIommu {
    /// Through an IOMMU, by the mappings of the container.
    Type1v2 = 3,
    /// Without any protection.
    None = 8,
}

/// What an IOMMU's mappings are kept in.
#[derive(Debug)]
pub struct VfioContainer(File);

impl VfioContainer {
    /// Opens a new one.
    pub fn open(process: &Process) -> Result<Self, GuestError> {
        process.open("/dev/vfio/vfio", OpenFlags::RDWR).map(Self)
    }

    /// Chooses the IOMMU. Only a container with a group in it can.
    pub fn set_iommu(&self, iommu: VfioIommu) -> Result<(), GuestError> {
        self.0.ioctl(SET_IOMMU, iommu as u16).map(drop)
    }

    /// Lets its devices read and write the first bytes of a mapping, at these addresses of theirs.
    pub fn map_dma(&self, iova: u64, memory: &Mapping, length: u64) -> Result<(), GuestError> {
        let (vaddr, flags) = (memory.address(), DMA_MAP_READ_AND_WRITE);
        let map = DmaMap { argsz: DmaMap::SIZE, flags, vaddr, iova, size: length };
        map.exchange(&self.0).map(drop)
    }

    /// Takes it from them again.
    pub fn unmap_dma(&self, iova: u64, length: u64) -> Result<(), GuestError> {
        let unmap = DmaUnmap { argsz: DmaUnmap::SIZE, flags: 0, iova, size: length };
        unmap.exchange(&self.0).map(drop)
    }

    /// Closes it.
    pub fn close(self) -> Result<(), GuestError> {
        self.0.close()
    }
}

/// An IOMMU group.
#[derive(Debug)]
pub struct VfioGroup {
    process: Process,
    file: File,
    iommu: VfioIommu,
}

impl VfioGroup {
    /// Opens that of a function that is bound to vfio-pci.
    pub fn open(process: &Process, function: &PciFunction) -> Result<Self, GuestError> {
        let name = function.vfio_group()?;
        let iommu = match name.starts_with("noiommu") {
            true => VfioIommu::None,
            false => VfioIommu::Type1v2,
        };
        let file = process.open(&format!("/dev/vfio/{name}"), OpenFlags::RDWR)?;
        Ok(Self { process: process.clone(), file, iommu })
    }

    /// The IOMMU that it is behind.
    pub fn iommu(&self) -> VfioIommu {
        self.iommu
    }

    /// Whether a user may have it: none of its members has a driver of the kernel's that does DMA.
    pub fn is_viable(&self) -> Result<bool, GuestError> {
        let status = GroupStatus { argsz: GroupStatus::SIZE, flags: 0 }.exchange(&self.file)?;
        Ok(status.flags & GROUP_VIABLE != 0)
    }

    /// Puts it into a container. From then on it is the user's.
    pub fn set_container(&self, container: &VfioContainer) -> Result<(), GuestError> {
        self.file.exchange(GROUP_SET_CONTAINER, container.0.descriptor().to_le_bytes()).map(drop)
    }

    /// Opens a member that is bound to vfio-pci.
    pub fn open_device(&self, function: &PciFunction) -> Result<File, GuestError> {
        let name = format!("{}\0", function.address());
        let descriptor = self.file.exchange(GROUP_GET_DEVICE_FD, name)?.number;
        self.process.adopt(descriptor)
    }

    /// Closes it. Members that are open keep it in use.
    pub fn close(self) -> Result<(), GuestError> {
        self.file.close()
    }
}

/// A group, and the container that it is in.
#[derive(Debug)]
pub struct InContainer {
    group: VfioGroup,
    container: VfioContainer,
}

impl VfioDevice {
    /// Opens a function that is bound to vfio-pci, and in a viable group.
    pub fn open(process: &Process, function: &PciFunction) -> Result<Self, GuestError> {
        let container = VfioContainer::open(process)?;
        let group = VfioGroup::open(process, function)?;
        group.set_container(&container)?;
        container.set_iommu(group.iommu())?;
        Ok(Self { device: group.open_device(function)?, access: InContainer { group, container } })
    }

    /// Its group.
    pub fn group(&self) -> &VfioGroup {
        &self.access.group
    }

    /// Its container, and so its DMA mappings.
    pub fn container(&self) -> &VfioContainer {
        &self.access.container
    }

    /// Resets the bus that it is on. All other functions there must be of its group.
    pub fn hot_reset(&self) -> Result<(), GuestError> {
        let group_fds = [self.group().file.descriptor()];
        let reset = HotReset { argsz: HotReset::SIZE, flags: 0, count: 1, group_fds };
        reset.exchange(&self.device).map(drop)
    }

    /// Closes its group and container; gives the function that is still open.
    pub fn leave_group(self) -> Result<File, GuestError> {
        self.access.group.close()?;
        self.access.container.close()?;
        Ok(self.device)
    }

    /// Closes it. Mappings keep it in use.
    pub fn close(self) -> Result<(), GuestError> {
        self.leave_group()?.close()
    }
}
