//! One virtqueue: the registers a driver sets it up with, and the rings behind them.
//!
//! The rings are `virtio-queue`'s. What a driver writes is kept as plain registers until it makes
//! the queue ready and only then checked, as a whole, so that a wrong value is one error at one
//! place however it arrived.

use std::sync::atomic::Ordering;

use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

use super::{Chain, VirtioDevice};
use crate::dma::{ChainId, DmaView};

/// The driver broke the ring itself: only a device reset mends it.
#[derive(Debug, Error)]
#[error("the driver corrupted the queue: {0}")]
pub struct QueueCorrupt(#[from] virtio_queue::Error);

/// What processing a queue led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The driver wants an interrupt for the buffers used.
    pub interrupt: bool,
    /// The driver may have made more available: process the queue again, after other work.
    pub more: bool,
}

/// The registers of a queue, as the driver last wrote them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueRegisters {
    /// Number of descriptors.
    pub size: u16,
    /// Guest address of the descriptor area.
    pub descriptor_area: u64,
    /// Guest address of the driver area (the available ring).
    pub driver_area: u64,
    /// Guest address of the device area (the used ring).
    pub device_area: u64,
}

/// A virtqueue of a device.
pub struct Virtqueue {
    /// What the driver writes before it makes the queue ready.
    pub registers: QueueRegisters,
    max_size: u16,
    ring: Option<Queue>,
}

impl Virtqueue {
    /// A queue of at most `max_size` descriptors, which must be a power of two.
    pub fn new(max_size: u16) -> Self {
        let registers = QueueRegisters { size: max_size, ..QueueRegisters::default() };
        Self { registers, max_size, ring: None }
    }

    /// The largest size on offer.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Whether the driver has made the queue ready.
    pub fn is_ready(&self) -> bool {
        self.ring.is_some()
    }

    /// Back to the state before the driver set it up.
    pub fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// The driver makes the queue ready with the registers as they stand.
    pub fn enable(&mut self, memory: &DmaView, event_idx: bool) -> Result<(), QueueCorrupt> {
        let registers = self.registers;
        let mut ring = Queue::new(self.max_size)?;
        ring.try_set_size(registers.size)?;
        ring.try_set_desc_table_address(GuestAddress(registers.descriptor_area))?;
        ring.try_set_avail_ring_address(GuestAddress(registers.driver_area))?;
        ring.try_set_used_ring_address(GuestAddress(registers.device_area))?;
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        if !ring.is_valid(memory) {
            return Err(QueueCorrupt(virtio_queue::Error::QueueNotReady));
        }
        self.ring = Some(ring);
        Ok(())
    }

    /// Lets `device` answer what the driver made available: at most one ring's worth, so that a
    /// driver that never stops adding cannot keep the machine here.
    pub fn process(
        &mut self,
        index: u16,
        device: &mut dyn VirtioDevice,
        memory: &DmaView,
    ) -> Result<Progress, QueueCorrupt> {
        let Some(ring) = &mut self.ring else {
            return Ok(Progress::default());
        };
        let mut used_any = false;
        let mut more = true;
        ring.disable_notification(memory)?;
        for _ in 0..ring.size() {
            if !device.wants_chain(index) {
                more = false;
                break;
            }
            if let Some(chain) = next_chain(ring, memory)? {
                let head = chain.head_index();
                memory.work_on(Some(ChainId { queue: index, head }));
                // A driver must not make a chain longer than the queue (section 2.7.5.3.1), and
                // an indirect table has room for 65535 descriptors.
                let too_long = chain.clone().nth(ring.size().into()).is_some();
                let used_bytes =
                    if too_long { 0 } else { device.process_chain(index, memory, chain) };
                memory.work_on(None);
                ring.add_used(memory, head, used_bytes)?;
                used_any = true;
            } else {
                more = ring.enable_notification(memory)?;
                break;
            }
        }
        Ok(Progress { interrupt: used_any && ring.needs_notification(memory)?, more })
    }
}

/// The next available chain. An entry that is announced but is none is a corrupt ring.
fn next_chain<'a>(
    ring: &mut Queue,
    memory: &'a DmaView,
) -> Result<Option<Chain<'a>>, QueueCorrupt> {
    // Asked before the ring is: a driver may announce more at any moment.
    if ring.avail_idx(memory, Ordering::Acquire)?.0 == ring.next_avail() {
        return Ok(None);
    }
    let chain = ring.iter(memory)?.next().ok_or(virtio_queue::Error::InvalidAvailRingIndex)?;
    if chain.head_index() >= ring.size() {
        return Err(QueueCorrupt(virtio_queue::Error::InvalidDescriptorIndex));
    }
    Ok(Some(chain))
}
