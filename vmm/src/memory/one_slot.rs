//! Blocks that stay reachable when unplugged: one memory slot for the whole region.
//!
//! This is `--enforce off`, which is what other machine monitors do. It serves as a comparison.

use devices::virtio::mem::{BackendBusy, BlockBackend, BlockRange, Region};

use super::host::HostMemory;
use super::slots::{MemorySlots, SlotError, SlotId};

/// The memory of a device that relies on its driver not to access unplugged blocks.
pub struct OneSlot {
    region: Region,
    memory: HostMemory,
    _slot: SlotId,
}

impl OneSlot {
    /// Puts all of `memory`, which backs `region`, into one slot.
    pub fn new(region: Region, memory: HostMemory, slots: &MemorySlots) -> Result<Self, SlotError> {
        let slot = slots.add(&memory, 0..memory.size())?;
        Ok(Self { region, memory, _slot: slot })
    }

    fn discard(&self, range: BlockRange) -> Result<(), BackendBusy> {
        let offsets = self.region.byte_offsets(range);
        self.memory.discard(offsets).map_err(|error| BackendBusy(Box::new(error)))
    }
}

impl BlockBackend for OneSlot {
    fn plug(&self, range: BlockRange) -> Result<(), BackendBusy> {
        // The guest may have written here while it should not have.
        self.discard(range)?;
        let offsets = self.region.byte_offsets(range);
        self.memory.populate(offsets).map_err(|error| BackendBusy(Box::new(error)))
    }

    fn unplug(&self, range: BlockRange) -> Result<(), BackendBusy> {
        self.discard(range)
    }

    fn unplug_all(&self) -> Result<(), BackendBusy> {
        self.discard(self.region.blocks())
    }
}
