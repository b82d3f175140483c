//! A virtual machine: what it consists of, the monitor that makes it, and the guest in it.

mod config;
mod console;
mod error;
mod machine;
mod moat;
mod moat_process;
mod monitor;
mod process;
mod qemu;
mod qmp;

use std::{
    ops::Range,
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use vmm::{Ending, MachineControl};

pub use self::{
    config::{IommuConfig, VmConfig},
    console::{Console, ConsoleText},
    error::{Trouble, VmError},
    machine::{BarAccesses, DeviceCounters, MemoryDevice, RunningMachine},
    monitor::{
        Accelerator, Direction, DmaEngine, Endpoint, Endpoints, Feature, Iommu, KnownRegister, Vmm,
    },
    process::MonitorProcess,
    qemu::QEMU,
    qmp::QmpError,
};
use self::{moat::Moat, moat_process::MoatProcess, qemu::Qemu};
use crate::{
    MIB,
    guest::{Guest, GuestError, Observe, PciAddress},
};

/// The driver of the bus that every virtio device of a check's guest is on.
pub const BUS: &str = "virtio_pci";
/// The driver under test.
pub const DRIVER: &str = "virtio_mem";
/// The driver of a virtio-iommu.
pub const IOMMU_DRIVER: &str = "virtio_iommu";
/// The first virtio-mem device.
pub const MEM0: &str = "mem0";

/// Emulated processors need 10 to 20 seconds; much more is a hang.
const BOOT_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a guest may take to do what it was asked to.
const TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Has a monitor make a machine; returns the far end of its second serial port too.
pub fn start(config: &VmConfig) -> Result<(Box<dyn RunningMachine>, UnixStream), VmError> {
    fn boxed<M: RunningMachine + 'static>(
        (machine, agent): (M, UnixStream),
    ) -> (Box<dyn RunningMachine>, UnixStream) {
        (Box::new(machine), agent)
    }
    match config.vmm {
        Vmm::Moat => Moat::start(config).map(boxed),
        Vmm::MoatProcess => MoatProcess::start(config).map(boxed),
        Vmm::Qemu(..) | Vmm::QemuMicrovm(_) => Qemu::start(config).map(boxed),
    }
}

/// A running virtual machine. Dropping it ends it.
pub struct Vm {
    /// The guest in it.
    pub guest: Guest,
    vmm: Vmm,
    machine: Box<dyn RunningMachine>,
    region: Range<u64>,
}

impl Vm {
    /// Boots a kernel with the agent, and waits for the agent's greeting.
    pub fn boot(config: &VmConfig) -> Result<Self, Box<Trouble>> {
        let (machine, agent) = start(config)?;
        let region = match config.memory_devices[..] {
            [] => 0..0,
            _ => machine.memory_device(MEM0)?.region,
        };
        match Guest::connect(agent, BOOT_TIMEOUT) {
            Ok(guest) => Ok(Self { guest, vmm: config.vmm, machine, region }),
            Err(error) => {
                let trouble = Trouble::of(error.into(), &*machine);
                Err(Box::new(Trouble { at_boot: true, ..trouble }))
            }
        }
    }

    /// What runs it.
    pub fn vmm(&self) -> Vmm {
        self.vmm
    }

    /// The region of the first virtio-mem device, in guest physical addresses; empty if there is none.
    pub fn region(&self) -> Range<u64> {
        self.region.clone()
    }

    /// The first virtio-mem device as the host sees it.
    pub fn device(&self) -> Result<MemoryDevice, VmError> {
        self.machine.memory_device(MEM0)
    }

    /// How many bytes of the first virtio-mem device are plugged.
    pub fn plugged(&self) -> Result<u64, VmError> {
        self.machine.plugged(MEM0)
    }

    /// The control of a machine of moat's in this process.
    pub fn control(&self) -> Option<&MachineControl> {
        self.machine.control()
    }

    /// What has reached the first virtio-mem device, where the monitor counts it.
    pub fn counters(&self) -> Option<DeviceCounters> {
        let status = self.control()?.status().ok()?.memory_devices.into_iter().next()?;
        Some(DeviceCounters { violations: status.violations, requests: status.requests })
    }

    /// The monitor's process, if it is one of its own.
    pub fn process(&self) -> Option<&MonitorProcess> {
        self.machine.process()
    }

