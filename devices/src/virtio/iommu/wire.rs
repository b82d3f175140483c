//! The IOMMU device's bytes as the driver sees them (virtio 1.3, section 5.13), little-endian.
//!
//! No behaviour here: only layouts, and total conversions from bytes to meaning.

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags! {
    /// Feature bits (section 5.13.3).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Features: u64 {
        /// VIRTIO_IOMMU_F_INPUT_RANGE.
        const INPUT_RANGE = 1 << 0;
        /// VIRTIO_IOMMU_F_DOMAIN_RANGE.
        const DOMAIN_RANGE = 1 << 1;
        /// VIRTIO_IOMMU_F_MAP_UNMAP.
        const MAP_UNMAP = 1 << 2;
        /// VIRTIO_IOMMU_F_PROBE.
        const PROBE = 1 << 4;
        /// VIRTIO_IOMMU_F_MMIO.
        const MMIO = 1 << 5;
        /// VIRTIO_IOMMU_F_BYPASS_CONFIG.
        const BYPASS_CONFIG = 1 << 6;
    }

    /// Flags of ATTACH (section 5.13.6.3).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct AttachFlags: u32 {
        /// VIRTIO_IOMMU_ATTACH_F_BYPASS: the domain is the identity.
        const BYPASS = 1 << 0;
        // Keeps unknown bits, so that a request with one of them can be refused.
        const _ = !0;
    }

    /// Flags of MAP (section 5.13.6.5).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct MapFlags: u32 {
        /// VIRTIO_IOMMU_MAP_F_READ.
        const READ = 1 << 0;
        /// VIRTIO_IOMMU_MAP_F_WRITE.
        const WRITE = 1 << 1;
        /// VIRTIO_IOMMU_MAP_F_MMIO: device registers, not memory.
        const MMIO = 1 << 2;
        // Keeps unknown bits, so that a request with one of them can be refused.
        const _ = !0;
    }

    /// Flags of a fault report (section 5.13.6.9).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct FaultFlags: u32 {
        /// VIRTIO_IOMMU_FAULT_F_READ.
        const READ = 1 << 0;
        /// VIRTIO_IOMMU_FAULT_F_WRITE.
        const WRITE = 1 << 1;
        /// VIRTIO_IOMMU_FAULT_F_ADDRESS: the report has an address.
        const ADDRESS = 1 << 8;
    }
}

/// `struct virtio_iommu_config` (section 5.13.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct Config {
    /// The lowest bit is the granularity of mappings.
    pub page_size_mask: U64,
    /// First address that can be mapped.
    pub input_range_start: U64,
    /// Last address that can be mapped.
    pub input_range_end: U64,
    /// First valid domain ID.
    pub domain_range_start: U32,
    /// Last valid domain ID.
    pub domain_range_end: U32,
    /// Size of the properties of a PROBE request in bytes.
    pub probe_size: U32,
    /// Whether endpoints without a domain bypass the IOMMU. The driver writes it.
    pub bypass: u8,
    /// Reserved.
    pub reserved: [u8; 3],
}

/// `struct virtio_iommu_req_head` (section 5.13.6).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Head {
    /// Type of the request.
    pub kind: u8,
    /// Reserved.
    pub reserved: [u8; 3],
}

/// `struct virtio_iommu_req_attach` (section 5.13.6.3) between head and tail.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Attach {
    /// Domain ID.
    pub domain: U32,
    /// Endpoint ID.
    pub endpoint: U32,
    /// [`AttachFlags`].
    pub flags: U32,
    /// Reserved: the request is invalid unless these are zeros.
    pub reserved: [u8; 4],
}

/// `struct virtio_iommu_req_detach` (section 5.13.6.4) between head and tail.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Detach {
    /// Domain ID.
    pub domain: U32,
    /// Endpoint ID.
    pub endpoint: U32,
    /// Reserved.
    pub reserved: [u8; 8],
}

/// `struct virtio_iommu_req_map` (section 5.13.6.5) between head and tail.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Map {
    /// Domain ID.
    pub domain: U32,
    /// First address.
    pub virt_start: U64,
    /// Last address.
    pub virt_end: U64,
    /// The guest-physical address that the first one is mapped to.
    pub phys_start: U64,
    /// [`MapFlags`].
    pub flags: U32,
}

/// `struct virtio_iommu_req_unmap` (section 5.13.6.6) between head and tail.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Unmap {
    /// Domain ID.
    pub domain: U32,
    /// First address.
    pub virt_start: U64,
    /// Last address.
    pub virt_end: U64,
    /// Reserved.
    pub reserved: [u8; 4],
}

