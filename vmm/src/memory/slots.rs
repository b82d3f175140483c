//! KVM memory slots: which guest addresses are backed by memory at all.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Cap, VmFd};
use thiserror::Error;

use super::host::HostMemory;

/// KVM refuses a memory slot.
#[derive(Debug, Error)]
pub enum SlotError {
    /// All slot numbers are in use.
    #[error("all {limit} memory slots of this KVM are in use")]
    Exhausted {
        /// How many there are.
        limit: usize,
    },
    /// The ioctl failed.
    #[error("KVM refuses a memory slot of {size:#x} bytes at {address:#x}: {source}")]
    Refused {
        /// First guest address.
        address: u64,
        /// Bytes; 0 takes a slot away.
        size: u64,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
}

/// Number of a slot that is in use. Not `Clone`: whoever holds it may change the slot.
#[derive(Debug)]
pub struct SlotId(u32);

/// The slots of one virtual machine, shared by all of its memory.
#[derive(Clone)]
pub struct MemorySlots {
    vm: Arc<VmFd>,
    free: Arc<Mutex<FreeIds>>,
}

struct FreeIds {
    returned: Vec<u32>,
    next: u32,
    limit: u32,
}

impl MemorySlots {
    /// All slots that `vm` has.
    pub fn new(vm: Arc<VmFd>) -> Self {
        let limit = vm.check_extension_int(Cap::NrMemslots).max(32) as u32;
        Self::with_limit(vm, limit)
    }

    /// The first `limit` slots of `vm`.
    pub fn with_limit(vm: Arc<VmFd>, limit: u32) -> Self {
        let free = FreeIds { returned: Vec::new(), next: 0, limit };
        Self { vm, free: Arc::new(Mutex::new(free)) }
    }

    /// How many slots are in use.
    pub fn used(&self) -> usize {
        let free = self.lock();
        free.next as usize - free.returned.len()
    }

    /// How many are left.
    pub fn available(&self) -> usize {
        let free = self.lock();
        (free.limit - free.next) as usize + free.returned.len()
    }

    /// Backs the guest addresses of `offsets` in `memory` by a slot of their own.
    pub fn add(
        &self,
        memory: &HostMemory,
        offsets: std::ops::Range<u64>,
    ) -> Result<SlotId, SlotError> {
        let id = self.take_id()?;
        match self.set(&id, memory, offsets) {
            Ok(()) => Ok(id),
            Err(error) => {
                self.lock().returned.push(id.0);
                Err(error)
            }
        }
    }

    /// Takes a slot away. From the return on no vCPU reaches its memory.
    pub fn remove(&self, id: SlotId) -> Result<(), (SlotId, SlotError)> {
        match self.clear(&id) {
            Ok(()) => {
                self.lock().returned.push(id.0);
                Ok(())
            }
            Err(error) => Err((id, error)),
        }
    }

    /// Makes a slot back `offsets` instead of what it backed. In between it backs nothing, so no
    /// vCPU may run.
    pub fn replace(
        &self,
        id: &SlotId,
        memory: &HostMemory,
        offsets: std::ops::Range<u64>,
    ) -> Result<(), SlotError> {
        self.clear(id)?;
        self.set(id, memory, offsets)
    }

    fn clear(&self, id: &SlotId) -> Result<(), SlotError> {
        self.ioctl(kvm_userspace_memory_region { slot: id.0, ..Default::default() })
    }

    fn set(
        &self,
        id: &SlotId,
        memory: &HostMemory,
        offsets: std::ops::Range<u64>,
    ) -> Result<(), SlotError> {
        assert!(!offsets.is_empty() && offsets.end <= memory.size(), "a slot beyond its memory");
        self.ioctl(kvm_userspace_memory_region {
            slot: id.0,
            flags: 0,
            guest_phys_addr: memory.start().0 + offsets.start,
            memory_size: offsets.end - offsets.start,
            userspace_addr: memory.host_address(offsets.start),
        })
    }

    fn ioctl(&self, region: kvm_userspace_memory_region) -> Result<(), SlotError> {
        // SAFETY: the region is empty or lies inside a live `HostMemory` (asserted in `set`). Its
        // mapping outlives the slot: whoever owns the slot owns the memory, and the VM's last
        // descriptor is closed after all vCPU threads have ended.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(|source| SlotError::Refused {
            address: region.guest_phys_addr,
            size: region.memory_size,
            source,
        })
    }

    fn take_id(&self) -> Result<SlotId, SlotError> {
        let mut free = self.lock();
        if let Some(id) = free.returned.pop() {
            return Ok(SlotId(id));
        }
        if free.next == free.limit {
            return Err(SlotError::Exhausted { limit: free.limit as usize });
        }
        free.next += 1;
        Ok(SlotId(free.next - 1))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, FreeIds> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
