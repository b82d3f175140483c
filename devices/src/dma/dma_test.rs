//! Views of memory, direct and through an IOMMU.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestRegionMmap, Permissions};

use super::*;

const RAM: u64 = 0x10000;
const RAM_SIZE: u64 = 0x2000;

struct FirstHalf;

impl Reachability for FirstHalf {
    fn permits(&self, offset: u64, len: usize) -> bool {
        offset + len as u64 <= 0x1000
    }
}

fn mapping(start: u64, size: u64) -> Arc<GuestRegionMmap> {
    Arc::new(GuestRegionMmap::from_range(GuestAddress(start), size as usize, None).unwrap())
}

fn ram() -> Arc<GuestRegionMmap> {
    mapping(RAM, RAM_SIZE)
}

fn memory(regions: Vec<DmaRegion>) -> DmaMemory {
    DmaMemory::new(regions, Leases::default()).unwrap()
}

/// What a device that may do anything sees of `regions`.
fn direct_view(regions: Vec<DmaRegion>) -> DmaView {
    DmaPath::direct(memory(regions)).view(Arc::new(FixedRequester(1)))
}

#[derive(Default)]
struct TestRequester {
    id: AtomicU32,
    is_denied: AtomicBool,
}

impl Requester for TestRequester {
    fn id(&self) -> u32 {
        self.id.load(Ordering::Relaxed)
    }

    fn is_permitted(&self) -> bool {
        !self.is_denied.load(Ordering::Relaxed)
    }
}

type Asked = (u32, u64, usize, Permissions);

/// Swaps neighbouring groups of 16 bytes, each byte as a piece of its own. Requester 7 may not access
/// anything, and no requester may write beyond 0x1000.
#[derive(Default)]
struct Shuffle(Mutex<Vec<Asked>>);

impl Iommu for Shuffle {
    fn translate(
        &self,
        requester: u32,
        address: u64,
        length: usize,
        access: Permissions,
    ) -> Result<Vec<PhysicalRange>, Refused> {
        self.0.lock().unwrap().push((requester, address, length, access));
        let end = address.checked_add(length as u64).ok_or(Refused)?;
        if requester == 7 || access.has_write() && end > 0x1000 {
            return Err(Refused);
        }
        let place = |address: u64| RAM + (address ^ 0x10);
        Ok((address..end).map(|at| PhysicalRange { address: place(at), length: 1 }).collect())
    }
}

struct Machine {
    /// What a vCPU sees.
    memory: GuestMemoryMmap,
    iommu: Arc<Shuffle>,
    requester: Arc<TestRequester>,
    view: DmaView,
}

fn machine(reachability: Option<Arc<dyn Reachability>>) -> Machine {
    let ram = ram();
    let region = match reachability {
        Some(reachability) => DmaRegion::partial(ram.clone(), reachability),
        None => DmaRegion::fixed(ram.clone()),
    };
    let (iommu, requester) = (Arc::new(Shuffle::default()), Arc::new(TestRequester::default()));
    let view = DmaPath::through(iommu.clone(), memory(vec![region])).view(requester.clone());
    let memory = GuestMemoryMmap::from_arc_regions(vec![ram]).unwrap();
    Machine { memory, iommu, requester, view }
}

impl DmaView {
    fn now(&self) -> DmaLease<'_> {
        self.lease().unwrap()
    }
}

#[test]
fn a_partial_region_refuses_what_is_not_present_and_serves_the_rest() {
    let view = direct_view(vec![DmaRegion::partial(ram(), Arc::new(FirstHalf))]);
    let view = view.now();
    view.write_obj(0x1234_u32, GuestAddress(0x10ffc)).unwrap();
    assert_eq!(view.read_obj::<u32>(GuestAddress(0x10ffc)).unwrap(), 0x1234);
    assert!(view.read_obj::<u32>(GuestAddress(0x10ffe)).is_err());
    assert!(view.write_obj(1_u8, GuestAddress(0x11000)).is_err());
    assert!(view.read_obj::<u8>(GuestAddress(0xffff)).is_err());
}

