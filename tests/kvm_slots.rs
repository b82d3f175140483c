//! Memory slots that run out: the driver is told BUSY, nothing has changed, and slots that lie side
//! by side are merged before that. On a KVM that has a handful of slots, by our own say.

use std::sync::Arc;

use devices::virtio::mem::{BlockBackend, BlockRange, Region};
use vm_memory::GuestAddress;
use vmm::memory::host::{Backing, HostMemory};
use vmm::memory::reachable::ReachableBlocks;
use vmm::memory::slots::MemorySlots;
use vmm::memory::strict::StrictBlocks;
use vmm::vcpu::VcpuGate;

const GIB: u64 = 1 << 30;
const BLOCK: u64 = 2 << 20;

struct Fixture {
    blocks: StrictBlocks,
    slots: MemorySlots,
}

impl Fixture {
    fn new(slots: u32) -> Self {
        let vm = Arc::new(vmm::kvm::open().unwrap().create_vm().unwrap());
        let region = Region::new(4 * GIB, 4 * GIB, BLOCK, 4096).unwrap();
        let memory = HostMemory::map(GuestAddress(4 * GIB), 4 * GIB, Backing::Anonymous).unwrap();
        let slots = MemorySlots::with_limit(vm, slots);
        let gate = Arc::new(VcpuGate::new(0));
        let reachable = Arc::new(ReachableBlocks::none(region));
        let blocks = StrictBlocks::new(region, memory, slots.clone(), gate, reachable);
        Self { blocks, slots }
    }

    fn plug(&mut self, blocks: std::ops::Range<u64>) -> bool {
        self.blocks.plug(BlockRange::new(blocks).unwrap()).is_ok()
    }

    fn unplug(&mut self, blocks: std::ops::Range<u64>) -> bool {
        self.blocks.unplug(BlockRange::new(blocks).unwrap()).is_ok()
    }
}

#[test]
fn p7_a_plug_beyond_the_last_slot_is_busy_until_one_is_free() {
    let mut fixture = Fixture::new(4);
    for block in [0, 2, 4, 6] {
        assert!(fixture.plug(block..block + 1));
    }
    assert!(!fixture.plug(8..9));
    assert_eq!(fixture.slots.used(), 4);
    assert!(fixture.unplug(2..3));
    assert!(fixture.plug(8..9));
    assert_eq!(fixture.slots.used(), 4);
}

#[test]
fn p7_half_a_plug_is_taken_back() {
    let mut fixture = Fixture::new(2);
    assert!(fixture.plug(0..1));
    // Across the edge of a window: two slots.
    assert!(!fixture.plug(511..513));
    assert_eq!(fixture.slots.used(), 1);
    assert!(fixture.plug(511..512));
}

#[test]
fn u6_an_unplug_that_needs_another_slot_is_busy_and_one_at_the_edge_is_not() {
    let mut fixture = Fixture::new(2);
    assert!(fixture.plug(0..8));
    assert!(fixture.plug(16..17));
    assert!(!fixture.unplug(3..4));
    assert_eq!(fixture.slots.used(), 2);
    assert!(fixture.unplug(7..8));
    assert!(fixture.unplug(16..17));
    assert!(fixture.unplug(3..4));
    assert_eq!(fixture.slots.used(), 2);
}

#[test]
fn slots_side_by_side_are_merged_when_there_are_no_more_but_not_across_windows() {
    let mut fixture = Fixture::new(6);
    for block in [0, 1, 2, 3, 511, 512] {
        assert!(fixture.plug(block..block + 1));
    }
    assert_eq!(fixture.slots.used(), 6);
    assert!(fixture.plug(100..101));
    // 0-3, 100, 511, 512.
    assert_eq!(fixture.slots.used(), 4);
    assert!(fixture.unplug(1..2));
    assert_eq!(fixture.slots.used(), 5);
    fixture.blocks.unplug_all().unwrap();
    assert_eq!(fixture.slots.used(), 0);
}
