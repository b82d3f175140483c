//! How the device interrupts: MSI-X with a vector for each kind of event, or INTx and the ISR
//! status (virtio 1.3, sections 4.1.4.5, 4.1.5.1.2, 4.1.5.3 and 4.1.5.4).

use std::sync::Arc;

use bitflags::bitflags;

use super::super::Notification;
use crate::pci::{IntxPin, Msix};

/// VIRTIO_MSI_NO_VECTOR: an event that does not interrupt.
const NO_VECTOR: u16 = 0xffff;

bitflags! {
    /// ISR status (section 4.1.4.5).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct IsrStatus: u8 {
        const QUEUE = 1 << 0;
        const DEVICE_CONFIGURATION = 1 << 1;
    }
}

/// The interrupts of a device, as the driver configured them.
pub struct Interrupts {
    isr_status: IsrStatus,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    msix: Arc<Msix>,
    intx: Arc<IntxPin>,
}

impl Interrupts {
    /// The interrupts of a device with this number of queues.
    pub fn new(queues: usize, msix: Arc<Msix>, intx: Arc<IntxPin>) -> Self {
        Self {
            isr_status: IsrStatus::empty(),
            config_vector: NO_VECTOR,
            queue_vectors: vec![NO_VECTOR; queues],
            msix,
            intx,
        }
    }

    pub fn notify(&mut self, notification: &Notification) {
        let Notification { used_queues, config_change } = notification;
        let msix = self.msix.is_enabled();
        let mut isr_status = self.isr_status;
        if *config_change {
            isr_status |= IsrStatus::DEVICE_CONFIGURATION;
        }
        if !used_queues.is_empty() && !msix {
            isr_status |= IsrStatus::QUEUE;
        }
        self.set_isr_status(isr_status);
        if msix {
            // No device has a vector NO_VECTOR, and one that does not exist raises nothing.
            if *config_change {
                self.msix.raise(self.config_vector);
            }
            for &queue in used_queues {
                self.msix.raise(self.queue_vector(queue));
            }
        }
    }

    /// The driver reads the ISR status, which deasserts the interrupt.
    pub fn take_isr_status(&mut self) -> u8 {
        let isr_status = self.isr_status.bits();
        self.set_isr_status(IsrStatus::empty());
        isr_status
    }

    /// INTx follows the ISR status, and is not asserted while MSI-X is enabled.
    fn set_isr_status(&mut self, isr_status: IsrStatus) {
        self.isr_status = isr_status;
        self.intx.set_level(!isr_status.is_empty());
    }

    pub fn config_vector(&self) -> u16 {
        self.config_vector
    }

    pub fn set_config_vector(&mut self, vector: u16) {
        self.config_vector = self.existing(vector);
    }

    /// The vector of a queue; none of a queue that does not exist.
    pub fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors.get(usize::from(queue)).copied().unwrap_or(NO_VECTOR)
    }

    pub fn set_queue_vector(&mut self, queue: u16, vector: u16) {
        let vector = self.existing(vector);
        if let Some(queue_vector) = self.queue_vectors.get_mut(usize::from(queue)) {
            *queue_vector = vector;
        }
    }

    pub fn reset_queue(&mut self, queue: u16) {
        self.set_queue_vector(queue, NO_VECTOR);
    }

    pub fn reset(&mut self) {
        self.set_isr_status(IsrStatus::empty());
        self.config_vector = NO_VECTOR;
        self.queue_vectors.fill(NO_VECTOR);
    }

    /// A vector that does not exist cannot be mapped: the driver reads NO_VECTOR back.
    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() { vector } else { NO_VECTOR }
    }
}
