//! The one door through which devices reach guest memory.
//!
//! Every device holds a [`DmaView`]. It looks like any `vm-memory` address space, but a region may
//! have a [`Reachability`] that is asked before each access, so a device can no more touch an
//! unplugged virtio-mem block than a vCPU can.
//!
//! The answer holds for the access at hand only. Blocks are unplugged by the thread that does all
//! devices' work, so none goes away between the question and the access.

use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestMemoryResult, GuestRegionCollection, GuestRegionCollectionError, GuestRegionMmap,
    GuestUsize, MemoryRegionAddress, VolatileSlice,
};

/// Says which part of a region exists at this moment.
pub trait Reachability: Send + Sync {
    /// Whether all of `[offset, offset + len)`, which lies in the region, may be accessed now. A
    /// refusal is a device's attempt to touch memory that is not there, and is counted as such.
    fn permits(&self, offset: u64, len: usize) -> bool;
}

/// A piece of guest memory, and whether it is all there.
pub struct DmaRegion {
    mapping: Arc<GuestRegionMmap>,
    reachability: Option<Arc<dyn Reachability>>,
}

impl DmaRegion {
    /// Memory that is always there.
    pub fn fixed(mapping: Arc<GuestRegionMmap>) -> Self {
        Self { mapping, reachability: None }
    }

    /// Memory of which only what `reachability` permits is there.
    pub fn partial(mapping: Arc<GuestRegionMmap>, reachability: Arc<dyn Reachability>) -> Self {
        Self { mapping, reachability: Some(reachability) }
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
                Err(GuestMemoryError::HostAddressNotAvailable)
            }
            _ => Ok(slice),
        }
    }
}

impl GuestMemoryRegionBytes for DmaRegion {}

/// Guest memory as devices see it. Cheap to clone.
#[derive(Clone, Default)]
pub struct DmaView {
    regions: GuestRegionCollection<DmaRegion>,
}

impl DmaView {
    /// A view of `regions`, which must be sorted by address and disjoint.
    pub fn new(regions: Vec<DmaRegion>) -> Result<Self, GuestRegionCollectionError> {
        Ok(Self { regions: GuestRegionCollection::from_regions(regions)? })
    }
}

impl GuestMemoryBackend for DmaView {
    type R = DmaRegion;

    fn num_regions(&self) -> usize {
        self.regions.num_regions()
    }

    fn find_region(&self, address: GuestAddress) -> Option<&DmaRegion> {
        self.regions.find_region(address)
    }

    fn iter(&self) -> impl Iterator<Item = &DmaRegion> {
        self.regions.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    struct FirstHalf;

    impl Reachability for FirstHalf {
        fn permits(&self, offset: u64, len: usize) -> bool {
            offset + len as u64 <= 0x1000
        }
    }

    #[test]
    fn a_partial_region_refuses_what_is_not_there_and_serves_the_rest() {
        let mapping =
            || Arc::new(GuestRegionMmap::from_range(GuestAddress(0x10000), 0x2000, None).unwrap());
        let view = DmaView::new(vec![DmaRegion::partial(mapping(), Arc::new(FirstHalf))]).unwrap();
        view.write_obj(0x1234_u32, GuestAddress(0x10ffc)).unwrap();
        assert_eq!(view.read_obj::<u32>(GuestAddress(0x10ffc)).unwrap(), 0x1234);
        assert!(view.read_obj::<u32>(GuestAddress(0x10ffe)).is_err());
        assert!(view.write_obj(1_u8, GuestAddress(0x11000)).is_err());
        assert!(view.read_obj::<u8>(GuestAddress(0xffff)).is_err());
    }
}
