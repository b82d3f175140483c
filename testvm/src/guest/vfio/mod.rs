//! A PCI function that a process in the guest drives through VFIO: Linux's
//! Documentation/driver-api/vfio.rst and include/uapi/linux/vfio.h.

mod group;
mod interrupts;
mod iommufd;

pub use self::{
    group::{InContainer, VfioContainer, VfioGroup, VfioIommu},
    interrupts::VfioInterrupt,
    iommufd::Ioas,
};
use super::{EventFd, File, GuestError, Mapping, Protection, Sharing};

const fn vfio(number: u32) -> u32 {
    const TYPE: u32 = b';' as u32;
    (TYPE << 8) | (100 + number)
}

const DEVICE_GET_REGION_INFO: u32 = vfio(8);
const DEVICE_RESET: u32 = vfio(11);
const DEVICE_IOEVENTFD: u32 = vfio(16);

/// A part of a function that its file gives access to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VfioRegion {
    /// What a base address register is for.
    Bar(usize),
    /// The expansion ROM.
    Rom,
    /// The configuration space, as far as VFIO lets its user have it.
    Config,
}

impl VfioRegion {
    fn index(self) -> u32 {
        match self {
            Self::Bar(number) => number as u32,
            Self::Rom => 6,
            Self::Config => 7,
        }
    }
}

/// The function, and what must be open while it is: its group and container, or an I/O address space.
#[derive(Debug)]
pub struct VfioDevice<Access = InContainer> {
    device: File,
    access: Access,
}

impl<Access> VfioDevice<Access> {
    /// Maps the first bytes of a BAR.
    pub fn map(&self, bar: usize, length: u64) -> Result<Mapping, GuestError> {
        self.map_as(VfioRegion::Bar(bar), length, Sharing::Shared)
    }

    /// Maps the first bytes of a region, shared or not.
    pub fn map_as(
        &self,
        region: VfioRegion,
        length: u64,
        sharing: Sharing,
    ) -> Result<Mapping, GuestError> {
        let offset = self.region(region)?.offset;
        self.device.mmap(offset, length, Protection::ReadWrite, sharing)
    }

    /// pread(2) of a region.
    pub fn read(
        &self,
        region: VfioRegion,
        offset: u64,
        length: u32,
    ) -> Result<Vec<u8>, GuestError> {
        self.device.read_at(self.region(region)?.offset + offset, length)
    }

    /// pread(2) of 4 bytes of a region.
    pub fn read_u32(&self, region: VfioRegion, offset: u64) -> Result<u32, GuestError> {
        let bytes = self.read(region, offset, 4)?;
        let bytes = bytes.try_into().map_err(|bytes: Vec<u8>| GuestError::Refused {
            asked: format!("read 4 bytes at {offset:#x} of {region:?}"),
            why: format!("there are only {}", bytes.len()),
        })?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// pwrite(2) of a region.
    pub fn write(&self, region: VfioRegion, offset: u64, data: &[u8]) -> Result<(), GuestError> {
        self.device.write_at(self.region(region)?.offset + offset, data).map(drop)
    }

    /// How many bytes a region has.
    pub fn region_size(&self, region: VfioRegion) -> Result<u64, GuestError> {
        Ok(self.region(region)?.size)
    }

    fn region(&self, region: VfioRegion) -> Result<RegionInfo, GuestError> {
        /// `struct vfio_region_info`: 32-bit argsz, flags, index and cap_offset, 64-bit size and
        /// offset.
        const SIZE: u32 = 32;
        let mut info = [SIZE, 0, region.index(), 0].map(u32::to_le_bytes).concat();
        info.resize(SIZE as usize, 0);
        let info = self.device.exchange(DEVICE_GET_REGION_INFO, info)?.data;
        let number = |offset| {
            info.get(offset..offset + 8)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u64::from_le_bytes)
        };
        Ok(RegionInfo { size: number(16), offset: number(24) })
    }

    /// Resets the function.
    pub fn reset(&self) -> Result<(), GuestError> {
        self.device.ioctl(DEVICE_RESET, 0).map(drop)
    }

    /// From now on an event has these 4 bytes written to a BAR, without a process.
    pub fn write_on_event(
        &self,
        bar: usize,
        offset: u64,
        value: u32,
        event: &EventFd,
    ) -> Result<(), GuestError> {
        /// `struct vfio_device_ioeventfd`: 32-bit argsz and flags, 64-bit offset and data, 32-bit fd
        /// and padding.
        const SIZE: u32 = 32;
        const FOUR_BYTES: u32 = 1 << 2;
        let offset = self.region(VfioRegion::Bar(bar))?.offset + offset;
        let head = [SIZE, FOUR_BYTES].map(u32::to_le_bytes).concat();
        let write = [offset, value.into()].map(u64::to_le_bytes).concat();
        let event = [event.descriptor(), 0].map(u32::to_le_bytes).concat();
        self.device.exchange(DEVICE_IOEVENTFD, [head, write, event].concat()).map(drop)
    }
}

/// Where a region is in the function's file.
struct RegionInfo {
    size: u64,
    offset: u64,
}
