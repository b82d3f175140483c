//! The one door through which devices reach guest memory.
//!
//! Every device holds a [`DmaView`]. It looks like any `vm-memory` address space, but a region may
//! have a [`Reachability`] that is asked before each access, so a device can no more touch an
//! unplugged virtio-mem block than a vCPU can. A view may also be behind an [`Iommu`], which then
//! translates every access of the device: to its rings, to descriptors, to buffers.
//!
//! All answers hold for the access at hand only, and nothing remembers them: no translation can be
//! stale. Blocks are unplugged, and mappings removed, by the thread that does all devices' work,
//! so none goes away between the question and the access.

use std::iter::FusedIterator;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{GuestMemoryBackendSliceIterator, GuestMemorySliceIterator};
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
    GuestMemoryRegionBytes, GuestMemoryResult, GuestRegionCollection, GuestRegionCollectionError,
    GuestRegionMmap, GuestUsize, MemoryRegionAddress, Permissions, VolatileSlice,
};

/// Says which part of a region exists at this moment.
pub trait Reachability: Send + Sync {
    /// Whether all of `[offset, offset + len)`, which lies in the region, may be accessed now.
    fn permits(&self, offset: u64, len: usize) -> bool;

    /// Takes note that an access was not permitted: a device's attempt to touch memory that is not
    /// there. Whose it was is known of all devices that have a [`DmaPath`].
    fn refused(&self, _origin: Option<DmaOrigin>, _offset: u64, _len: usize) {}
}

/// Whose access it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmaOrigin {
    /// What it carries to say who makes it; see [`Requester::id`].
    pub requester: u32,
    /// What it is made for, unless it is for the rings or the device has none.
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

/// A piece of guest memory, and whether it is all there.
#[derive(Clone)]
pub struct DmaRegion {
    mapping: Arc<GuestRegionMmap>,
    reachability: Option<Arc<dyn Reachability>>,
    initiator: Option<Arc<Initiator>>,
}

impl DmaRegion {
    /// Memory that is always there.
    pub fn fixed(mapping: Arc<GuestRegionMmap>) -> Self {
        Self { mapping, reachability: None, initiator: None }
    }

    /// Memory of which only what `reachability` permits is there.
    pub fn partial(mapping: Arc<GuestRegionMmap>, reachability: Arc<dyn Reachability>) -> Self {
        Self { mapping, reachability: Some(reachability), initiator: None }
    }
}

impl GuestMemoryRegion for DmaRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.mapping.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.mapping.start_addr()
    }

    fn bitmap(&self) -> BS<'_, ()> {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> GuestMemoryResult<VolatileSlice<'_, ()>> {
        let slice = self.mapping.get_slice(offset, count)?;
        match &self.reachability {
            Some(reachability) if !reachability.permits(offset.0, count) => {
                let origin = self.initiator.as_ref().map(|initiator| initiator.origin());
                reachability.refused(origin, offset.0, count);
                Err(GuestMemoryError::HostAddressNotAvailable)
            }
            _ => Ok(slice),
        }
    }
}

impl GuestMemoryRegionBytes for DmaRegion {}

/// A piece of guest memory that an access is translated to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhysicalRange {
    /// First guest-physical address.
    pub address: u64,
    /// Bytes.
    pub length: usize,
}

/// Of so many pieces an access may consist at most, and all accesses that are made for one chain of
/// descriptors together. No device of ours moves as much; a driver could map and describe far more
/// than anybody has time and memory for.
pub const MAX_PIECES: usize = 16 << 10;

/// An access that the IOMMU does not allow. It has recorded that by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the IOMMU refuses the access")]
pub struct Refused;

/// What translates the accesses of devices.
pub trait Iommu: Send + Sync {
    /// The pieces that `[address, address + length)` consists of for `requester`, in the order of
    /// its addresses. If one of them is refused, or there are more than [`MAX_PIECES`], everything is.
    fn translate(
        &self,
        requester: u32,
        address: u64,
        length: usize,
        access: Permissions,
    ) -> Result<Vec<PhysicalRange>, Refused>;
}

/// A device, as an IOMMU tells it from others.
pub trait Requester: Send + Sync {
    /// What an access carries at this moment to say who makes it; for PCI, the requester ID.
    fn id(&self) -> u32;
}

/// A device whose ID the machine has given to it for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedRequester(pub u32);

impl Requester for FixedRequester {
    fn id(&self) -> u32 {
        self.0
    }
}

/// Who makes the accesses of a view.
struct Initiator {
    requester: Arc<dyn Requester>,
    work: Mutex<Work>,
}

/// What accesses are made for at this moment.
#[derive(Default)]
struct Work {
    chain: Option<ChainId>,
    /// Pieces that accesses for the chain have had so far.
    pieces: usize,
}

impl Initiator {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn origin(&self) -> DmaOrigin {
        DmaOrigin { requester: self.requester.id(), chain: self.work().chain }
    }