    /// How many accesses of vCPUs have reached a function's BARs, where the monitor counts them.
    pub fn bar_accesses(&self, function: PciAddress) -> Option<BarAccesses> {
        let functions = self.control()?.status().ok()?.pci?.functions;
        let address = function.to_string();
        let counters =
            functions.into_iter().find(|function| address.ends_with(&function.address))?.counters;
        let decoded = counters.reads + counters.writes;
        Some(BarAccesses { decoded, refused: counters.refused })
    }

    /// Loads the driver of the IOMMU, if the kernel has one as a module, before the drivers of the devices
    /// behind it.
    pub fn load_iommu_driver(&self) -> Result<(), GuestError> {
        if self.vmm.iommu() == Iommu::Virtio {
            self.guest.load_module(BUS, "").outcome()?;
            self.guest.load_module(IOMMU_DRIVER, "").outcome()?;
        }
        Ok(())
    }

    /// Loads the driver, and waits until it has plugged what is requested.
    pub fn load_driver(&self) -> Result<(), VmError> {
        self.start_driver()?;
        self.wait_until_plugged(self.device()?.requested)
    }

    /// Loads the driver.
    pub fn start_driver(&self) -> Result<(), VmError> {
        // The bus's driver stays when this one is unloaded.
        self.guest.load_module(BUS, "").outcome()?;
        Ok(self.guest.load_module(DRIVER, "")?)
    }

    /// Unloads the driver.
    pub fn unload_driver(&self) -> Result<(), GuestError> {
        self.guest.unload_module(DRIVER)
    }

    /// Asks the driver of the first device for another size, and waits until the device has it.
    pub fn resize(&self, bytes: u64) -> Result<(), VmError> {
        self.request(bytes)?;
        self.wait_until_plugged(bytes)
    }

    /// Requests another size of the driver; one that is loaded later finds the request.
    pub fn request(&self, bytes: u64) -> Result<(), VmError> {
        self.machine.request(MEM0, bytes)
    }

    /// Waits until the driver has plugged this much, and added it to the guest's memory.
    pub fn wait_until_plugged(&self, bytes: u64) -> Result<(), VmError> {
        self.wait_until(&format!("{} MiB are plugged", bytes / MIB), || {
            Ok(self.plugged()? == bytes && {
                // Blocks are plugged before their memory is added. Where they are smaller than what
                // Linux adds at once, they are also unplugged before it is removed: its removal can
                // be waited for only when all is unplugged.
                let added = self.guest.iomem()?.size_of(ADDED_MEMORY);
                if bytes == 0 { added == 0 } else { added >= bytes }
            })
        })
    }

    /// Polls until a condition is true.
    pub fn wait_until(
        &self,
        what: &str,
        mut is_so: impl FnMut() -> Result<bool, VmError>,
    ) -> Result<(), VmError> {
        let end = Instant::now() + TIMEOUT;
        while !is_so()? {
            if Instant::now() > end {
                return Err(VmError::TimedOut(what.to_owned()));
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// How the machine ended, if it does within this time.
    pub fn wait_for_end(&self, timeout: Duration) -> Option<Ending> {
        self.machine.wait_for_end(timeout)
    }

    /// Powers the guest off.
    pub fn power_off(&self) -> Result<(), VmError> {
        self.guest.power_off()?;
        match self.wait_for_end(TIMEOUT) {
            Some(Ending::PowerOff) => Ok(()),
            Some(other) => Err(VmError::Ending(other)),
            None => Err(VmError::NoEnding),
        }
    }

    /// Whether the guest did not answer because its kernel has ended itself.
    pub fn has_died_of<T>(&self, answer: &Result<T, GuestError>) -> bool {
        matches!(answer, Err(GuestError::NoAnswer { .. } | GuestError::Channel { .. }))
            && matches!(self.wait_for_end(TIMEOUT), Some(Ending::Panic | Ending::Reset))
    }

    /// An error with what else is known about the machine by now.
    pub fn trouble(&self, error: VmError) -> Box<Trouble> {
        Box::new(Trouble::of(error, &*self.machine))
    }

    /// What the guest has printed.
    pub fn console(&self) -> ConsoleText {
        self.machine.console()
    }
}

/// What `/proc/iomem` calls the memory that the driver has added.
pub const ADDED_MEMORY: &str = "System RAM (virtio_mem)";
