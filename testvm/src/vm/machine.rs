//! A machine that runs, whichever monitor runs it.

use std::{ops::Range, time::Duration};

use vmm::{
    Ending, MachineControl, MachineStatus, machine::RequestCounters, violations::ViolationCounters,
};

use super::{ConsoleText, MonitorProcess, VmError};

/// A virtio-mem device, as its machine has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryDevice {
    /// Its region, in guest physical addresses.
    pub region: Range<u64>,
    /// Bytes requested from the driver.
    pub requested: u64,
    /// Bytes plugged.
    pub plugged: u64,
}

impl MemoryDevice {
    /// A device of moat's by its name.
    pub(super) fn of(status: MachineStatus, name: &str) -> Result<Self, VmError> {
        let mut devices = status.memory_devices.into_iter();
        let device =
            devices.find(|device| device.id == name).ok_or(VmError::Absent("such device"))?;
        Ok(Self {
            region: device.address..device.address + device.size,
            requested: device.requested,
            plugged: device.plugged,
        })
    }
}

/// What has reached a virtio-mem device and its unplugged memory so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Accesses to unplugged memory.
    pub violations: ViolationCounters,
    /// The driver's requests.
    pub requests: RequestCounters,
}

/// How many accesses of vCPUs have reached a function's BARs so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarAccesses {
    /// Those that it decoded.
    pub decoded: u64,
    /// Those that it did not: decoding was off, or it was in D3hot or in a reset.
    pub refused: u64,
}

impl BarAccesses {
    /// All of them.
    pub fn total(self) -> u64 {
        self.decoded + self.refused
    }
}

/// A machine, whichever monitor runs it. It ends when it is dropped.
pub trait RunningMachine {
    /// A virtio-mem device by its name.
    fn memory_device(&self, name: &str) -> Result<MemoryDevice, VmError>;

    /// How many bytes of a virtio-mem device are plugged, by a single request to the monitor.
    fn plugged(&self, name: &str) -> Result<u64, VmError> {
        Ok(self.memory_device(name)?.plugged)
    }

    /// Asks the driver of a virtio-mem device for another size.
    fn request(&self, name: &str, bytes: u64) -> Result<(), VmError>;

    /// The control of a machine of moat's in this process.
    fn control(&self) -> Option<&MachineControl> {
        None
    }

    /// The monitor's process, if it is not this one.
    fn process(&self) -> Option<&MonitorProcess> {
        None
    }

    /// How the machine ended, if it does within this time.
    fn wait_for_end(&self, timeout: Duration) -> Option<Ending>;

    /// What the guest has printed.
    fn console(&self) -> ConsoleText;
}
