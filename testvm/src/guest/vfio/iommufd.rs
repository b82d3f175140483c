//! iommufd, by which a process may have a function without its group: Linux's
//! Documentation/userspace-api/iommufd.rst and include/uapi/linux/iommufd.h.

use super::{VfioDevice, vfio};
use crate::guest::{File, GuestError, Mapping, OpenFlags, PciFunction, Process};

const IOAS_ALLOC: u32 = iommufd(0x81);
const IOAS_MAP: u32 = iommufd(0x85);
const IOAS_UNMAP: u32 = iommufd(0x86);
const DEVICE_BIND_IOMMUFD: u32 = vfio(18);
const DEVICE_ATTACH_IOMMUFD_PT: u32 = vfio(19);

const fn iommufd(number: u32) -> u32 {
    const TYPE: u32 = b';' as u32;
    (TYPE << 8) | number
}

/// An I/O address space, and the iommufd that it is in.
#[derive(Debug)]
pub struct Ioas {
    file: File,
    id: u32,
}

impl Ioas {
    /// A new one, with nothing mapped in it.
    pub fn allocate(process: &Process) -> Result<Self, GuestError> {
        /// `struct iommu_ioas_alloc`: 32-bit size, flags and out_ioas_id.
        const SIZE: u32 = 12;
        let file = process.open("/dev/iommu", OpenFlags::RDWR)?;
        let reply = file.exchange(IOAS_ALLOC, [SIZE, 0, 0].map(u32::to_le_bytes).concat())?.data;
        let id = reply.last_chunk().map_or(0, |&bytes| u32::from_le_bytes(bytes));
        Ok(Self { file, id })
    }

    /// Lets its devices read and write the first bytes of a mapping, at these addresses of theirs.
    pub fn map(&self, iova: u64, memory: &Mapping, length: u64) -> Result<(), GuestError> {
        /// `struct iommu_ioas_map`: 32-bit size, flags, ioas_id and padding, 64-bit user_va, length and
        /// iova.
        const SIZE: u32 = 40;
        const FIXED_IOVA: u32 = 1 << 0;
        const WRITEABLE: u32 = 1 << 1;
        const READABLE: u32 = 1 << 2;
        let flags = FIXED_IOVA | WRITEABLE | READABLE;
        let head = [SIZE, flags, self.id, 0].map(u32::to_le_bytes).concat();
        let range = [memory.address(), length, iova].map(u64::to_le_bytes).concat();
        self.file.exchange(IOAS_MAP, [head, range].concat()).map(drop)
    }

    /// Takes it from them again.
    pub fn unmap(&self, iova: u64, length: u64) -> Result<(), GuestError> {
        /// `struct iommu_ioas_unmap`: 32-bit size and ioas_id, 64-bit iova and length.
        const SIZE: u32 = 24;
        let head = [SIZE, self.id].map(u32::to_le_bytes).concat();
        let range = [iova, length].map(u64::to_le_bytes).concat();
        self.file.exchange(IOAS_UNMAP, [head, range].concat()).map(drop)
    }
}

impl VfioDevice<Ioas> {
    /// Opens a function that is bound to vfio-pci by its own file, and has it see an I/O address space.
    pub fn open_by_iommufd(process: &Process, function: &PciFunction) -> Result<Self, GuestError> {
        let ioas = Ioas::allocate(process)?;
        let path = format!("/dev/vfio/devices/{}", function.vfio_device()?);
        let device = process.open(&path, OpenFlags::RDWR)?;
        /// `struct vfio_device_bind_iommufd`: 32-bit argsz, flags, iommufd and out_devid.
        const BIND_SIZE: u32 = 16;
        let bind = [BIND_SIZE, 0, ioas.file.descriptor(), 0].map(u32::to_le_bytes).concat();
        device.exchange(DEVICE_BIND_IOMMUFD, bind)?;
        /// `struct vfio_device_attach_iommufd_pt`: 32-bit argsz, flags and pt_id.
        const ATTACH_SIZE: u32 = 12;
        let attach = [ATTACH_SIZE, 0, ioas.id].map(u32::to_le_bytes).concat();
        device.exchange(DEVICE_ATTACH_IOMMUFD_PT, attach)?;
        Ok(Self { device, access: ioas })
    }

    /// What it sees of memory.
    pub fn ioas(&self) -> &Ioas {
        &self.access
    }
}
