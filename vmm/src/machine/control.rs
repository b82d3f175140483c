//! Controlling a machine from any thread: status, resize, pause, resume and stop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use devices::virtio::iommu::Translations;

use super::error::{NotRunning, ResizeRefused};
use super::page_descriptors;
use super::pause::{Pause, PauseError};
use super::status::{MachineStatus, Resizing, RunState};
use crate::board::memory_device::{Enforcement, MemoryDevice};
use crate::board::pci::Pci;
use crate::exit::{Ending, EndingCell};
use crate::memory::host::HostWork;
use crate::memory::slots::MemorySlots;
use crate::quiesce::DeviceGate;
use crate::symbols::GuestSymbols;
use crate::sync::lock;

/// Controls a machine from any thread: before it starts, while it runs, and after its end.
#[derive(Clone, Default)]
pub struct MachineControl {
    pub(super) phase: Arc<Mutex<Phase>>,
    pub(super) ending: Arc<EndingCell>,
    pub(super) devices: Arc<DeviceGate>,
    starting: Arc<Starting>,
}

/// The progress of a machine's start.
#[derive(Default)]
struct Starting {
    to_populate: AtomicU64,
    populated: Arc<AtomicU64>,
}

/// What a machine is doing.
#[derive(Default)]
pub enum Phase {
    /// It starts, for the first time or after a reset.
    #[default]
    Starting,
    /// It runs.
    Running(Parts),
    /// It has ended and its parts are freed; this is its last status.
    Ended(Box<MachineStatus>),
}

/// The parts of a running machine that its [`MachineControl`] uses.
pub struct Parts {
    /// Pauses and resumes it.
    pub pause: Arc<Pause>,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Whether unplugged memory is out of the guest's reach.
    pub enforcement: Enforcement,
    /// KVM's memory slots.
    pub slots: MemorySlots,
    /// The virtio-mem devices.
    pub memory_devices: Vec<Arc<MemoryDevice>>,
    /// PCI, if there is any.
    pub pci: Option<Arc<Pci>>,
    /// What the IOMMU translates, if there is one.
    pub iommu: Option<Arc<Translations>>,
    /// The names of the kernel's functions.
    pub symbols: Arc<GuestSymbols>,
}

impl Phase {
    fn running(&self) -> Result<&Parts, NotRunning> {
        match self {
            Self::Running(parts) => Ok(parts),
            Self::Starting | Self::Ended(_) => Err(NotRunning),
        }
    }
}

impl Parts {
    /// The machine as it is now.
    pub fn status(&self) -> MachineStatus {
        let state = if self.pause.is_paused() { RunState::Paused } else { RunState::Running };
        MachineStatus {
            state,
            vcpus: self.vcpus,
            memory: self.memory,
            memory_slots: self.slots.used(),
            enforcement: self.enforcement,
            memory_devices: self.memory_devices.iter().map(|device| device.status()).collect(),
            pci: self.pci.as_ref().map(|pci| pci.status()),
            iommu: self.iommu.as_ref().map(|translations| translations.status()),
        }
    }
}

impl MachineControl {
    /// The machine as it is now, or was at its end.
    pub fn status(&self) -> Result<MachineStatus, NotRunning> {
        match &*lock(&self.phase) {
            Phase::Starting => Err(NotRunning),
            Phase::Running(parts) => Ok(parts.status()),
            Phase::Ended(status) => Ok(MachineStatus::clone(status)),
        }
    }

    /// Pauses the machine: no vCPU runs guest code, no device does anything, and the guest's clocks stand
    /// still. Returns once it is paused, or at once if it was. May wait until a device has
    /// carried out a request.
    pub fn pause(&self) -> Result<MachineStatus, PauseError> {
        self.pausing()?.pause()?;
        Ok(self.status()?)
    }

    /// Resumes a paused machine. Does nothing if it runs.
    pub fn resume(&self) -> Result<MachineStatus, PauseError> {
        self.pausing()?.resume()?;
        Ok(self.status()?)
    }

    /// The machine's [`Pause`], without the lock of the phase: pausing may take long, and other calls must not
    /// wait for it.
    fn pausing(&self) -> Result<Arc<Pause>, NotRunning> {
        Ok(Arc::clone(&lock(&self.phase).running()?.pause))
    }

    /// Asks the driver of device `id` to plug or unplug until `bytes` are plugged.
    pub fn resize(&self, id: &str, bytes: u64) -> Result<Resizing, ResizeRefused> {
        let phase = lock(&self.phase);
        let parts = phase.running()?;
        let Some(device) = parts.memory_devices.iter().find(|device| device.id() == id) else {
            let known: Vec<&str> = parts.memory_devices.iter().map(|device| device.id()).collect();
            let known =
                if known.is_empty() { "no virtio-mem device".into() } else { known.join(", ") };
            return Err(ResizeRefused::UnknownDevice { id: id.into(), known });
        };
        device.resize(bytes).map_err(|source| ResizeRefused::Size { id: id.into(), source })?;
        let device = device.status();
        let growth = device.requested.saturating_sub(device.plugged);
        Ok(Resizing { device, warning: page_descriptors::warning(growth, parts.memory) })
    }

    /// Calls `look` with the symbols of the guest's kernel.
    pub fn with_symbols<T>(&self, look: impl FnOnce(&GuestSymbols) -> T) -> Result<T, NotRunning> {
        Ok(look(&lock(&self.phase).running()?.symbols))
    }

    /// Whether the machine has been stopped, or has ended by itself.
    pub fn is_stopped(&self) -> bool {
        self.ending.get().is_some()
    }

    /// Bytes of RAM that are allocated so far while the machine starts, and bytes that will be. Both are 0
    /// unless RAM is allocated in advance.
    pub fn start_progress(&self) -> (u64, u64) {
        let Starting { to_populate, populated } = &*self.starting;
        (populated.load(Ordering::Relaxed), to_populate.load(Ordering::Relaxed))
    }

    /// Ends the machine, whatever the guest is doing. If it is still starting, it does not start.
    pub fn stop(&self) {
        self.ending.set(Ending::Stopped);
    }

    /// Begins to count the progress of allocating `bytes` of RAM in advance.
    pub fn start_work(&self, bytes: u64) -> HostWork {
        self.starting.to_populate.store(bytes, Ordering::Relaxed);
        self.starting.populated.store(0, Ordering::Relaxed);
        let populated = Arc::clone(&self.starting.populated);
        HostWork { cancellation: self.ending.cancellation(), populated }
    }
}
