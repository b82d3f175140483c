//! KVM memory slots: which guest addresses are backed by memory.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Cap, VmFd};
use thiserror::Error;

use super::host::HostMemory;

/// Why a memory slot cannot be set or removed.
#[derive(Debug, Error)]
pub enum SlotError {
    /// All slots are in use or claimed.
    #[error("all {limit} memory slots that {} are in use", if *by_mappings {
        "the host's limit of mappings (vm.max_map_count) has room for"
    } else {
        "this KVM has"
    })]
    Exhausted {
        /// How many there are.
        limit: u32,
        /// Whether the limit comes from the host's limit of mappings, not from KVM.
        by_mappings: bool,
    },
    /// The ioctl failed.
    #[error("KVM refuses a memory slot of {size:#x} bytes at {address:#x}: {source}")]
    Refused {
        /// First guest address.
        address: u64,
        /// Bytes; 0 removes a slot.
        size: u64,
        /// KVM's error.
        source: kvm_ioctls::Error,
    },
}

/// Sets slots: a virtual machine of KVM, or a model of it in tests.
pub trait SlotTable: Send + Sync {
    /// Sets a slot, or removes it if the size of `region` is 0.
    ///
    /// # Safety
    ///
    /// Whatever guests do with the memory of `region` must be sound for as long as the slot is set.
    unsafe fn set(&self, region: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error>;
}

impl SlotTable for VmFd {
    unsafe fn set(&self, region: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
        // SAFETY: as the caller promises.
        unsafe { self.set_user_memory_region(region) }
    }
}

/// Number of a slot that is in use. Not `Clone`: its owner may remove the slot.
#[derive(Debug)]
pub struct SlotId(u32);

/// The slots of one virtual machine, shared by all of its memory.
///
/// Slots that may be needed later are claimed before, so that setting one does not fail for lack of slots.
#[derive(Clone)]
pub struct MemorySlots {
    table: Arc<dyn SlotTable>,
    ids: Arc<Mutex<Ids>>,
    changes: Arc<AtomicU64>,
}

struct Ids {
    returned: Vec<u32>,
    next: u32,
    claimed: u32,
    limit: u32,
    limited_by_mappings: bool,
}

/// Mappings of this process for everything else: libraries, threads, the memory allocator.
const OTHER_MAPPINGS: u32 = 4096;

/// How many slots this process has mappings for. A run of accessible blocks is a mapping, and so is the
/// inaccessible range after it.
fn slots_by_mappings() -> u32 {
    /// DEFAULT_MAX_MAP_COUNT (include/linux/mm.h).
    const DEFAULT: u32 = 65530;
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    let limit = limit.and_then(|limit| limit.trim().parse().ok()).unwrap_or(DEFAULT);
    (limit.saturating_sub(OTHER_MAPPINGS) / 2).max(32)
}

impl MemorySlots {
    /// All slots that `vm` has.
    pub fn new(vm: Arc<VmFd>) -> Self {
        let by_kvm = vm.check_extension_int(Cap::NrMemslots).max(32) as u32;
        let by_mappings = slots_by_mappings();
        let slots = Self::with_limit(vm, by_kvm.min(by_mappings));
        slots.lock().limited_by_mappings = by_mappings < by_kvm;
        slots
    }

    /// The first `limit` slots of `table`.
    pub fn with_limit(table: Arc<dyn SlotTable>, limit: u32) -> Self {
        let ids =
            Ids { returned: Vec::new(), next: 0, claimed: 0, limit, limited_by_mappings: false };
        Self { table, ids: Arc::new(Mutex::new(ids)), changes: Arc::default() }
    }

    /// How many slots are in use.
    pub fn used(&self) -> u32 {
        let ids = self.lock();
        ids.next - ids.returned.len() as u32
    }

    /// How many times the accessible memory in the slots has changed.
    ///
    /// KVM_RUN fails if the memory in a slot is not accessible. A vCPU reads this before KVM_RUN, and again
    /// after a failure once no other thread is changing slots. If it differs, the failure may be outdated.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Counts a change. Must be called after memory in a slot has become accessible or inaccessible.
    pub fn count_change(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Reserves `count` slots for the caller, in addition to those that it has claimed before.
    pub fn claim(&self, count: u32) -> Result<(), SlotError> {
        let mut ids = self.lock();
        if count > ids.limit - ids.claimed {
            let by_mappings = ids.limited_by_mappings;
            return Err(SlotError::Exhausted { limit: ids.limit, by_mappings });
        }
        ids.claimed += count;
        Ok(())
    }

    /// Releases slots that the caller has claimed and not set.
    pub fn release(&self, count: u32) {
        self.lock().claimed -= count;
    }

    /// Claims a slot and sets it.
    pub fn add(&self, memory: &HostMemory, offsets: Range<u64>) -> Result<SlotId, SlotError> {
        self.claim(1)?;
        self.set(memory, offsets).inspect_err(|_| self.release(1))
    }

    /// Puts `offsets` of `memory` into a slot of their own, one of those that the caller has claimed.
    pub fn set(&self, memory: &HostMemory, offsets: Range<u64>) -> Result<SlotId, SlotError> {
        assert!(!offsets.is_empty() && offsets.end <= memory.size(), "a slot beyond its memory");
        let id = self.take_id();
        let result = self.ioctl(kvm_userspace_memory_region {
            slot: id.0,
            flags: 0,
            guest_phys_addr: memory.start().0 + offsets.start,
            memory_size: offsets.end - offsets.start,
            userspace_addr: memory.host_address(offsets.start),
        });
        match result {
            Ok(()) => Ok(id),
            Err(error) => {
                self.lock().returned.push(id.0);
                Err(error)
            }
        }
    }

    /// Removes a slot. Once this returns, no vCPU reaches its memory.
    pub fn clear(&self, id: SlotId) -> Result<(), (SlotId, SlotError)> {
        match self.ioctl(kvm_userspace_memory_region { slot: id.0, ..Default::default() }) {
            Ok(()) => {
                self.lock().returned.push(id.0);
                Ok(())
            }
            Err(error) => Err((id, error)),
        }
    }

    fn ioctl(&self, region: kvm_userspace_memory_region) -> Result<(), SlotError> {
        // SAFETY: the region is empty or lies inside a live `HostMemory` (asserted in `set`), in which
        // guests may write anything. Its mapping outlives the slot: the slot's owner owns the
        // memory too, and the VM's last descriptor is closed after all vCPU threads have ended.
        let result = unsafe { self.table.set(region) };
        self.count_change();
        result.map_err(|source| SlotError::Refused {
            address: region.guest_phys_addr,
            size: region.memory_size,
            source,
        })
    }

    fn take_id(&self) -> SlotId {
        let mut ids = self.lock();
        let id = ids.returned.pop().unwrap_or_else(|| {
            ids.next += 1;
            ids.next - 1
        });
        assert!(id < ids.limit, "a slot must be claimed before it is set");
        SlotId(id)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ids> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
