//! iommufd, by which a process may have a function without its group: Linux's
//! Documentation/userspace-api/iommufd.rst and include/uapi/linux/iommufd.h.

use super::{
    VfioDevice,
    wire::{
        AttachIommufdPt, BindIommufd, IOAS_MAP_FIXED_READ_AND_WRITE, IoasAlloc, IoasMap, IoasUnmap,
        Payload,
    },
};
use crate::guest::{File, GuestError, Mapping, OpenFlags, PciFunction, Process};

/// An I/O address space, and the iommufd that it is in.
#[derive(Debug)]
pub struct Ioas {
    file: File,
    id: u32,
}

impl Ioas {
    /// A new one, with nothing mapped in it.
    pub fn allocate(process: &Process) -> Result<Self, GuestError> {
        let file = process.open("/dev/iommu", OpenFlags::RDWR)?;
        let alloc = IoasAlloc { size: IoasAlloc::SIZE, flags: 0, out_ioas_id: 0 };
        let id = alloc.exchange(&file)?.out_ioas_id;
        Ok(Self { file, id })
    }

    /// Lets its devices read and write the first bytes of a mapping, at these addresses of theirs.
    pub fn map(&self, iova: u64, memory: &Mapping, length: u64) -> Result<(), GuestError> {
        let map = IoasMap {
            size: IoasMap::SIZE,
            flags: IOAS_MAP_FIXED_READ_AND_WRITE,
            ioas_id: self.id,
            reserved: 0,
            user_va: memory.address(),
            length,
            iova,
        };
        map.exchange(&self.file).map(drop)
    }

    /// Takes it from them again.
    pub fn unmap(&self, iova: u64, length: u64) -> Result<(), GuestError> {
        let unmap = IoasUnmap { size: IoasUnmap::SIZE, ioas_id: self.id, iova, length };
        unmap.exchange(&self.file).map(drop)
    }
}

impl VfioDevice<Ioas> {
    /// Opens a function that is bound to vfio-pci by its own file, and has it see an I/O address space.
    pub fn open_by_iommufd(process: &Process, function: &PciFunction) -> Result<Self, GuestError> {
        let ioas = Ioas::allocate(process)?;
        let path = format!("/dev/vfio/devices/{}", function.vfio_device()?);
        let device = process.open(&path, OpenFlags::RDWR)?;
        let (argsz, iommufd) = (BindIommufd::SIZE, ioas.file.descriptor());
        BindIommufd { argsz, flags: 0, iommufd, out_devid: 0 }.exchange(&device)?;
        let argsz = AttachIommufdPt::SIZE;
        AttachIommufdPt { argsz, flags: 0, pt_id: ioas.id }.exchange(&device)?;
        Ok(Self { device, access: ioas })
    }

    /// What it sees of memory.
    pub fn ioas(&self) -> &Ioas {
        &self.access
    }
}
