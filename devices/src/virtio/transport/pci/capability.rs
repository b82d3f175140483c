//! The structures of virtio over PCI and the capabilities that locate them (virtio 1.3,
//! section 4.1.4).

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::pci::{BarIndex, VendorCapability};

/// A structure that a driver accesses. Each has a page of one BAR for itself, so that it can be mapped
/// without the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Structure {
    CommonConfig = 1,
    Notify,
    IsrStatus,
    DeviceConfig,
}

impl Structure {
    /// The BAR that all structures are in.
    pub const BAR: BarIndex = BarIndex::Bar0;
    /// Its size.
    pub const BAR_SIZE: u64 = Self::SIZE * Self::ALL.len() as u64;

    const SIZE: u64 = 0x1000;
    const ALL: [Self; 4] = [Self::CommonConfig, Self::Notify, Self::IsrStatus, Self::DeviceConfig];

    /// Where the structure is in the BAR.
    pub fn offset(self) -> u64 {
        (self as u64 - Self::ALL[0] as u64) * Self::SIZE
    }

    /// The structure at `offset` of the BAR, and the offset in it.
    pub fn at(offset: u64) -> Option<(Self, u64)> {
        let structure = *Self::ALL.get(usize::try_from(offset / Self::SIZE).ok()?)?;
        Some((structure, offset % Self::SIZE))
    }

    /// `struct virtio_pci_cap` for the structure.
    fn capability(self) -> Capability {
        Capability {
            cfg_type: self as u8,
            bar: Self::BAR as u8,
            offset: U32::new(self.offset() as u32),
            length: U32::new(Self::SIZE as u32),
            ..Capability::default()
        }
    }
}

/// `struct virtio_pci_cap` (section 4.1.4). The first three fields are the PCI core's to fill in.
#[derive(Debug, Default, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Capability {
    cap_vndr: u8,
    cap_next: u8,
    cap_len: u8,
    cfg_type: u8,
    bar: u8,
    id: u8,
    padding: [u8; 2],
    offset: U32,
    length: U32,
}

/// `struct virtio_pci_notify_cap` (section 4.1.4.4).
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct NotifyCapability {
    cap: Capability,
    notify_off_multiplier: U32,
}

/// `struct virtio_pci_cfg_cap` (section 4.1.4.9).
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct ConfigAccessCapability {
    cap: Capability,
    pci_cfg_data: [u8; 4],
}

/// `cfg_type` of [`ConfigAccessCapability`].
const PCI_CFG: u8 = 5;

/// All capabilities of a device.
pub fn capabilities() -> [VendorCapability; 5] {
    // One doorbell serves all queues of a device, so one address does too.
    let notify = NotifyCapability {
        cap: Structure::Notify.capability(),
        notify_off_multiplier: U32::new(0),
    };
    let read_only = |bytes: &[u8]| VendorCapability::read_only(bytes.to_vec());
    [
        read_only(Structure::CommonConfig.capability().as_bytes()),
        read_only(notify.as_bytes()),
        read_only(Structure::IsrStatus.capability().as_bytes()),
        read_only(Structure::DeviceConfig.capability().as_bytes()),
        config_access(),
    ]
}

fn config_access() -> VendorCapability {
    let capability = Capability { cfg_type: PCI_CFG, ..Capability::default() };
    let writable = Capability {
        bar: u8::MAX,
        offset: U32::MAX_VALUE,
        length: U32::MAX_VALUE,
        ..Capability::default()
    };
    let bytes = ConfigAccessCapability { cap: capability, pci_cfg_data: [0; 4] };
    VendorCapability {
        bytes: bytes.as_bytes().to_vec(),
        writable: writable.as_bytes().to_vec(),
        device_bytes: ConfigAccess::DATA..size_of::<ConfigAccessCapability>(),
    }
}

/// The access that a driver has described in the PCI configuration access capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigAccess {
    /// Offset in the BAR of the structures.
    pub offset: u64,
    /// Bytes: 1, 2 or 4.
    pub length: usize,
}

impl ConfigAccess {
    /// Offset of `pci_cfg_data` in the capability.
    pub const DATA: usize = size_of::<Capability>();

    /// The access that `capability` describes; none if it is not to a structure.
    pub fn parse(capability: &[u8]) -> Option<Self> {
        let (capability, _) = Capability::read_from_prefix(capability).ok()?;
        let Capability { bar, offset, length, .. } = capability;
        let valid = bar == Structure::BAR as u8 && matches!(length.get(), 1 | 2 | 4);
        valid.then(|| Self { offset: offset.get().into(), length: length.get() as usize })
    }
}
