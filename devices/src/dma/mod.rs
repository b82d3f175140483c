//! The only way in which devices access guest memory.
//!
//! Every device holds a [`DmaView`], and accesses memory within a [`DmaLease`] of it. Each access looks
//! up anew whether the device may make requests at all (on PCI, whether it is a bus master), where the
//! [`Iommu`], if there is one, translates the address to, and whether that memory is present
//! ([`Reachability`]: a device can access an unplugged virtio-mem block no more than a vCPU can). The
//! results hold until the lease ends and are not cached beyond it, so none can be stale ([`Leases`]).

mod leases;

#[cfg(test)]
mod dma_test;

use std::cell::Cell;
use std::collections::VecDeque;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    GuestMemoryResult, GuestRegionMmap, MemoryRegionAddress, Permissions, VolatileSlice,
};

pub use leases::{Lease, Leases};

/// Which part of a region is present at this moment.
pub trait Reachability: Send + Sync {
    /// Whether all of `[offset, offset + len)`, which lies in the region, may be accessed now.
    fn permits(&self, offset: u64, len: usize) -> bool;

    /// Called when an access was not permitted: a device tried to access memory that is not present.
    fn refused(&self, _origin: DmaOrigin<'_>, _offset: u64, _len: usize) {}
}

/// Which device makes an access, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmaOrigin<'a> {
    /// The name that the machine has given to the device.
    pub device: &'a str,
    /// The ID that the access carries; see [`Requester::id`].
    pub requester: u32,
    /// The chain that it is made for; none for an access to the rings, or by a device without
    /// virtqueues.
    pub chain: Option<ChainId>,
}

/// A chain of descriptors that a driver has made available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainId {
    /// The queue's number.
    pub queue: u16,
    /// The first descriptor's index.
    pub head: u16,
}

/// A piece of guest memory, and which part of it is present.
#[derive(Clone)]
pub struct DmaRegion {
    mapping: Arc<GuestRegionMmap>,
    reachability: Option<Arc<dyn Reachability>>,
}

impl DmaRegion {
    /// Memory that is always present.
    pub fn fixed(mapping: Arc<GuestRegionMmap>) -> Self {
        Self { mapping, reachability: None }
    }

    /// Memory of which only what `reachability` permits is present.
    pub fn partial(mapping: Arc<GuestRegionMmap>, reachability: Arc<dyn Reachability>) -> Self {
        Self { mapping, reachability: Some(reachability) }
    }
}

/// Regions that overlap or are not sorted by address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "the memory region at {0:#x} starts below the end of the one before it: expected disjoint regions, sorted by address"
)]
pub struct UnsortedRegions(u64);

/// All guest memory that devices can access. Cheap to clone.
#[derive(Clone, Default)]
pub struct DmaMemory {
    regions: Arc<[DmaRegion]>,
    leases: Leases,
}

impl DmaMemory {
    /// `regions`, which must be sorted by address and disjoint.
    pub fn new(regions: Vec<DmaRegion>, leases: Leases) -> Result<Self, UnsortedRegions> {
        let overlaps =
            |pair: &&[DmaRegion]| pair[0].mapping.last_addr() >= pair[1].mapping.start_addr();
        match regions.windows(2).find(overlaps) {
            Some(pair) => Err(UnsortedRegions(pair[1].mapping.start_addr().0)),
            None => Ok(Self { regions: regions.into(), leases }),
        }
    }

    /// The leases that accesses are made within.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The region that `address` lies in.
    fn region(&self, address: u64) -> Option<&DmaRegion> {
        let index = self.regions.partition_point(|region| region.mapping.last_addr().0 < address);
        self.regions.get(index).filter(|region| region.mapping.start_addr().0 <= address)
    }
}

/// A piece of guest memory that an access is translated to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhysicalRange {
    /// First guest-physical address.
    pub address: u64,
    /// Bytes.
    pub length: usize,
}

/// The most pieces that an access may consist of, and all accesses within a lease together. No device
/// here needs as many; without a limit, a driver could map and describe more than the host has time and
/// memory for.
pub const MAX_PIECES: usize = 16 << 10;

/// An access that the IOMMU does not allow. The IOMMU has recorded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the IOMMU refuses the access")]
pub struct Refused;

/// Translates the addresses that devices access.
pub trait Iommu: Send + Sync {
    /// The pieces that `[address, address + length)` consists of for `requester`, in the order of
    /// its addresses. If one of them is refused, or there are more than [`MAX_PIECES`], the whole
    /// access is refused.
    fn translate(
        &self,
        requester: u32,
        address: u64,
        length: usize,
        access: Permissions,
    ) -> Result<Vec<PhysicalRange>, Refused>;
}

/// A device, as an IOMMU distinguishes it from others.
pub trait Requester: Send + Sync {
    /// The ID that the device's accesses carry at this moment; for PCI, the requester ID.
    fn id(&self) -> u32;

    /// Whether the device may access memory at this moment; for PCI, whether it is a bus master.
    fn is_permitted(&self) -> bool;
}

/// A device with a fixed ID, which may always access memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedRequester(pub u32);

impl Requester for FixedRequester {
    fn id(&self) -> u32 {
        self.0
    }

    fn is_permitted(&self) -> bool {
        true
    }
}

/// The way from a device to memory: direct, or through an IOMMU.
#[derive(Clone)]
pub struct DmaPath {
    memory: DmaMemory,
    iommu: Option<Arc<dyn Iommu>>,
    device: Arc<str>,
}

impl DmaPath {
    /// The way without an IOMMU.
    pub fn direct(memory: DmaMemory) -> Self {
        Self { memory, iommu: None, device: Arc::default() }
    }

