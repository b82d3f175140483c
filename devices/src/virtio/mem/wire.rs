//! The memory device's bytes as the driver sees them (virtio 1.3, section 5.15), little-endian.
//!
//! No behaviour here: only layouts, and total conversions from bytes to meaning.

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// VIRTIO_MEM_F_ACPI_PXM: `node_id` is an ACPI proximity domain (section 5.15.3).
pub const FEATURE_ACPI_PXM: u64 = 1 << 0;
/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: the driver never accesses unplugged memory, not even to read
/// (section 5.15.3).
pub const FEATURE_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// `struct virtio_mem_config` (section 5.15.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct Config {
    /// Size and alignment of a block, in bytes.
    pub block_size: U64,
    /// NUMA node, valid with [`FEATURE_ACPI_PXM`].
    pub node_id: U16,
    /// Reserved.
    pub padding: [u8; 6],
    /// First address of the region.
    pub addr: U64,
    /// Size of the region in bytes.
    pub region_size: U64,
    /// Size in bytes of the part, from `addr` on, in which blocks may be plugged.
    pub usable_region_size: U64,
    /// Bytes plugged.
    pub plugged_size: U64,
    /// Bytes that the driver is requested to plug.
    pub requested_size: U64,
}

/// `struct virtio_mem_req` (section 5.15.6). PLUG, UNPLUG and STATE share one payload layout.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RequestBytes {
    /// Type of the request.
    pub kind: U16,
    /// Reserved.
    pub padding: [U16; 3],
    /// First address concerned.
    pub addr: U64,
    /// Number of blocks concerned.
    pub nb_blocks: U16,
    /// Reserved.
    pub padding_end: [U16; 3],
}

/// `struct virtio_mem_resp` (section 5.15.6).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResponseBytes {
    /// Type of the response.
    pub kind: U16,
    /// Reserved.
    pub padding: [U16; 3],
    /// The state asked for by STATE.
    pub state: U16,
}

/// The blocks that a request names, not yet checked against a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestedRange {
    /// First guest address.
    pub address: u64,
    /// Number of blocks.
    pub block_count: u16,
}

/// A request of the driver (section 5.15.6). Every sequence of bytes is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// VIRTIO_MEM_REQ_PLUG.
    Plug(RequestedRange),
    /// VIRTIO_MEM_REQ_UNPLUG.
    Unplug(RequestedRange),
    /// VIRTIO_MEM_REQ_UNPLUG_ALL.
    UnplugAll,
    /// VIRTIO_MEM_REQ_STATE.
    State(RequestedRange),
    /// A type that the specification does not define.
    Unknown(u16),
}

impl From<RequestBytes> for Request {
    fn from(bytes: RequestBytes) -> Self {
        let range =
            RequestedRange { address: bytes.addr.get(), block_count: bytes.nb_blocks.get() };
        match bytes.kind.get() {
            0 => Self::Plug(range),
            1 => Self::Unplug(range),
            2 => Self::UnplugAll,
            3 => Self::State(range),
            unknown => Self::Unknown(unknown),
        }
    }
}

/// The state of a range of blocks that STATE reports (section 5.15.6.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum BlockRangeState {
    /// All blocks are plugged.
    Plugged = 0,
    /// All blocks are unplugged.
    Unplugged = 1,
    /// Some are, some are not.
    Mixed = 2,
}

/// The device's answer to a request (section 5.15.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Response {
    /// Done.
    Ack,
    /// Done, and this is the state asked for.
    State(BlockRangeState),
    /// Not done: try again when the requested size has changed.
    Nack,
    /// Not done: the machine cannot do it now. Try again later.
    Busy,
    /// The request is invalid.
    Error,
}

impl From<Response> for ResponseBytes {
    fn from(response: Response) -> Self {
        let (kind, state) = match response {
            Response::Ack => (0, 0),
            Response::State(state) => (0, state as u16),
            Response::Nack => (1, 0),
            Response::Busy => (2, 0),
            Response::Error => (3, 0),
        };
        Self { kind: kind.into(), padding: Default::default(), state: state.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn layouts_have_the_sizes_of_the_specification() {
        assert_eq!(size_of::<Config>(), 56);
        assert_eq!(size_of::<RequestBytes>(), 24);
        assert_eq!(size_of::<ResponseBytes>(), 10);
    }

    #[test]
    fn p9_padding_is_ignored() {
        let mut bytes = [0xff; 24];
        bytes[..2].copy_from_slice(&0_u16.to_le_bytes());
        bytes[8..16].copy_from_slice(&0x1_4000_0000_u64.to_le_bytes());
        bytes[16..18].copy_from_slice(&3_u16.to_le_bytes());
        let request = Request::from(RequestBytes::read_from_bytes(&bytes).unwrap());
        let range = RequestedRange { address: 0x1_4000_0000, block_count: 3 };
        assert_eq!(request, Request::Plug(range));
    }

    #[test]
    fn q2_every_type_is_converted() {
        for kind in 0..=u16::MAX {
            let bytes = RequestBytes { kind: kind.into(), ..RequestBytes::new_zeroed() };
            assert_eq!(matches!(Request::from(bytes), Request::Unknown(k) if k == kind), kind > 3);
        }
    }
}