    /// The pieces that `iommu` has an access consist of.
    fn translate(
        &self,
        iommu: &dyn Iommu,
        address: u64,
        length: usize,
        access: Permissions,
    ) -> Result<Vec<PhysicalRange>, Refused> {
        if self.work().pieces >= MAX_PIECES {
            return Err(Refused);
        }
        let pieces = iommu.translate(self.requester.id(), address, length, access)?;
        let mut work = self.work();
        if work.chain.is_some() {
            work.pieces += pieces.len();
        }
        Ok(pieces)
    }
}

/// The way from a device to memory: straight, or through an IOMMU.
#[derive(Clone)]
pub struct DmaPath {
    memory: DmaView,
    iommu: Option<Arc<dyn Iommu>>,
}

impl DmaPath {
    /// The way without an IOMMU.
    pub fn direct(memory: DmaView) -> Self {
        Self { memory, iommu: None }
    }

    /// The way through `iommu`.
    pub fn through(iommu: Arc<dyn Iommu>, memory: DmaView) -> Self {
        Self { memory, iommu: Some(iommu) }
    }

    /// What `requester` gets to see.
    pub fn view(&self, requester: Arc<dyn Requester>) -> DmaView {
        let initiator = Arc::new(Initiator { requester, work: Mutex::default() });
        let regions = self
            .memory
            .memory
            .iter()
            .map(|region| DmaRegion { initiator: Some(Arc::clone(&initiator)), ..region.clone() });
        let memory = GuestRegionCollection::from_regions(regions.collect())
            .expect("regions stay sorted and disjoint");
        DmaView { memory, way: Some(Way { initiator, iommu: self.iommu.clone() }) }
    }
}

/// Guest memory as a device sees it. Cheap to clone.
#[derive(Clone, Default)]
pub struct DmaView {
    memory: GuestRegionCollection<DmaRegion>,
    /// Nothing for a view that is no device's.
    way: Option<Way>,
}

#[derive(Clone)]
struct Way {
    initiator: Arc<Initiator>,
    iommu: Option<Arc<dyn Iommu>>,
}

impl DmaView {
    /// A view of `regions`, which must be sorted by address and disjoint, without an IOMMU.
    pub fn new(regions: Vec<DmaRegion>) -> Result<Self, GuestRegionCollectionError> {
        let memory = GuestRegionCollection::from_regions(regions)?;
        Ok(Self { memory, way: None })
    }

    /// Whether an IOMMU translates the device's accesses.
    pub fn is_translated(&self) -> bool {
        self.way.as_ref().is_some_and(|way| way.iommu.is_some())
    }

    /// The pieces that an access consists of, whether there is memory or not.
    pub fn pieces(
        &self,
        address: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<Vec<PhysicalRange>, Refused> {
        match &self.way {
            Some(Way { initiator, iommu: Some(iommu) }) => {
                initiator.translate(&**iommu, address.0, length, access)
            }
            _ => Ok(vec![PhysicalRange { address: address.0, length }]),
        }
    }

    /// Says what accesses are made for until this is called again.
    pub fn work_on(&self, chain: Option<ChainId>) {
        if let Some(way) = &self.way {
            *way.initiator.work() = Work { chain, pieces: 0 };
        }
    }
}

impl GuestMemory for DmaView {
    type PhysicalMemory = GuestRegionCollection<DmaRegion>;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        self.get_slices(address, count, access)
            .is_ok_and(|mut slices| slices.all(|slice| slice.is_ok()))
    }

    /// A translated access is looked up as a whole first, and fails as a whole.
    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, ()>> {
        let slices = |address, count| GuestMemoryBackend::get_slices(&self.memory, address, count);
        // Who accesses nothing does nothing wrong.
        if count == 0 || !self.is_translated() {
            return Ok(Slices::Direct(slices(address, count)));
        }
        let pieces = self
            .pieces(address, count, access)
            .map_err(|Refused| GuestMemoryError::InvalidGuestAddress(address))?;
        let translated = pieces
            .into_iter()
            .flat_map(|PhysicalRange { address, length }| slices(GuestAddress(address), length))
            .collect::<GuestMemoryResult<Vec<_>>>()?;
        Ok(Slices::Translated(translated.into_iter()))
    }
}

/// What an access touches, piece by piece.
enum Slices<'a> {
    Direct(GuestMemoryBackendSliceIterator<'a, GuestRegionCollection<DmaRegion>>),
    Translated(std::vec::IntoIter<VolatileSlice<'a>>),
}

impl<'a> Iterator for Slices<'a> {
    type Item = GuestMemoryResult<VolatileSlice<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Direct(slices) => slices.next(),
            Self::Translated(slices) => slices.next().map(Ok),
        }
    }
}

impl FusedIterator for Slices<'_> {}
impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {}
