//! Blocks that exist only while plugged.
//!
//! An unplugged block has no memory, and the mapping behind it permits no access: nobody can touch it,
//! neither a vCPU nor a device nor this process by mistake. That costs hardly more than giving the
//! memory back. It does not tell who tried, for then KVM_RUN fails with EFAULT and no address. So
//! the vCPU that is refused has all unplugged blocks withdrawn from the memory slots ([`Windows`]), and
//! tries again: now its access is an MMIO exit. Only the first stray access costs anything, then.
//!
//! The host may take long to give memory and to take it back. The windows are not locked meanwhile, so
//! that no vCPU waits for that.

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
    #[error("the host does not give memory, or does not take it back: {0}")]
    Host(#[from] io::Error),
}

impl From<StrictError> for BackendBusy {
    fn from(error: StrictError) -> Self {
        Self(Box::new(error))
    }
}

/// The memory of a device whose unplugged blocks nobody reaches.
///
/// Blocks are plugged and unplugged by one thread; any may have unplugged ones withdrawn.
pub struct StrictBlocks {
    region: Region,
    memory: HostMemory,
    leases: Leases,
    windows: Mutex<Windows>,
}

impl StrictBlocks {
    /// All blocks of `region` unplugged; `memory` is what stands behind them, which devices access
    /// within `leases`.
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

    /// Takes all unplugged blocks out of the memory slots, so that touching one is an MMIO exit.
    /// Returns whether there were any.
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
            if let Err(error) = self.take_back(offsets.clone()) {
                error!("blocks {:?} are unplugged and not gone: {error}", range.indices());
            }
        })
    }

    fn try_unplug(&self, range: BlockRange) -> Result<(), StrictError> {
        let unplugging = lock(&self.windows).begin_unplug(range)?;
        let result = self.take_from_everybody(self.region.byte_offsets(range));
        let mut windows = lock(&self.windows);
        match result {
            Ok(()) => windows.end_unplug(unplugging),
            Err(error) => {
                self.give_again(range);
                windows.cancel_unplug(unplugging);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Leaves no slots either: everything is as it was at first.
    fn try_unplug_all(&self) -> Result<(), StrictError> {
        let unplugging = lock(&self.windows).begin_unplug_all();
        let result = self.take_from_everybody(0..self.memory.size());
        let mut windows = lock(&self.windows);
        if let Err(error) = result {
            unplugging.blocks().iter().for_each(|run| self.give_again(*run));
            windows.cancel_unplug(unplugging);
            return Err(error.into());
        }
        windows.end_unplug(unplugging);
        if let Err(error) = windows.clear() {
            error!("unplugged blocks stay in their memory slots: {error}");
        }
        Ok(())
    }

    /// Leaves nothing of `offsets`, which are reachable no more, to anybody.
    fn take_from_everybody(&self, offsets: Range<u64>) -> io::Result<()> {
        self.leases.drain();
        self.take_back(offsets)
    }

    fn take_back(&self, offsets: Range<u64>) -> io::Result<()> {
        self.memory.forbid(offsets.clone())?;
        self.memory.discard(offsets)
    }

    /// Undoes a failed [`Self::take_back`].
    fn give_again(&self, range: BlockRange) {
        if let Err(error) = self.memory.permit(self.region.byte_offsets(range)) {
            error!("blocks {:?} are lost to the guest: {error}", range.indices());
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
