//! Pausing a machine without losing anything.
//!
//! First every vCPU finishes handling its exit and stays out of KVM_RUN. Then the devices' threads finish
//! their current work ([`DeviceGate`]): no ring is processed, and no byte of a serial port is moved, except
//! for bytes that are being written to an endpoint already. Last the clocks are stopped. Events that arrive
//! meanwhile stay pending: doorbells, input, and resizes, which the guest sees once it is resumed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use thiserror::Error;

use super::error::NotRunning;
use crate::arch::x86_64::clocks::{Clocks, StoppedClocks};
use crate::exit::EndingCell;
use crate::kvm::VcpuError;
use crate::quiesce::{DeviceGate, VcpuGate};
use crate::sync::lock;

/// Why a machine cannot be paused or resumed.
#[derive(Debug, Error)]
pub enum PauseError {
    /// The machine does not run.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// KVM refuses to stop or to start its clocks. The machine stays as it was.
    #[error("cannot stop or start the guest's clocks: {0}")]
    Clocks(#[from] VcpuError),
}

/// Pauses and resumes a machine.
pub struct Pause {
    /// Stops vCPUs.
    pub gate: Arc<VcpuGate>,
    /// Stops devices' threads.
    pub devices: Arc<DeviceGate>,
    clocks: Clocks,
    ending: Arc<EndingCell>,
    /// Some while the machine is paused.
    stopped: Mutex<Option<StoppedClocks>>,
    is_paused: AtomicBool,
}

impl Pause {
    /// For a machine that runs.
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

    /// Whether the machine is paused. Does not wait for a pause that is under way.
    pub fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::Acquire)
    }

    /// Pauses the machine, if it is not paused. Waits until devices have carried out their current requests.
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
                self.open_gates();
                return Err(error);
            }
        }
        self.is_paused.store(true, Ordering::Release);
        Ok(())
    }

    fn stop_clocks(&self) -> Result<StoppedClocks, PauseError> {
        // The guest may have reset the machine just before; ending it needs its threads to go on.
        match self.ending.get() {
            Some(_) => Err(NotRunning.into()),
            None => Ok(self.clocks.stop()?),
        }
    }

    /// Resumes the machine, if it is paused.
    pub fn resume(&self) -> Result<(), PauseError> {
        let mut stopped = lock(&self.stopped);
        if let Some(clocks) = &*stopped {
            self.clocks.start(clocks)?;
            *stopped = None;
            self.is_paused.store(false, Ordering::Release);
            self.open_gates();
        }
        Ok(())
    }

    fn open_gates(&self) {
        self.devices.open();
        self.gate.release();
    }

    /// Ends the vCPUs, whether the machine is paused or not, and lets devices' threads go on so that they can
    /// be joined. The machine's [`EndingCell`] must be set already.
    pub fn end(&self) {
        self.gate.end();
        self.devices.open();
    }
}
