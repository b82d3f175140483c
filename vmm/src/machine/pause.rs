//! Pausing a machine: nothing of it goes on, and nothing is lost.
//!
//! First every vCPU finishes what it exited for and stays out of KVM_RUN. Then the devices' threads finish
//! what they are at ([`DeviceGate`]): no ring is processed, and no byte of a serial port is moved, but for
//! those that an endpoint is being given already. Last the clocks are stopped. What comes meanwhile waits:
//! a doorbell, input, and a resize, of which the guest learns when it goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use thiserror::Error;

use super::error::NotRunning;
use crate::arch::x86_64::clocks::{Clocks, StoppedClocks};
use crate::exit::EndingCell;
use crate::kvm::VcpuError;
use crate::quiesce::{DeviceGate, VcpuGate};
use crate::sync::lock;

/// A machine that cannot be paused, or cannot go on.
#[derive(Debug, Error)]
pub enum PauseError {
    /// There is nothing to pause.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// KVM does not stop its clocks, or does not let them go on. It is as it was.
    #[error("cannot stop or start the guest's clocks: {0}")]
    Clocks(#[from] VcpuError),
}

/// What is stopped while a machine is paused.
pub struct Pause {
    /// Where vCPUs are stopped.
    pub gate: Arc<VcpuGate>,
    /// Where devices' threads are.
    pub devices: Arc<DeviceGate>,
    clocks: Clocks,
    ending: Arc<EndingCell>,
    /// There are some while the machine is paused.
    stopped: Mutex<Option<StoppedClocks>>,
    is_paused: AtomicBool,
}

impl Pause {
    /// Of a machine that runs.
    pub fn new(
        gate: Arc<VcpuGate>,
        devices: Arc<DeviceGate>,
        clocks: Clocks,
        ending: Arc<EndingCell>,
    ) -> Self {
        Self {
            gate,
            devices,
            clocks,
            ending,
            stopped: Mutex::default(),
            is_paused: AtomicBool::new(false),
        }
    }

    /// Whether the machine is paused. Does not wait for one who is pausing it.
    pub fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::Acquire)
    }

    /// Pauses the machine, if it is not paused. A device's request that is under way is waited for.
    pub fn pause(&self) -> Result<(), PauseError> {
        let mut stopped = lock(&self.stopped);
        if stopped.is_some() {
            return Ok(());
        }
        if !self.gate.hold() {
            return Err(NotRunning.into());
        }
        self.devices.close();
        match self.stop_clocks() {
            Ok(clocks) => *stopped = Some(clocks),
            Err(error) => {
                self.let_go_on();
                return Err(error);
            }
        }
        self.is_paused.store(true, Ordering::Release);
        Ok(())
    }

    fn stop_clocks(&self) -> Result<StoppedClocks, PauseError> {
        // The guest may have reset the machine just before, and whoever ends it needs its threads.
        match self.ending.get() {
            Some(_) => Err(NotRunning.into()),
            None => Ok(self.clocks.stop()?),
        }
    }

    /// Lets the machine go on, if it is paused.
    pub fn resume(&self) -> Result<(), PauseError> {
        let mut stopped = lock(&self.stopped);
        if let Some(clocks) = &*stopped {
            self.clocks.start(clocks)?;
            *stopped = None;
            self.is_paused.store(false, Ordering::Release);
            self.let_go_on();
        }
        Ok(())
    }

    fn let_go_on(&self) {
        self.devices.open();
        self.gate.release();
    }

    /// Ends the vCPUs, whether the machine is paused or not, and lets devices' threads go on, so that
    /// they can be ended. The machine's end has been set before.
    pub fn end(&self) {
        self.gate.end();
        self.devices.open();
    }
}
