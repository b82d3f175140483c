//! Plugging and unplugging blocks, compared with a simple model, on a fake KVM that has few slots and can be
//! made to fail.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use devices::dma::Leases;
use devices::virtio::mem::{BlockBackend, BlockRange, Region};
use kvm_bindings::kvm_userspace_memory_region;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};

use super::backing::{Backing, KeptFile};
use super::host::HostMemory;
use super::reachable::ReachableBlocks;
use super::slots::{MemorySlots, SlotTable};
use super::strict::StrictBlocks;
use crate::exit::{Ending, EndingCell};
use crate::quiesce::VcpuGate;
use crate::violations::refusals::Refusals;

const START: u64 = 1 << 32;
/// A window has four blocks.
const BLOCK: u64 = 256 << 20;
const WINDOW_BLOCKS: u64 = 4;
const BLOCKS: u64 = 32;

/// Memory slots of a fake KVM.
#[derive(Default)]
struct Table(Mutex<Slots>);

#[derive(Default)]
struct Slots {
    ranges: BTreeMap<u32, Range<u64>>,
    /// How many calls succeed before one fails.
    until_failure: Option<u32>,
    /// Whether all calls after that one fail too.
    fails_for_good: bool,
}

impl SlotTable for Table {
    unsafe fn set(&self, region: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
        let mut slots = self.lock();
        match slots.until_failure {
            Some(0) => {
                slots.until_failure = slots.fails_for_good.then_some(0);
                return Err(kvm_ioctls::Error::new(libc::ENOMEM));
            }
            Some(calls) => slots.until_failure = Some(calls - 1),
            None => {}
        }
        let first = (region.guest_phys_addr.saturating_sub(START)) / BLOCK;
        let range = first..first + region.memory_size / BLOCK;
        if range.is_empty() {
            assert!(slots.ranges.remove(&region.slot).is_some(), "no such slot");
        } else {
            let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
            assert!(!slots.ranges.values().any(overlaps), "{range:?} overlaps another slot");
            assert!(slots.ranges.insert(region.slot, range).is_none(), "a slot that exists");
        }
        Ok(())
    }
}

