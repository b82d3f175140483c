//! Blocks that can be accessed only while they are plugged.
//!
//! An unplugged block has no memory, and its mapping permits no access, neither by a vCPU nor by a device nor
//! by this process by mistake. That costs hardly more than returning the memory to the host. But it does not
//! show which address was accessed: KVM_RUN fails with EFAULT and no address. So the vCPU then has all
//! unplugged blocks withdrawn from the memory slots ([`Windows`]), and repeats the access, which now is an
//! MMIO exit. Only the first such access is slow.
//!
//! The host may take long to allocate and to free memory. The windows are not locked meanwhile, so that no
//! vCPU has to wait for that.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use devices::dma::Leases;
use devices::virtio::mem::{BackendBusy, BlockBackend, BlockRange, Region};
use log::error;
use thiserror::Error;

use super::host::HostMemory;
use super::reachable::ReachableBlocks;
use super::slots::{MemorySlots, SlotError};
use super::windows::Windows;
use crate::exit::EndingCell;
use crate::quiesce::VcpuGate;
use crate::sync::lock;

/// Why blocks cannot be plugged or unplugged now.
#[derive(Debug, Error)]
enum StrictError {
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error("the host cannot allocate or free the memory: {0}")]
    Host(#[from] io::Error),
}

impl From<StrictError> for BackendBusy {
    fn from(error: StrictError) -> Self {
        Self(Box::new(error))
    }
}

/// The memory of a device whose unplugged blocks cannot be accessed.
///
/// One thread plugs and unplugs blocks; any thread may withdraw unplugged ones.
pub struct StrictBlocks {
    region: Region,
    memory: HostMemory,
    leases: Leases,
    windows: Mutex<Windows>,
}

impl StrictBlocks {
    /// All blocks of `region` are unplugged; `memory` backs them. Devices access it under `leases`.
    pub fn new(
        region: Region,
        memory: HostMemory,
        slots: MemorySlots,
        gate: Arc<VcpuGate>,
        leases: Leases,
        reachable: Arc<ReachableBlocks>,
        ending: Arc<EndingCell>,
    ) -> io::Result<Self> {
        memory.forbid(0..memory.size())?;
        let windows = Windows::new(region, memory.clone(), slots, gate, reachable, ending);
        Ok(Self { region, memory, leases, windows: Mutex::new(windows) })
    }

    /// Removes all unplugged blocks from the memory slots, so that an access to one is an MMIO exit.
    /// Returns whether any were in one.
    pub fn withdraw_unplugged(&self) -> Result<bool, SlotError> {
        lock(&self.windows).withdraw_unplugged()
    }

    fn try_plug(&self, range: BlockRange) -> Result<(), StrictError> {
        let offsets = self.region.byte_offsets(range);
        let plug = || {
            self.memory.permit(offsets.clone())?;
            self.memory.populate(offsets.clone())?;
            Ok(lock(&self.windows).plug(range)?)
        };
        plug().inspect_err(|_| {
            // A vCPU may have written to it already.
            if let Err(error) = self.reclaim(offsets.clone()) {
                error!("cannot free the unplugged blocks {:?}: {error}", range.indices());
            }
        })
    }

    fn try_unplug(&self, range: BlockRange) -> Result<(), StrictError> {
        let unplugging = lock(&self.windows).begin_unplug(range)?;
        let result = self.drain_and_reclaim(self.region.byte_offsets(range));
        let mut windows = lock(&self.windows);
        match result {
            Ok(()) => windows.end_unplug(unplugging),
            Err(error) => {
                self.permit_again(range);
                windows.cancel_unplug(unplugging);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Unplugs everything and removes all slots: the initial state.
    fn try_unplug_all(&self) -> Result<(), StrictError> {
        let unplugging = lock(&self.windows).begin_unplug_all();
        let result = self.drain_and_reclaim(0..self.memory.size());
        let mut windows = lock(&self.windows);
        if let Err(error) = result {
            unplugging.blocks().iter().for_each(|run| self.permit_again(*run));
            windows.cancel_unplug(unplugging);
            return Err(error.into());
        }
        windows.end_unplug(unplugging);
        if let Err(error) = windows.clear() {
            error!("cannot remove unplugged blocks from their memory slots: {error}");
        }
        Ok(())
    }

    /// Frees `offsets`, which are not reachable any more, once no device accesses them.
    fn drain_and_reclaim(&self, offsets: Range<u64>) -> io::Result<()> {
        self.leases.drain();
        self.reclaim(offsets)
    }

    fn reclaim(&self, offsets: Range<u64>) -> io::Result<()> {
        self.memory.forbid(offsets.clone())?;
        self.memory.discard(offsets)
    }

    /// Undoes a failed [`Self::reclaim`].
    fn permit_again(&self, range: BlockRange) {
        if let Err(error) = self.memory.permit(self.region.byte_offsets(range)) {
            error!("cannot make blocks {:?} accessible again: {error}", range.indices());
        }
    }
}

impl BlockBackend for StrictBlocks {
    fn plug(&self, range: BlockRange) -> Result<(), BackendBusy> {
        Ok(self.try_plug(range)?)
    }

    fn unplug(&self, range: BlockRange) -> Result<(), BackendBusy> {
        Ok(self.try_unplug(range)?)
    }

    fn unplug_all(&self) -> Result<(), BackendBusy> {
        Ok(self.try_unplug_all()?)
    }
}