/// `struct virtio_iommu_req_probe` (section 5.13.6.7) between head and properties.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Probe {
    /// Endpoint ID.
    pub endpoint: U32,
    /// Reserved.
    pub reserved: [u8; 64],
}

/// `struct virtio_iommu_probe_resv_mem` (section 5.13.6.8.1).
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub struct ReservedMemory {
    kind: U16,
    length: U16,
    subtype: u8,
    reserved: [u8; 3],
    start: U64,
    end: U64,
}

impl ReservedMemory {
    /// Length of the header that `length` does not count.
    const HEADER: usize = 4;
    /// VIRTIO_IOMMU_PROBE_T_RESV_MEM.
    const KIND: u16 = 1;
    /// VIRTIO_IOMMU_RESV_MEM_T_MSI.
    const MSI: u8 = 1;

    /// Addresses, of which `last` is the last one, that a message-signalled interrupt is written
    /// to.
    pub fn msi(first: u64, last: u64) -> Self {
        Self {
            kind: Self::KIND.into(),
            length: ((size_of::<Self>() - Self::HEADER) as u16).into(),
            subtype: Self::MSI,
            reserved: [0; 3],
            start: first.into(),
            end: last.into(),
        }
    }
}

/// A request of the driver (section 5.13.6).
#[derive(Debug, Clone, Copy)]
pub enum Request {
    /// VIRTIO_IOMMU_T_ATTACH.
    Attach(Attach),
    /// VIRTIO_IOMMU_T_DETACH.
    Detach(Detach),
    /// VIRTIO_IOMMU_T_MAP.
    Map(Map),
    /// VIRTIO_IOMMU_T_UNMAP.
    Unmap(Unmap),
    /// VIRTIO_IOMMU_T_PROBE.
    Probe(Probe),
}

/// The type of a request (section 5.13.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestType {
    /// VIRTIO_IOMMU_T_ATTACH.
    Attach,
    /// VIRTIO_IOMMU_T_DETACH.
    Detach,
    /// VIRTIO_IOMMU_T_MAP.
    Map,
    /// VIRTIO_IOMMU_T_UNMAP.
    Unmap,
    /// VIRTIO_IOMMU_T_PROBE.
    Probe,
    /// A type that the specification does not define.
    Unknown(u8),
}

impl From<Head> for RequestType {
    fn from(head: Head) -> Self {
        match head.kind {
            1 => Self::Attach,
            2 => Self::Detach,
            3 => Self::Map,
            4 => Self::Unmap,
            5 => Self::Probe,
            unknown => Self::Unknown(unknown),
        }
    }
}

/// How a request went (section 5.13.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_IOMMU_S_OK.
    Ok = 0,
    /// VIRTIO_IOMMU_S_UNSUPP: the request is not supported with the features that were negotiated.
    Unsupported = 2,
    /// VIRTIO_IOMMU_S_INVAL: the request is invalid.
    Invalid = 4,
    /// VIRTIO_IOMMU_S_RANGE: a number in it is out of range.
    Range = 5,
    /// VIRTIO_IOMMU_S_NOENT: there is no such endpoint or domain.
    NoEntry = 6,
    /// VIRTIO_IOMMU_S_NOMEM: the number of mappings is at its limit.
    NoMemory = 8,
}

/// `struct virtio_iommu_req_tail` (section 5.13.6).
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub struct Tail {
    status: u8,
    reserved: [u8; 3],
}

impl From<Status> for Tail {
    fn from(status: Status) -> Self {
        Self { status: status as u8, reserved: [0; 3] }
    }
}

/// `struct virtio_iommu_fault` (section 5.13.6.9).
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub struct FaultReport {
    /// Why the access was refused.
    pub reason: u8,
    /// Reserved.
    pub reserved: [u8; 3],
    /// [`FaultFlags`].
    pub flags: U32,
    /// Endpoint ID.
    pub endpoint: U32,
    /// Reserved.
    pub reserved1: U32,
    /// The address that was refused.
    pub address: U64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_the_sizes_of_the_specification() {
        assert_eq!(size_of::<Config>(), 40);
        assert_eq!(size_of::<Head>(), 4);
        assert_eq!(size_of::<Attach>(), 16);
        assert_eq!(size_of::<Detach>(), 16);
        assert_eq!(size_of::<Map>(), 32);
        assert_eq!(size_of::<Unmap>(), 24);
        assert_eq!(size_of::<Probe>(), 68);
        assert_eq!(size_of::<ReservedMemory>(), 24);
        assert_eq!(size_of::<Tail>(), 4);
        assert_eq!(size_of::<FaultReport>(), 24);
    }
}