impl Table {
    fn lock(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Fixture {
    blocks: Arc<StrictBlocks>,
    slots: MemorySlots,
    memory: HostMemory,
    reachable: Arc<ReachableBlocks>,
    table: Arc<Table>,
    ending: Arc<EndingCell>,
}

impl Fixture {
    fn new(limit: u32) -> Self {
        let table = Arc::new(Table::default());
        let region = Region::new(START, BLOCKS * BLOCK, BLOCK, 4096).unwrap();
        let config = Backing::Anonymous.into();
        let mut file = KeptFile::default();
        let memory =
            HostMemory::map(GuestAddress(START), region.size(), &config, &mut file).unwrap();
        let slots = MemorySlots::with_limit(table.clone(), limit);
        let gate = Arc::new(VcpuGate::new(0));
        let reachable = Arc::new(ReachableBlocks::none(region, Refusals::default()));
        let ending = Arc::new(EndingCell::default());
        let blocks = StrictBlocks::new(
            region,
            memory.clone(),
            slots.clone(),
            gate,
            Leases::default(),
            reachable.clone(),
            ending.clone(),
        )
        .unwrap();
        let blocks = Arc::new(blocks);
        Self { blocks, slots, memory, reachable, table, ending }
    }

    fn plug(&mut self, blocks: Range<u64>) -> bool {
        self.blocks.plug(BlockRange::new(blocks).unwrap()).is_ok()
    }

    fn unplug(&mut self, blocks: Range<u64>) -> bool {
        self.blocks.unplug(BlockRange::new(blocks).unwrap()).is_ok()
    }

    /// The blocks that are in slots, slot by slot.
    fn in_slots(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<_> = self.table.lock().ranges.values().cloned().collect();
        ranges.sort_by_key(|range| range.start);
        ranges
    }

    /// The first byte of a block as this process reads it; none if the read fails.
    fn read(&self, block: u64) -> Option<u8> {
        let mut byte = 0_u8;
        let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let address = self.memory.host_address(block * BLOCK) as *mut libc::c_void;
        let remote = libc::iovec { iov_base: address, iov_len: 1 };
        let this_process = std::process::id() as libc::pid_t;
        // SAFETY: the kernel checks both addresses, and writes at most to `byte`, which it has room in.
        let read = unsafe { libc::process_vm_readv(this_process, &local, 1, &remote, 1, 0) };
        (read == 1).then_some(byte)
    }

    fn mark(&self, block: u64) {
        let bytes = self.memory.mapping();
        bytes.write_obj(0xab_u8, MemoryRegionAddress(block * BLOCK)).unwrap();
    }
}

#[test]
fn a_window_takes_one_slot_until_unplugged_blocks_are_withdrawn() {
    let mut fixture = Fixture::new(8);
    for block in [0, 2, 3] {
        assert!(fixture.plug(block..block + 1));
    }
    assert!(fixture.unplug(2..3));
    assert_eq!(fixture.in_slots(), vec![0..WINDOW_BLOCKS]);
    assert!(fixture.blocks.withdraw_unplugged().unwrap());
    assert_eq!(fixture.in_slots(), [0..1, 3..4]);
    assert!(!fixture.blocks.withdraw_unplugged().unwrap());
    // Blocks that are plugged from now on get a slot of their own.
    assert!(fixture.plug(1..2));
    assert_eq!(fixture.in_slots(), [0..1, 1..2, 3..4]);
    assert!(fixture.blocks.withdraw_unplugged().unwrap());
    assert_eq!(fixture.in_slots(), [0..2, 3..4]);
    fixture.blocks.unplug_all().unwrap();
    assert_eq!(fixture.in_slots(), []);
}

#[test]
fn p7_a_plug_that_needs_more_slots_than_there_are_is_busy() {
    let mut fixture = Fixture::new(3);
    for block in [0, 2, 4] {
        assert!(fixture.plug(block..block + 1));
    }
    // Two slots are set, three are claimed, and this block needs a fourth.
    assert!(!fixture.plug(6..7));
    assert_eq!(fixture.read(6), None);
    // A block next to a plugged one needs none.
    assert!(fixture.plug(5..6));
    assert!(fixture.unplug(2..3));
    assert!(fixture.plug(7..8));
}

#[test]
fn u6_an_unplug_that_needs_more_slots_than_there_are_is_busy_and_one_at_the_edge_is_not() {
    let mut fixture = Fixture::new(1);
    assert!(fixture.plug(0..4));
    fixture.mark(1);
    assert!(!fixture.unplug(1..2));
    assert_eq!(fixture.read(1), Some(0xab));
    assert!(fixture.unplug(3..4));
    assert!(fixture.unplug(0..1));
}

#[test]
fn slots_of_empty_windows_are_reused_when_there_are_no_others() {
    let mut fixture = Fixture::new(2);
    for window in 0..BLOCKS / WINDOW_BLOCKS {
        let block = window * WINDOW_BLOCKS;
        assert!(fixture.plug(block..block + 1));
        assert!(fixture.unplug(block..block + 1));
    }
    assert!(fixture.slots.used() <= 2);
}

#[test]
fn the_machine_ends_if_kvm_removes_a_slot_and_refuses_to_set_it_again() {
    let mut fixture = Fixture::new(8);
    assert!(fixture.plug(0..1));
    let mut table = fixture.table.lock();
    (table.until_failure, table.fails_for_good) = (Some(1), true);
    drop(table);
    // The slot of the whole window is removed, and setting another fails.
    assert!(fixture.blocks.withdraw_unplugged().is_err());
    assert!(matches!(fixture.ending.wait(), Ending::MachineError(_)));
}

#[test]
fn unplugged_blocks_may_be_withdrawn_at_any_moment() {
    let mut fixture = Fixture::new(12);
    let blocks = Arc::clone(&fixture.blocks);
    let (stop, turn) = (AtomicBool::new(false), Mutex::new(()));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                blocks.withdraw_unplugged().unwrap();
            }
        });
        let _stop = Stop(&stop);
        let mut plugged = [false; BLOCKS as usize];
        for step in 0..400_u64 {
            let first = (step * 7 % BLOCKS) as usize;
            let range = first..(first + 1 + (step % 5) as usize).min(BLOCKS as usize);
            let blocks = range.start as u64..range.end as u64;
            let done = match &plugged[range.clone()] {
                _ if step % 50 == 49 => {
                    fixture.blocks.unplug_all().unwrap();
                    plugged.fill(false);
                    continue;
                }
                all if !all.contains(&true) => fixture.plug(blocks),
                all if !all.contains(&false) => fixture.unplug(blocks),
                _ => continue,
            };
            if done {
                plugged[range].iter_mut().for_each(|plugged| *plugged = !*plugged);
            }
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            let slots = fixture.in_slots();
            for block in 0..BLOCKS {
                let is_plugged = plugged[block as usize];
                assert_eq!(fixture.reachable.contains(block), is_plugged);
                assert!(!is_plugged || slots.iter().any(|slot| slot.contains(&block)));
            }
        }
    });
}