#[test]
fn an_access_across_regions_is_made_whole_or_not_at_all() {
    let regions = [mapping(0x1000, 0x1000), mapping(0x2000, 0x1000), mapping(0x4000, 0x1000)];
    let view = direct_view(regions.into_iter().map(DmaRegion::fixed).collect());
    let view = view.now();
    view.write_slice(b"across", GuestAddress(0x1ffd)).unwrap();
    assert_eq!(&view.read_obj::<[u8; 6]>(GuestAddress(0x1ffd)).unwrap(), b"across");
    assert!(view.write_slice(b"across", GuestAddress(0x2ffd)).is_err());
    assert_eq!(view.read_obj::<[u8; 3]>(GuestAddress(0x2ffd)).unwrap(), [0; 3]);
    assert!(view.write_slice(b"!", GuestAddress(u64::MAX)).is_err());
}

#[test]
fn regions_that_overlap_or_are_out_of_order_are_refused() {
    let memory = |regions: [u64; 2]| {
        let regions = regions.map(|start| DmaRegion::fixed(mapping(start, 0x1000)));
        DmaMemory::new(regions.into(), Leases::default()).err()
    };
    assert_eq!(memory([0x1000, 0x2000]), None);
    assert_eq!(memory([0x2000, 0x1000]), Some(UnsortedRegions(0x1000)));
    assert_eq!(memory([0x1000, 0x1800]), Some(UnsortedRegions(0x1800)));
}

#[test]
fn a_direct_path_leads_to_all_memory_without_a_translation() {
    let view = direct_view(vec![DmaRegion::fixed(ram())]);
    assert!(!view.is_translated());
    view.now().write_obj(0x1234_u32, GuestAddress(RAM)).unwrap();
    assert_eq!(view.now().read_obj::<u32>(GuestAddress(RAM)).unwrap(), 0x1234);
}

#[test]
fn an_access_is_made_piece_by_piece() {
    let Machine { memory, iommu, view, .. } = machine(None);
    assert!(view.is_translated());
    view.now().write_slice(b"across the pieces", GuestAddress(0x0a)).unwrap();
    let mut found = [0; 0x20];
    memory.read_slice(&mut found, GuestAddress(RAM)).unwrap();
    assert_eq!(&found, b" the pieces\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0across");
    let mut read = [0; 17];
    view.now().read_slice(&mut read, GuestAddress(0x0a)).unwrap();
    assert_eq!(&read, b"across the pieces");
    let asked = [(0, 0x0a, 17, Permissions::Write), (0, 0x0a, 17, Permissions::Read)];
    assert_eq!(*iommu.0.lock().unwrap(), asked);
}

#[test]
fn the_number_of_pieces_within_a_lease_is_limited() {
    let Machine { view, .. } = machine(None);
    // Each byte is a piece.
    let mut buffer = [0; 0x800];
    let mut reads = |view: &DmaLease<'_>, count: usize| {
        (0..count).all(|_| view.read_slice(&mut buffer, GuestAddress(0)).is_ok())
    };
    let most = MAX_PIECES / 0x800;
    for _ in 0..2 {
        let view = view.now();
        assert!(reads(&view, most));
        assert!(!reads(&view, 1));
    }
}

#[test]
fn an_access_that_is_refused_in_part_is_not_made_at_all() {
    let Machine { memory, view, .. } = machine(None);
    let view = view.now();
    assert!(view.write_slice(&[1; 0x20], GuestAddress(0xff0)).is_err());
    // Translated, but to where there is no memory.
    assert!(view.read_slice(&mut [1; 0x20], GuestAddress(RAM_SIZE - 0x10)).is_err());
    assert!(!view.check_range(GuestAddress(0xff0), 0x20, Permissions::Write));
    assert!(view.check_range(GuestAddress(0xff0), 0x20, Permissions::Read));
    let mut found = vec![0; RAM_SIZE as usize];
    memory.read_slice(&mut found, GuestAddress(RAM)).unwrap();
    assert!(found.iter().all(|byte| *byte == 0));
    assert!(view.write_slice(&[1; 0x10], GuestAddress(0xff0)).is_ok());
}

