//! What VFIO's and iommufd's ioctls take and give: Linux's include/uapi/linux/vfio.h and
//! include/uapi/linux/iommufd.h. Guest and host are of one architecture, and so of one byte order.
//!
//! No behaviour here: only layouts, and the ioctl that each is for.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::guest::{File, GuestError};

/// Bits of [`DmaMap::flags`]: the devices may read and write.
pub const DMA_MAP_READ_AND_WRITE: u32 = 0b11;
/// A bit of [`GroupStatus::flags`]: no member has a driver of the kernel's that does DMA.
pub const GROUP_VIABLE: u32 = 1 << 0;
/// A bit of [`IoEventFd::flags`]: 4 bytes are written.
pub const IOEVENTFD_4_BYTES: u32 = 1 << 2;
/// Bits of [`IoasMap::flags`]: at the given address, for reads and writes.
pub const IOAS_MAP_FIXED_READ_AND_WRITE: u32 = 0b111;

const fn ioctl(number: u32) -> u32 {
    const TYPE: u32 = b';' as u32;
    (TYPE << 8) | number
}

/// The number of VFIO's `_IO(VFIO_TYPE, VFIO_BASE + number)`.
pub const fn vfio(number: u32) -> u32 {
    ioctl(100 + number)
}

/// What an ioctl's argument points to.
pub trait Payload: IntoBytes + FromBytes + Immutable + Sized {
    /// The ioctl.
    const REQUEST: u32;
    /// The first field of each: `argsz` of VFIO, `size` of iommufd.
    const SIZE: u32 = size_of::<Self>() as u32;

    /// Makes the ioctl; returns the payload as the kernel has changed it.
    fn exchange(self, file: &File) -> Result<Self, GuestError> {
        let reply = file.exchange(Self::REQUEST, self.as_bytes())?;
        Self::read_from_bytes(&reply.data).map_err(|_| GuestError::OtherAnswer {
            asked: format!("ioctl {:#x} with {} bytes", Self::REQUEST, Self::SIZE),
        })
    }
}

macro_rules! payloads {
    ($($(#[$documentation:meta])* $name:ident($request:expr) { $($field:ident: $kind:ty,)* })*) => {
        $(
            $(#[$documentation])*
            #[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[repr(C)]
            #[allow(missing_docs)]
            pub struct $name {
                $(pub $field: $kind,)*
            }

            impl Payload for $name {
                const REQUEST: u32 = $request;
            }
        )*
    };
}

payloads! {
    /// `struct vfio_group_status`.
    GroupStatus(vfio(3)) {
        argsz: u32,
        flags: u32,
    }
    /// `struct vfio_region_info`.
    RegionInfo(vfio(8)) {
        argsz: u32,
        flags: u32,
        index: u32,
        cap_offset: u32,
        size: u64,
        offset: u64,
    }
    /// `struct vfio_pci_hot_reset` with one group.
    HotReset(vfio(13)) {
        argsz: u32,
        flags: u32,
        count: u32,
        group_fds: [u32; 1],
    }
    /// `struct vfio_device_ioeventfd`.
    IoEventFd(vfio(16)) {
        argsz: u32,
        flags: u32,
        offset: u64,
        data: u64,
        fd: u32,
        reserved: u32,
    }
    /// `struct vfio_device_bind_iommufd`.
    BindIommufd(vfio(18)) {
        argsz: u32,
        flags: u32,
        iommufd: u32,
        out_devid: u32,
    }
    /// `struct vfio_device_attach_iommufd_pt`.
    AttachIommufdPt(vfio(19)) {
        argsz: u32,
        flags: u32,
        pt_id: u32,
    }
    /// `struct vfio_iommu_type1_dma_map`.
    DmaMap(vfio(13)) {
        argsz: u32,
        flags: u32,
        vaddr: u64,
        iova: u64,
        size: u64,
    }
    /// `struct vfio_iommu_type1_dma_unmap`.
    DmaUnmap(vfio(14)) {
        argsz: u32,
        flags: u32,
        iova: u64,
        size: u64,
    }
    /// `struct iommu_ioas_alloc`.
    IoasAlloc(ioctl(0x81)) {
        size: u32,
        flags: u32,
        out_ioas_id: u32,
    }
    /// `struct iommu_ioas_map`.
    IoasMap(ioctl(0x85)) {
        size: u32,
        flags: u32,
        ioas_id: u32,
        reserved: u32,
        user_va: u64,
        length: u64,
        iova: u64,
    }
    /// `struct iommu_ioas_unmap`.
    IoasUnmap(ioctl(0x86)) {
        size: u32,
        ioas_id: u32,
        iova: u64,
        length: u64,
    }
    /// `struct vfio_irq_set` with no data.
    IrqSet(vfio(10)) {
        argsz: u32,
        flags: u32,
        index: u32,
        start: u32,
        count: u32,
    }
}
