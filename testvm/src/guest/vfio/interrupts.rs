//! Interrupts of a function that a process drives through VFIO.

use zerocopy::IntoBytes;

use super::{
    VfioDevice,
    wire::{IrqSet, Payload},
};
use crate::guest::{EventFd, GuestError};

/// Bits of [`IrqSet::flags`]: the data is nothing, or eventfds.
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
    /// Has the first vectors signal these eventfds.
    pub fn enable_interrupts(
        &self,
        interrupt: VfioInterrupt,
        events: &[&EventFd],
    ) -> Result<(), GuestError> {
        let descriptors: Vec<_> =
            events.iter().flat_map(|event| event.descriptor().to_le_bytes()).collect();
        self.set_irqs(DATA_EVENTFD | ACTION_TRIGGER, interrupt, events.len() as u32, &descriptors)
    }

    /// Has no vector signal an eventfd.
    pub fn disable_interrupts(&self, interrupt: VfioInterrupt) -> Result<(), GuestError> {
        self.set_irqs(DATA_NONE | ACTION_TRIGGER, interrupt, 0, &[])
    }

    /// Has VFIO itself signal the first vector's eventfd, without the function.
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
        let argsz = IrqSet::SIZE + data.len() as u32;
        let head = IrqSet { argsz, flags, index: interrupt as u32, start: 0, count };
        self.device.exchange(IrqSet::REQUEST, [head.as_bytes(), data].concat()).map(drop)
    }
}