#[test]
fn memory_that_is_not_present_is_not_accessible_behind_an_iommu() {
    let Machine { memory, view, .. } = machine(Some(Arc::new(FirstHalf)));
    let mut data = [1; 0x20];
    assert!(view.now().read_slice(&mut data, GuestAddress(0x1000)).is_err());
    assert_eq!(data, [1; 0x20]);
    assert!(view.now().write_slice(&data, GuestAddress(0xfe0)).is_ok());
    assert_eq!(memory.read_obj::<u8>(GuestAddress(RAM + 0xfff)).unwrap(), 1);
}

/// A region of which nothing is present. Records the refused accesses.
#[derive(Default)]
struct Nowhere(Mutex<Vec<(String, u32, Option<ChainId>)>>);

impl Reachability for Nowhere {
    fn permits(&self, _: u64, _: usize) -> bool {
        false
    }

    fn refused(&self, origin: DmaOrigin<'_>, _: u64, _: usize) {
        let DmaOrigin { device, requester, chain } = origin;
        self.0.lock().unwrap().push((device.to_owned(), requester, chain));
    }
}

#[test]
fn a_refused_access_is_reported_with_its_device_its_requester_and_its_chain() {
    let nowhere = Arc::new(Nowhere::default());
    let path = DmaPath::direct(memory(vec![DmaRegion::partial(ram(), nowhere.clone())]));
    let view = |name, id| path.of(name).view(Arc::new(FixedRequester(id)));
    let (one, other) = (view("rng0", 1), view("mem0", 2));
    let (one, other) = (one.now(), other.now());
    let chain = ChainId { queue: 1, head: 5 };
    one.work_on(chain);
    for lease in [&one, &other] {
        assert!(lease.read_obj::<u8>(GuestAddress(RAM)).is_err());
    }
    let expected = [("rng0".to_owned(), 1, Some(chain)), ("mem0".to_owned(), 2, None)];
    assert_eq!(*nowhere.0.lock().unwrap(), expected);
}

#[test]
fn the_permission_is_looked_up_for_every_access() {
    let Machine { requester, view, .. } = machine(None);
    let clone = view.clone();
    for (id, permitted) in [(0, true), (7, false), (8, true)] {
        requester.id.store(id, Ordering::Relaxed);
        assert_eq!(view.now().read_obj::<u8>(GuestAddress(0)).is_ok(), permitted);
        assert_eq!(clone.now().write_obj(0_u8, GuestAddress(0)).is_ok(), permitted);
    }
}

#[test]
fn a_requester_that_is_not_permitted_gets_no_lease() {
    let Machine { requester, view, .. } = machine(None);
    requester.is_denied.store(true, Ordering::Relaxed);
    assert_eq!(view.lease().err(), Some(NotPermitted));
    requester.is_denied.store(false, Ordering::Relaxed);
    assert!(view.lease().is_ok());
}

#[test]
fn a_revoked_view_ends_with_its_clones_and_no_other() {
    let view = direct_view(vec![DmaRegion::fixed(ram())]);
    let once = view.revocable();
    let clone = once.clone();
    assert!(once.lease().is_ok() && clone.lease().is_ok());
    once.revoke();
    assert!(once.lease().is_err() && clone.lease().is_err());
    assert!(view.lease().is_ok() && view.revocable().lease().is_ok());
}

#[test]
fn an_access_to_no_bytes_succeeds() {
    let Machine { iommu, requester, view, .. } = machine(None);
    requester.id.store(7, Ordering::Relaxed);
    view.now().write_slice(&[], GuestAddress(0)).unwrap();
    assert!(iommu.0.lock().unwrap().is_empty());
}
