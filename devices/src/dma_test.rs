//! Views of memory, straight and through an IOMMU.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestRegionMmap, Permissions};

use crate::dma::{
    ChainId, DmaOrigin, DmaPath, DmaRegion, DmaView, FixedRequester, Iommu, MAX_PIECES,
    PhysicalRange, Reachability, Refused, Requester,
};

const RAM: u64 = 0x10000;
const RAM_SIZE: u64 = 0x2000;

struct FirstHalf;

impl Reachability for FirstHalf {
    fn permits(&self, offset: u64, len: usize) -> bool {
        offset + len as u64 <= 0x1000
    }
}

fn ram() -> Arc<GuestRegionMmap> {
    let size = RAM_SIZE as usize;
    Arc::new(GuestRegionMmap::from_range(GuestAddress(RAM), size, None).unwrap())
}

#[test]
fn a_partial_region_refuses_what_is_not_there_and_serves_the_rest() {
    let view = DmaView::new(vec![DmaRegion::partial(ram(), Arc::new(FirstHalf))]).unwrap();
    view.write_obj(0x1234_u32, GuestAddress(0x10ffc)).unwrap();
    assert_eq!(view.read_obj::<u32>(GuestAddress(0x10ffc)).unwrap(), 0x1234);
    assert!(view.read_obj::<u32>(GuestAddress(0x10ffe)).is_err());
    assert!(view.write_obj(1_u8, GuestAddress(0x11000)).is_err());
    assert!(view.read_obj::<u8>(GuestAddress(0xffff)).is_err());
}

#[derive(Default)]
struct Bus(AtomicU32);

impl Requester for Bus {
    fn id(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

type Asked = (u32, u64, usize, Permissions);

/// Addresses from 0 on are 16 bytes here, 16 bytes there. Requester 7 may not do anything, and
/// nobody may write beyond 0x1000.
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
    memory: DmaView,
    iommu: Arc<Shuffle>,
    bus: Arc<Bus>,
    view: DmaView,
}

fn machine(region: DmaRegion) -> Machine {
    let memory = DmaView::new(vec![region]).unwrap();
    let (iommu, bus) = (Arc::new(Shuffle::default()), Arc::new(Bus::default()));
    let view = DmaPath::through(iommu.clone(), memory.clone()).view(bus.clone());
    Machine { memory, iommu, bus, view }
}

#[test]
fn a_direct_path_leads_to_all_memory_and_asks_nobody() {
    let memory = DmaView::new(vec![DmaRegion::fixed(ram())]).unwrap();
    let view = DmaPath::direct(memory.clone()).view(Arc::new(FixedRequester(7)));
    assert!(!view.is_translated());
    view.write_obj(0x1234_u32, GuestAddress(RAM)).unwrap();
    assert_eq!(memory.read_obj::<u32>(GuestAddress(RAM)).unwrap(), 0x1234);
}

#[test]
fn a_chain_has_only_so_many_pieces() {
    let Machine { view, .. } = machine(DmaRegion::fixed(ram()));
    // Each byte is a piece.
    let mut buffer = [0; 0x800];
    let mut reads =
        |count: usize| (0..count).all(|_| view.read_slice(&mut buffer, GuestAddress(0)).is_ok());
    let most = MAX_PIECES / 0x800;
    assert!(reads(most + 1), "they are for no chain");
    view.work_on(Some(ChainId { queue: 0, head: 0 }));
    assert!(reads(most));
    assert!(!reads(1));
    view.work_on(Some(ChainId { queue: 0, head: 1 }));
    assert!(reads(most));
    view.work_on(None);
    assert!(reads(1));
}

#[test]
fn an_access_is_made_piece_by_piece() {
    let Machine { memory, iommu, view, .. } = machine(DmaRegion::fixed(ram()));
    assert!(view.is_translated() && !memory.is_translated());
    view.write_slice(b"across the pieces", GuestAddress(0x0a)).unwrap();
    let mut found = [0; 0x20];
    memory.read_slice(&mut found, GuestAddress(RAM)).unwrap();
    assert_eq!(&found, b" the pieces\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0across");
    let mut read = [0; 17];
    view.read_slice(&mut read, GuestAddress(0x0a)).unwrap();
    assert_eq!(&read, b"across the pieces");
    let asked = [(0, 0x0a, 17, Permissions::Write), (0, 0x0a, 17, Permissions::Read)];
    assert_eq!(*iommu.0.lock().unwrap(), asked);
}

#[test]
fn what_is_refused_in_part_is_not_done_at_all() {
    let Machine { memory, view, .. } = machine(DmaRegion::fixed(ram()));
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
fn memory_that_is_not_there_is_not_there_behind_an_iommu() {
    let Machine { memory, view, .. } = machine(DmaRegion::partial(ram(), Arc::new(FirstHalf)));
    let mut data = [1; 0x20];
    assert!(view.read_slice(&mut data, GuestAddress(0x1000)).is_err());
    assert_eq!(data, [1; 0x20]);
    assert!(view.write_slice(&data, GuestAddress(0xfe0)).is_ok());
    assert_eq!(memory.read_obj::<u8>(GuestAddress(RAM + 0xfff)).unwrap(), 1);
}

/// Nothing is there. Keeps who wanted it.
#[derive(Default)]
struct Nowhere(Mutex<Vec<Option<DmaOrigin>>>);

impl Reachability for Nowhere {
    fn permits(&self, _: u64, _: usize) -> bool {
        false
    }

    fn refused(&self, origin: Option<DmaOrigin>, _: u64, _: usize) {
        self.0.lock().unwrap().push(origin);
    }
}

#[test]
fn what_is_not_there_is_told_with_who_wanted_it_and_for_what() {
    let nowhere = Arc::new(Nowhere::default());
    let memory = DmaView::new(vec![DmaRegion::partial(ram(), nowhere.clone())]).unwrap();
    let path = DmaPath::direct(memory.clone());
    let [one, other] = [1, 2].map(|id| path.view(Arc::new(FixedRequester(id))));
    let chain = ChainId { queue: 1, head: 5 };
    one.work_on(Some(chain));
    for view in [&memory, &one, &one.clone(), &other] {
        assert!(view.read_obj::<u8>(GuestAddress(RAM)).is_err());
    }
    one.work_on(None);
    assert!(one.read_obj::<u8>(GuestAddress(RAM)).is_err());
    let origin = |requester, chain| Some(DmaOrigin { requester, chain });
    let working = origin(1, Some(chain));
    let expected = [None, working, working, origin(2, None), origin(1, None)];
    assert_eq!(*nowhere.0.lock().unwrap(), expected);
}

#[test]
fn the_requester_is_asked_for_every_access() {
    let Machine { bus, view, .. } = machine(DmaRegion::fixed(ram()));
    let clone = view.clone();
    for (id, permitted) in [(0, true), (7, false), (8, true)] {
        bus.0.store(id, Ordering::Relaxed);
        assert_eq!(view.read_obj::<u8>(GuestAddress(0)).is_ok(), permitted);
        assert_eq!(clone.write_obj(0_u8, GuestAddress(0)).is_ok(), permitted);
    }
}

#[test]
fn no_bytes_are_no_access() {
    let Machine { iommu, bus, view, .. } = machine(DmaRegion::fixed(ram()));
    bus.0.store(7, Ordering::Relaxed);
    view.write_slice(&[], GuestAddress(0)).unwrap();
    assert!(iommu.0.lock().unwrap().is_empty());
}
