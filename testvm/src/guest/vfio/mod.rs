//! A PCI function that a process in the guest drives through VFIO: Linux's
//! Documentation/driver-api/vfio.rst and include/uapi/linux/vfio.h.

mod group;
mod interrupts;
mod iommufd;
mod wire;

use self::wire::{IOEVENTFD_4_BYTES, IoEventFd, Payload, RegionInfo, vfio};
pub use self::{
    group::{InContainer, VfioContainer, VfioGroup, VfioIommu},
    interrupts::VfioInterrupt,
    iommufd::Ioas,
};
use super::{EventFd, File, GuestError, Mapping, Protection, Sharing};

const DEVICE_RESET: u32 = vfio(11);

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
            why: format!("got only {} bytes", bytes.len()),
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
        let (argsz, index) = (RegionInfo::SIZE, region.index());
        let info = RegionInfo { argsz, flags: 0, index, cap_offset: 0, size: 0, offset: 0 };
        info.exchange(&self.device)
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
        let write = IoEventFd {
            argsz: IoEventFd::SIZE,
            flags: IOEVENTFD_4_BYTES,
            offset: self.region(VfioRegion::Bar(bar))?.offset + offset,
            data: value.into(),
            fd: event.descriptor(),
            reserved: 0,
        };
        write.exchange(&self.device).map(drop)
    }
}
