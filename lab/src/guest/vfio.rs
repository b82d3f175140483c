//! A PCI function that a process in the guest drives through VFIO: Linux's
//! Documentation/driver-api/vfio.rst and include/uapi/linux/vfio.h.

use super::{
    File, GuestError, Mapping, PciFunction, Process, Protection, Sharing, VfioContainer, VfioGroup,
};

pub(super) const fn vfio(number: u32) -> u32 {
    const TYPE: u32 = b';' as u32;
    (TYPE << 8) | (100 + number)
}

const DEVICE_GET_REGION_INFO: u32 = vfio(8);

/// The function, and what must be open while it is.
#[derive(Debug)]
pub struct VfioDevice {
    device: File,
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
        Ok(Self { device: group.open_device(function)?, group, container })
    }

    /// Its group.
    pub fn group(&self) -> &VfioGroup {
        &self.group
    }

    /// Its container, and so its DMA mappings.
    pub fn container(&self) -> &VfioContainer {
        &self.container
    }

    /// Closes its group and container; gives the function that is still open.
    pub fn leave_group(self) -> Result<File, GuestError> {
        self.group.close()?;
        self.container.close()?;
        Ok(self.device)
    }

    /// Maps the first bytes of a BAR.
    pub fn map(&self, bar: usize, length: u64) -> Result<Mapping, GuestError> {
        /// `struct vfio_region_info`: 32-bit argsz, flags, index and cap_offset, 64-bit size and
        /// offset.
        const SIZE: u32 = 32;
        let mut info = [SIZE, 0, bar as u32, 0].map(u32::to_le_bytes).concat();
        info.resize(SIZE as usize, 0);
        let info = self.device.exchange(DEVICE_GET_REGION_INFO, info)?.data;
        let offset = info[24..].try_into().map_or(0, u64::from_le_bytes);
        self.device.mmap(offset, length, Protection::ReadWrite, Sharing::Shared)
    }

    /// Closes it. Mappings keep it in use.
    pub fn close(self) -> Result<(), GuestError> {
        self.device.close()?;
        self.group.close()?;
        self.container.close()
    }
}