    /// The way through `iommu`.
    pub fn through(iommu: Arc<dyn Iommu>, memory: DmaMemory) -> Self {
        Self { memory, iommu: Some(iommu), device: Arc::default() }
    }

    /// The name of the device that uses this path.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The same path for the device of this name, under which refused accesses are reported.
    pub fn of(&self, device: &str) -> Self {
        Self { device: device.into(), ..self.clone() }
    }

    /// Guest memory as `requester` sees it.
    pub fn view(&self, requester: Arc<dyn Requester>) -> DmaView {
        DmaView { path: self.clone(), requester, revoked: Arc::default() }
    }
}

/// The device must not access memory, at this moment or through this view any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the device may not access memory now")]
pub struct NotPermitted;

/// Guest memory as a device sees it. Cheap to clone.
#[derive(Clone)]
pub struct DmaView {
    path: DmaPath,
    requester: Arc<dyn Requester>,
    revoked: Arc<AtomicBool>,
}

impl DmaView {
    /// Whether an IOMMU translates the device's accesses.
    pub fn is_translated(&self) -> bool {
        self.path.iommu.is_some()
    }

    /// The same view for a single use, which ends by [`Self::revoke`].
    pub fn revocable(&self) -> Self {
        Self { revoked: Arc::default(), ..self.clone() }
    }

    /// Ends all access by this view and its clones. Until [`Leases::settle`] returns, an access may
    /// still be under way.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
        self.path.memory.leases.revoke();
    }

    /// Starts accesses.
    pub fn lease(&self) -> Result<DmaLease<'_>, NotPermitted> {
        let lease = self.path.memory.leases.take();
        // Looked up within the lease: code that forbids it from here on waits for the lease to end.
        if self.revoked.load(Ordering::Acquire) || !self.requester.is_permitted() {
            return Err(NotPermitted);
        }
        Ok(DmaLease { view: self, chain: Cell::new(None), pieces: Cell::new(0), _lease: lease })
    }
}

/// Accesses of a device, while this lives.
pub struct DmaLease<'a> {
    view: &'a DmaView,
    chain: Cell<Option<ChainId>>,
    /// The number of pieces of all accesses so far.
    pieces: Cell<usize>,
    _lease: Lease<'a>,
}

impl DmaLease<'_> {
    /// Sets the chain that accesses are made for from now on.
    pub fn work_on(&self, chain: ChainId) {
        self.chain.set(Some(chain));
    }

    /// The pieces that an access consists of, whether or not they are memory.
    pub fn pieces(
        &self,
        address: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<Vec<PhysicalRange>, Refused> {
        let Some(iommu) = &self.view.path.iommu else {
            return Ok(vec![PhysicalRange { address: address.0, length }]);
        };
        if self.pieces.get() >= MAX_PIECES {
            return Err(Refused);
        }
        let pieces = iommu.translate(self.view.requester.id(), address.0, length, access)?;
        self.pieces.set(self.pieces.get() + pieces.len());
        Ok(pieces)
    }

    /// Adds what `range` consists of to `slices`.
    fn add_slices<'a>(
        &'a self,
        range: PhysicalRange,
        slices: &mut Slices<'a>,
    ) -> GuestMemoryResult<()> {
        let PhysicalRange { mut address, mut length } = range;
        while length > 0 {
            let unmapped = GuestMemoryError::InvalidGuestAddress(GuestAddress(address));
            let region = self.view.path.memory.region(address).ok_or(unmapped)?;
            let offset = address - region.mapping.start_addr().0;
            let here = (region.mapping.len() - offset).min(length as u64) as usize;
            if let Some(reachability) = &region.reachability
                && !reachability.permits(offset, here)
            {
                let origin = DmaOrigin {
                    device: &self.view.path.device,
                    requester: self.view.requester.id(),
                    chain: self.chain.get(),
                };
                reachability.refused(origin, offset, here);
                return Err(GuestMemoryError::HostAddressNotAvailable);
            }
            slices.push(region.mapping.get_slice(MemoryRegionAddress(offset), here)?);
            length -= here;
            address = address.wrapping_add(here as u64);
        }
        Ok(())
    }
}

impl GuestMemory for DmaLease<'_> {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        self.get_slices(address, count, access).is_ok()
    }

    /// An access is looked up as a whole first, and fails as a whole.
    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, ()>> {
        let mut slices = Slices::default();
        // An access to no bytes always succeeds.
        if count == 0 {
            return Ok(slices);
        }
        if self.view.is_translated() {
            let pieces = self
                .pieces(address, count, access)
                .map_err(|Refused| GuestMemoryError::InvalidGuestAddress(address))?;
            pieces.into_iter().try_for_each(|piece| self.add_slices(piece, &mut slices))?;
        } else {
            self.add_slices(PhysicalRange { address: address.0, length: count }, &mut slices)?;
        }
        Ok(slices)
    }
}

/// The memory of an access, piece by piece. Most accesses have one piece.
#[derive(Default)]
struct Slices<'a> {
    first: Option<VolatileSlice<'a>>,
    others: VecDeque<VolatileSlice<'a>>,
}

impl<'a> Slices<'a> {
    fn push(&mut self, slice: VolatileSlice<'a>) {
        match self.first {
            None if self.others.is_empty() => self.first = Some(slice),
            _ => self.others.push_back(slice),
        }
    }
}

impl<'a> Iterator for Slices<'a> {
    type Item = GuestMemoryResult<VolatileSlice<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.first.take().or_else(|| self.others.pop_front()).map(Ok)
    }
}

impl FusedIterator for Slices<'_> {}
impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {}