/// Ends the thread that polls the flag, also if the test panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Plug(Range<u64>),
    Unplug(Range<u64>),
    UnplugAll,
    Withdraw,
    FailAfter(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..BLOCKS, 1..8_u64).prop_map(|(start, n)| start..(start + n).min(BLOCKS));
    prop_oneof![
        8 => range().prop_map(Step::Plug),
        8 => range().prop_map(Step::Unplug),
        1 => Just(Step::UnplugAll),
        4 => Just(Step::Withdraw),
        2 => (0..4_u32).prop_map(Step::FailAfter),
    ]
}

/// The runs of plugged blocks, split at window boundaries.
fn runs(plugged: &[bool]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for block in (0..BLOCKS).filter(|block| plugged[*block as usize]) {
        match runs.last_mut() {
            Some(run) if run.end == block && block % WINDOW_BLOCKS != 0 => run.end += 1,
            _ => runs.push(block..block + 1),
        }
    }
    runs
}

proptest! {
    #[test]
    fn p7_p8_u6_u7_exactly_the_plugged_blocks_are_accessible(
        limit in 1..12_u32,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut fixture = Fixture::new(limit);
        let mut plugged = vec![false; BLOCKS as usize];
        for step in steps {
            let failure_due = fixture.table.lock().until_failure.is_some();
            let mut after = plugged.clone();
            let done = match &step {
                Step::Plug(range) => {
                    let all = &mut after[range.start as usize..range.end as usize];
                    if all.contains(&true) {
                        continue;
                    }
                    all.fill(true);
                    fixture.plug(range.clone())
                }
                Step::Unplug(range) => {
                    let all = &mut after[range.start as usize..range.end as usize];
                    if all.contains(&false) {
                        continue;
                    }
                    all.fill(false);
                    fixture.unplug(range.clone())
                }
                Step::UnplugAll => {
                    after.fill(false);
                    fixture.blocks.unplug_all().is_ok()
                }
                Step::Withdraw => fixture.blocks.withdraw_unplugged().is_ok(),
                Step::FailAfter(calls) => {
                    fixture.table.lock().until_failure = Some(*calls);
                    true
                }
            };
            let failed = failure_due && fixture.table.lock().until_failure.is_none();
            if done {
                for block in 0..BLOCKS {
                    if after[block as usize] && !plugged[block as usize] {
                        prop_assert_eq!(fixture.read(block), Some(0));
                        fixture.mark(block);
                    }
                }
                plugged = after;
            } else {
                prop_assert!(failed || runs(&after).len() as u32 > limit, "{:?} is refused", step);
            }
            let slots = fixture.in_slots();
            prop_assert!(slots.len() as u32 <= limit);
            if done && matches!(step, Step::Withdraw) {
                prop_assert_eq!(&slots, &runs(&plugged));
            }
            for block in 0..BLOCKS {
                let is_plugged = plugged[block as usize];
                prop_assert_eq!(fixture.read(block), is_plugged.then_some(0xab));
                prop_assert_eq!(fixture.reachable.contains(block), is_plugged);
                prop_assert!(!is_plugged || slots.iter().any(|slot| slot.contains(&block)));
            }
        }
    }
}
