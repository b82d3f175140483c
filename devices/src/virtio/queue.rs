//! One virtqueue: the registers a driver sets it up with, and the rings behind them.
//!
//! The rings are `virtio-queue`'s. What a driver writes is kept as plain registers until it makes
//! the queue ready and only then checked, as a whole, so that a wrong value is one error at one
//! place however it arrived.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;

use super::{Chain, VirtioDevice};
use crate::dma::{DmaView, NotPermitted};

/// The driver corrupted the ring: the device has to be reset.
#[derive(Debug, Error)]
#[error("the driver corrupted the queue: {0}")]
pub struct QueueCorrupt(#[from] virtio_queue::Error);

/// The result of processing a queue.
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

/// A virtqueue of a device: its registers, and its ring while it is ready.
pub struct Virtqueue {
    /// What the driver writes before it makes the queue ready.
    pub registers: QueueRegisters,
    max_size: u16,
    live: Option<Live>,
}

/// The state of a queue while it is ready.
struct Live {
    /// Identifies this use of the queue, and ends with it.
    memory: Arc<DmaView>,
    /// None while a thread processes it.
    ring: Option<Ring>,
}

impl Virtqueue {
    /// A queue of at most `max_size` descriptors, which must be a power of two.
    pub fn new(max_size: u16) -> Self {
        let registers = QueueRegisters { size: max_size, ..QueueRegisters::default() };
        Self { registers, max_size, live: None }
    }

    /// The largest size offered.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Whether the driver has made the queue ready.
    pub fn is_ready(&self) -> bool {
        self.live.is_some()
    }

    /// Back to the state before the driver set it up. A ring that is being processed is not accessed
    /// any more once the earlier leases are over ([`Leases::settle`](crate::dma::Leases::settle)).
    pub fn reset(&mut self) {
        if let Some(live) = &self.live {
            live.memory.revoke();
        }
        *self = Self::new(self.max_size);
    }

    /// The driver makes the queue ready with the registers as they stand.
    pub fn enable(&mut self, memory: &DmaView, event_idx: bool) -> Result<(), QueueCorrupt> {
        let memory = Arc::new(memory.revocable());
        let ring = Ring::new(self.max_size, self.registers, Arc::clone(&memory), event_idx)?;
        self.live = Some(Live { memory, ring: Some(ring) });
        Ok(())
    }

    /// Takes the ring, if the queue is ready, to process it without a lock on the queue.
    pub fn take_ring(&mut self) -> Option<Ring> {
        self.live.as_mut()?.ring.take()
    }

    /// Puts back what was taken. False if the queue has been reset meanwhile.
    pub fn put_back(&mut self, ring: Ring) -> bool {
        let live = self.live.as_mut().filter(|live| Arc::ptr_eq(&live.memory, &ring.memory));
        live.map(|live| live.ring = Some(ring)).is_some()
    }
}

/// The rings of a queue that is ready.
pub struct Ring {
    queue: Queue,
    memory: Arc<DmaView>,
    /// A chain that has been answered, and its used length: not in the used ring yet, because the device
    /// was not permitted to write there.
    answered: Option<(u16, u32)>,
    /// Whether chains have been used of which the driver has not been notified.
    unannounced: bool,
}

/// Why a ring is not processed any further.
enum Interruption {
    /// The device may not access it: it is left as it is until it may again.
    NotPermitted,
    Corrupt(QueueCorrupt),
}

impl From<NotPermitted> for Interruption {
    fn from(_: NotPermitted) -> Self {
        Self::NotPermitted
    }
}

impl From<virtio_queue::Error> for Interruption {
    fn from(error: virtio_queue::Error) -> Self {
        Self::Corrupt(error.into())
    }
}

impl Ring {
    fn new(
        max_size: u16,
        registers: QueueRegisters,
        memory: Arc<DmaView>,
        event_idx: bool,
    ) -> Result<Self, QueueCorrupt> {
        let mut queue = Queue::new(max_size)?;
        queue.try_set_size(registers.size)?;
        queue.try_set_desc_table_address(GuestAddress(registers.descriptor_area))?;
        queue.try_set_avail_ring_address(GuestAddress(registers.driver_area))?;
        queue.try_set_used_ring_address(GuestAddress(registers.device_area))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // A device that may not access its rings yet checks them when it may.
        if memory.lease().is_ok_and(|lease| !queue.is_valid(&lease)) {
            return Err(QueueCorrupt(virtio_queue::Error::QueueNotReady));
        }
        Ok(Self { queue, memory, answered: None, unannounced: false })
    }

    /// Has `device` answer the chains that the driver made available on queue `index`: at most as many
    /// as the ring has entries, so that a driver that keeps adding chains cannot keep the thread here.
    pub fn process(
        &mut self,
        index: u16,
        device: &dyn VirtioDevice,
    ) -> Result<Progress, QueueCorrupt> {
        match self.answer_chains(index, device) {
            Ok(progress) => Ok(progress),
            Err(Interruption::NotPermitted) => Ok(Progress::default()),
            Err(Interruption::Corrupt(error)) => Err(error),
        }
    }

    fn answer_chains(
        &mut self,
        index: u16,
        device: &dyn VirtioDevice,
    ) -> Result<Progress, Interruption> {
        let memory = Arc::clone(&self.memory);
        self.use_answered()?;
        self.queue.disable_notification(&memory.lease()?)?;
        let mut more = true;
        for _ in 0..self.queue.size() {
            if !device.wants_chain(index) {
                more = false;
                break;
            }
            let Some(chain) = self.next_chain(index, &memory)? else {
                device.ran_empty(index);
                more = self.queue.enable_notification(&memory.lease()?)?;
                break;
            };
            self.answered = Some((chain.id().head, device.process_chain(index, &chain)));
            self.use_answered()?;
        }
        let interrupt = self.unannounced && self.queue.needs_notification(&memory.lease()?)?;
        self.unannounced = false;
        Ok(Progress { interrupt, more })
    }

    /// Puts the chain that was answered into the used ring.
    fn use_answered(&mut self) -> Result<(), Interruption> {
        if let Some((head, used_bytes)) = self.answered {
            self.queue.add_used(&self.memory.lease()?, head, used_bytes)?;
            self.answered = None;
            self.unannounced = true;
        }
        Ok(())
    }

    /// The next available chain. If the index announces an entry that is not valid, the ring is
    /// corrupt.
    fn next_chain<'a>(
        &mut self,
        index: u16,
        memory: &'a DmaView,
    ) -> Result<Option<Chain<'a>>, Interruption> {
        let queue = &mut self.queue;
        let lease = memory.lease()?;
        // Read before the ring: a driver may announce more at any moment.
        if queue.avail_idx(&lease, Ordering::Acquire)?.0 == queue.next_avail() {
            return Ok(None);
        }
        let size = queue.size();
        let chain = queue.iter(&lease)?.next().ok_or(virtio_queue::Error::InvalidAvailRingIndex)?;
        if chain.head_index() >= size {
            return Err(virtio_queue::Error::InvalidDescriptorIndex.into());
        }
        Ok(Some(Chain::read(memory, &lease, index, chain, size)))
    }
}
