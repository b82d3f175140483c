//! Why a machine ends. The first reason counts, except that a machine can still be stopped after a reset.

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use devices::platform::{PlatformControl, PlatformEvent};

use crate::sync::Cancellation;
use crate::violations::Violation;
use crate::violations::refusals::RefusedDevice;

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// Every vCPU halted with interrupts off.
    Halt,
    /// A fault while a vCPU delivered a double fault.
    TripleFault,
    /// The guest kernel panicked.
    Panic,
    /// KVM could not continue a vCPU.
    VcpuError(String),
    /// Part of the machine failed.
    MachineError(String),
    /// A vCPU accessed an unplugged block, and the policy is to stop then.
    Violation(Box<Violation>),
    /// A device's DMA to an unplugged block was refused, and the policy is to stop then.
    RefusedDma(Box<RefusedDevice>),
    /// The program that runs the machine ended it.
    Stopped,
}

impl Ending {
    /// Whether a PC would restart.
    pub fn is_reset(&self) -> bool {
        matches!(self, Self::Reset | Self::TripleFault)
    }

    /// The exit code of a program that ran a machine to this end.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Stopped => 0,
            Self::Reset => 10,
            Self::Halt => 11,
            Self::TripleFault => 12,
            Self::Panic => 13,
            Self::VcpuError(_) => 14,
            Self::MachineError(_) => 15,
            Self::Violation(_) | Self::RefusedDma(_) => 16,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest reset the machine"),
            Self::Halt => f.write_str("the guest halted: all vCPUs wait with interrupts off"),
            Self::TripleFault => f.write_str("the guest died of a triple fault"),
            Self::Panic => f.write_str("the guest kernel panicked"),
            Self::VcpuError(what) => write!(f, "KVM cannot continue the guest: {what}"),
            Self::MachineError(what) => write!(f, "the machine failed: {what}"),
            Self::Violation(violation) => {
                write!(f, "the guest was stopped after this access: {violation}")
            }
            Self::RefusedDma(refused) => {
                write!(f, "the guest was stopped after this access: {refused}")
            }
            Self::Stopped => f.write_str("the machine was stopped"),
        }
    }
}

/// The end of a machine, once there is one.
#[derive(Default)]
pub struct EndingCell {
    ending: Mutex<Option<Ending>>,
    set: Condvar,
    cancellation: Cancellation,
}

impl EndingCell {
    /// The machine ends because of `ending`, unless it has ended already.
    pub fn set(&self, ending: Ending) {
        let mut cell = self.lock();
        let is_replaced = |before: &Ending| before.is_reset() && ending == Ending::Stopped;
        if cell.as_ref().is_none_or(is_replaced) {
            *cell = Some(ending);
        }
        self.cancellation.cancel();
        self.set.notify_all();
    }

    /// Clears a reset, after which the machine restarts.
    pub fn forget_reset(&self) {
        let mut cell = self.lock();
        if cell.as_ref().is_some_and(Ending::is_reset) {
            *cell = None;
            self.cancellation.clear();
        }
    }

    /// The end, if there is one yet.
    pub fn get(&self) -> Option<Ending> {
        self.lock().clone()
    }

    /// Cancels long work of the host for the machine, once that ends.
    pub fn cancellation(&self) -> Cancellation {
        self.cancellation.clone()
    }

    /// Waits for the end.
    pub fn wait(&self) -> Ending {
        let mut ending = self.lock();
        loop {
            match &*ending {
                Some(ending) => return ending.clone(),
                None => {
                    ending = self.set.wait(ending).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Ending>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PlatformControl for EndingCell {
    fn request(&self, event: PlatformEvent) {
        self.set(match event {
            PlatformEvent::PowerOff => Ending::PowerOff,
            PlatformEvent::Reset => Ending::Reset,
            PlatformEvent::Panicked => Ending::Panic,
        });
    }
}
