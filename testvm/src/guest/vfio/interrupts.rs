//! Interrupts of a function that a process drives through VFIO.

use super::{VfioDevice, vfio};
use crate::guest::{EventFd, GuestError};

const DEVICE_SET_IRQS: u32 = vfio(10);

/// `struct vfio_irq_set`: the data is nothing, or eventfds.
const DATA_NONE: u32 = 1 << 0;
const DATA_EVENTFD: u32 = 1 << 2;
const ACTION_UNMASK: u32 = 1 << 4;
const ACTION_TRIGGER: u32 = 1 << 5;

/// A kind of interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum VfioInterrupt {
    /// INTx, level-triggered. VFIO masks it when it fires.
    Intx = 0,
    /// MSI-X.
    MsiX = 2,
    /// Not the function's: VFIO asks its user to give the function back.
    Request = 4,
}

impl<Access> VfioDevice<Access> {
    /// Has the first vectors tell these eventfds.
    pub fn enable_interrupts(
        &self,
        interrupt: VfioInterrupt,
        events: &[&EventFd],
    ) -> Result<(), GuestError> {
        let descriptors: Vec<_> =
            events.iter().flat_map(|event| event.descriptor().to_le_bytes()).collect();
        self.set_irqs(DATA_EVENTFD | ACTION_TRIGGER, interrupt, events.len() as u32, &descriptors)
    }

    /// Has no vector tell anybody.
    pub fn disable_interrupts(&self, interrupt: VfioInterrupt) -> Result<(), GuestError> {
        self.set_irqs(DATA_NONE | ACTION_TRIGGER, interrupt, 0, &[])
    }

    /// Has VFIO itself tell the first vector's eventfd, without the function.
    pub fn trigger_interrupt(&self, interrupt: VfioInterrupt) -> Result<(), GuestError> {
        self.set_irqs(DATA_NONE | ACTION_TRIGGER, interrupt, 1, &[])
    }

    /// Unmasks INTx.
    pub fn unmask_intx(&self) -> Result<(), GuestError> {
        self.set_irqs(DATA_NONE | ACTION_UNMASK, VfioInterrupt::Intx, 1, &[])
    }

    fn set_irqs(
        &self,
        flags: u32,
        interrupt: VfioInterrupt,
        count: u32,
        data: &[u8],
    ) -> Result<(), GuestError> {
        const HEAD: u32 = 20;
        let size = HEAD + data.len() as u32;
        let head = [size, flags, interrupt as u32, 0, count].map(u32::to_le_bytes).concat();
        self.device.exchange(DEVICE_SET_IRQS, [&head, data].concat()).map(drop)
    }
}
