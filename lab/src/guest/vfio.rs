//! A PCI function that a process in the guest drives through VFIO: Linux's
//! Documentation/driver-api/vfio.rst and include/uapi/linux/vfio.h.

use super::{File, GuestError, Mapping, OpenFlags, PciFunction, Process, Protection, Sharing};

const fn vfio(number: u32) -> u32 {
    const TYPE: u32 = b';' as u32;
    (TYPE << 8) | (100 + number)
}

const SET_IOMMU: u32 = vfio(2);
const GROUP_SET_CONTAINER: u32 = vfio(4);
const GROUP_GET_DEVICE_FD: u32 = vfio(6);
const DEVICE_GET_REGION_INFO: u32 = vfio(8);

const TYPE1V2_IOMMU: u16 = 3;
const NOIOMMU_IOMMU: u16 = 8;

/// The function, and what must be open while it is.
#[derive(Debug)]
pub struct VfioDevice {
    device: File,
    group: File,
    container: File,
}

impl VfioDevice {
    /// Opens a function that is bound to vfio-pci, and alone in its IOMMU group.
    pub fn open(process: &Process, function: &PciFunction) -> Result<Self, GuestError> {
        let group = function.vfio_group()?;
        let iommu = if group.starts_with("noiommu") { NOIOMMU_IOMMU } else { TYPE1V2_IOMMU };
        let container = process.open("/dev/vfio/vfio", OpenFlags::RDWR)?;
        let group = process.open(&format!("/dev/vfio/{group}"), OpenFlags::RDWR)?;
        group.exchange(GROUP_SET_CONTAINER, container.descriptor().to_le_bytes())?;
        container.ioctl(SET_IOMMU, iommu)?;
        let name = format!("{}\0", function.address());
        let descriptor = group.exchange(GROUP_GET_DEVICE_FD, name)?.number;
        Ok(Self { device: process.adopt(descriptor)?, group, container })
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
