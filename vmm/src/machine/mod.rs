//! One virtual machine: built from its parts, run, and ended in order.

mod builder;
mod buses;
mod ending;
mod error;
mod files;
mod memmap;
mod memory_device;
mod pci;
mod serial;
mod worker;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use devices::virtio::iommu::Translations;
use log::info;
use serde::{Deserialize, Serialize};

pub use devices::virtio::iommu::{EndpointStatus, IommuStatus};
pub use devices::virtio::mem::RequestCounters;

pub use buses::{GuestBuses, StrayAccess};
pub use ending::{Ending, EndingCell};
pub use error::{MachineError, NotRunning, ResizeRefused};
pub use memory_device::{
    Enforcement, MemoryDevice, MemoryDeviceConfig, MemoryDeviceError, MemoryDeviceStatus,
    UnpluggedMemoryAccess,
};
pub use pci::{Pci, PciFunctionStatus, PciPlace, PciRangeStatus, PciStatus};
pub use serial::SerialEndpoint;

use crate::boot::BootProtocol;
use crate::memory::backing::Backing;
use crate::memory::host::{HostMemory, HostMemoryConfig, HostWork};
use crate::memory::slots::{MemorySlots, SlotId};
use crate::symbols::GuestSymbols;
use crate::sync::lock;
use crate::vcpu::VcpuGate;
use builder::Builder;
use files::Files;
use serial::SerialWires;
use worker::Worker;

/// How drivers reach virtio devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VirtioTransport {
    /// Registers in memory that ACPI tells of.
    #[default]
    Mmio,
    /// A PCI function each, on bus 0.
    Pci,
}

/// A probe device to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeConfig {
    /// Where it is.
    pub place: PciPlace,
    /// How many functions it has, each a probe of its own.
    pub functions: u8,
    /// Bytes of the memory in its BAR 2, a power of two.
    pub memory: u32,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self { place: PciPlace::default(), functions: 1, memory: 64 << 10 }
    }
}

/// A virtio-iommu to be, with every device behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IommuConfig {
    /// Whether devices reach memory by guest addresses until a driver says otherwise. A kernel
    /// without such a driver cannot use them else.
    pub bypass: bool,
}

impl Default for IommuConfig {
    fn default() -> Self {
        Self { bypass: true }
    }
}

/// What becomes of a machine that its guest resets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnReset {
    /// It ends.
    #[default]
    End,
    /// It starts anew, with everything as it was at first but the sizes requested of its memory
    /// devices: nothing is plugged, and the kernel and the initramfs are loaded again. A triple fault
    /// counts as a reset, as it does on a PC.
    Restart,
}

/// A machine to be.
pub struct MachineConfig {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// How its RAM is had from the host.
    pub ram: HostMemoryConfig,
    /// The kernel image, a bzImage or a vmlinux.
    pub kernel: PathBuf,
    /// How to enter it.
    pub protocol: BootProtocol,
    /// The initramfs; empty for none.
    pub initrd: Vec<u8>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Where the names of the kernel's functions are: a System.map, a copy of /proc/kallsyms, or a
    /// vmlinux. None to find them in the guest's memory.
    pub symbols: Option<PathBuf>,
    /// How drivers reach virtio devices.
    pub virtio_transport: VirtioTransport,
    /// Its virtio-mem devices, `mem0` first.
    pub memory_devices: Vec<MemoryDeviceConfig>,
    /// Its probe devices. With none of them, and virtio over MMIO, there is no PCI at all.
    pub probes: Vec<ProbeConfig>,
    /// Its IOMMU, if it has one.
    pub iommu: Option<IommuConfig>,
    /// Whether unplugged memory is really gone.
    pub enforcement: Enforcement,
    /// What happens when the guest resets the machine.
    pub on_reset: OnReset,
    /// ttyS0.
    pub console: SerialEndpoint,
    /// ttyS1, which serves before any virtio driver is loaded.
    pub agent: SerialEndpoint,
}

impl MachineConfig {
    /// A machine that boots `kernel` and has as little as there can be.
    pub fn new(kernel: PathBuf) -> Self {
        Self {
            vcpus: 1,
            memory: 128 << 20,
            ram: Backing::default().into(),
            kernel,
            protocol: BootProtocol::Auto,
            initrd: Vec::new(),
            cmdline: String::new(),
            symbols: None,
            virtio_transport: VirtioTransport::default(),
            memory_devices: Vec::new(),
            probes: Vec::new(),
            iommu: None,
            enforcement: Enforcement::default(),
            on_reset: OnReset::default(),
            console: SerialEndpoint::null(),
            agent: SerialEndpoint::null(),
        }
    }
}

/// A machine as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// KVM memory slots in use.
    pub memory_slots: u32,
    /// Whether unplugged memory is really gone.
    pub enforcement: Enforcement,
    /// The virtio-mem devices.
    pub memory_devices: Vec<MemoryDeviceStatus>,
    /// PCI, if there is any.
    pub pci: Option<PciStatus>,
    /// The IOMMU, if there is one.
    pub iommu: Option<IommuStatus>,
}

/// What a resize has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resizing {
    /// The device as it is now.
    #[serde(flatten)]
    pub device: MemoryDeviceStatus,
    /// What may go wrong, in words.
    pub warning: Option<String>,
}

/// What can be asked of a machine, from any thread: before it starts, while it runs, and after its end.
#[derive(Clone, Default)]
pub struct MachineControl {
    phase: Arc<Mutex<Phase>>,
    ending: Arc<EndingCell>,
    starting: Arc<Starting>,
}

/// How far the start of a machine is.
#[derive(Default)]
struct Starting {
    to_populate: AtomicU64,
    populated: Arc<AtomicU64>,
}

/// What a machine is doing.
#[derive(Default)]
enum Phase {
    /// It starts, or starts again.
    #[default]
    Starting,
    Running(Parts),
    /// Nothing is left of it, whoever still has a [`MachineControl`], but what it was like.
    Ended(Box<MachineStatus>),
}

/// The parts of a running machine that somebody may ask about.
struct Parts {
    vcpus: u32,
    memory: u64,
    enforcement: Enforcement,
    slots: MemorySlots,
    memory_devices: Vec<Arc<MemoryDevice>>,
    pci: Option<Arc<Pci>>,
    iommu: Option<Arc<Translations>>,
    symbols: Arc<GuestSymbols>,
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
    fn status(&self) -> MachineStatus {
        MachineStatus {
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
        Ok(Resizing { device, warning: memmap::warning(growth, parts.memory) })
    }

    /// Looks at the names for the instructions of the guest's kernel.
    pub fn with_symbols<T>(&self, look: impl FnOnce(&GuestSymbols) -> T) -> Result<T, NotRunning> {
        Ok(look(&lock(&self.phase).running()?.symbols))
    }

    /// Whether somebody has ended the machine, or it has ended.
    pub fn is_stopped(&self) -> bool {
        self.ending.get().is_some()
    }

    /// Bytes of RAM that have been taken from the host in advance, and that will be, while the machine
    /// starts. Both are 0 unless RAM is to be had in advance.
    pub fn start_progress(&self) -> (u64, u64) {
        let Starting { to_populate, populated } = &*self.starting;
        (populated.load(Ordering::Relaxed), to_populate.load(Ordering::Relaxed))
    }

    /// Ends the machine, whatever the guest is doing. One that is starting does not start.
    pub fn stop(&self) {
        self.ending.set(Ending::Stopped);
    }

    /// How RAM is taken from the host in advance, `bytes` of it.
    fn start_work(&self, bytes: u64) -> HostWork {
        self.starting.to_populate.store(bytes, Ordering::Relaxed);
        self.starting.populated.store(0, Ordering::Relaxed);
        let populated = Arc::clone(&self.starting.populated);
        HostWork { cancellation: self.ending.cancellation(), populated }
    }
}

/// A machine. Dropping it ends it.
pub struct Machine {
    config: MachineConfig,
    files: Files,
    serial: Vec<SerialWires>,
    control: MachineControl,
    running: Option<Running>,
}

/// The threads of a machine, and its RAM.
struct Running {
    gate: Arc<VcpuGate>,
    vcpus: Vec<JoinHandle<()>>,
    worker: Worker,
    // Slots refer to this memory: it goes last.
    _ram: Vec<(HostMemory, SlotId)>,
}

impl Running {
    fn end(self) {
        self.gate.end();
        for vcpu in self.vcpus {
            // A panic there has been reported already, and there is nothing left to do.
            let _ = vcpu.join();
        }
        self.worker.stop();
    }
}

impl Machine {
    /// The least RAM that a kernel can be loaded into.
    pub const MINIMUM_MEMORY: u64 = 16 << 20;

    /// Builds a machine and lets it run. A guest that resets it is attended to by [`Self::wait`].
    pub fn start(config: MachineConfig) -> Result<Self, MachineError> {
        Self::start_with(config, MachineControl::default())
    }

    /// The same for a machine that `control` is for, by which it may be stopped while it starts.
    pub fn start_with(
        mut config: MachineConfig,
        control: MachineControl,
    ) -> Result<Self, MachineError> {
        let endpoints = [&mut config.console, &mut config.agent]
            .map(|endpoint| std::mem::replace(endpoint, SerialEndpoint::null()));
        let files = Files::open(&config)?;
        // From here on dropping the machine puts away what has been started.
        let mut machine = Self { config, files, serial: Vec::new(), control, running: None };
        for endpoint in endpoints {
            let wires = SerialWires::start(endpoint)
                .map_err(MachineError::host("cannot start a serial port"))?;
            machine.serial.push(wires);
        }
        machine.build()?;
        if machine.config.on_reset == OnReset::End {
            // The guest has a copy, and nobody will ask for another.
            machine.config.initrd = Vec::new();
        }
        Ok(machine)
    }

    fn build(&mut self) -> Result<(), MachineError> {
        let builder = Builder::new(&self.config, &mut self.files, &self.serial, &self.control)?;
        let built = builder.build();
        // Whatever it was that could not be made for the end of the machine.
        if self.control.ending.get() == Some(Ending::Stopped) {
            if let Ok((_, running)) = built {
                running.end();
            }
            return Err(MachineError::Stopped);
        }
        let (parts, running) = built?;
        *lock(&self.control.phase) = Phase::Running(parts);
        self.running = Some(running);
        Ok(())
    }

    /// What can be asked of the machine, from any thread.
    pub fn control(&self) -> MachineControl {
        self.control.clone()
    }

    /// Waits for the machine's end and puts everything away. Starts it anew as often as its guest
    /// resets it, if that is what it was made for.
    pub fn wait(mut self) -> Ending {
        loop {
            let ending = self.control.ending.wait();
            if !ending.is_reset() || self.config.on_reset == OnReset::End {
                self.shut_down();
                return ending;
            }
            match self.restart(&ending) {
                Ok(()) => {}
                Err(MachineError::Stopped) => {
                    self.shut_down();
                    return Ending::Stopped;
                }
                Err(error) => {
                    self.shut_down();
                    return Ending::MachineError(format!("it cannot start again: {error}"));
                }
            }
        }
    }

    fn restart(&mut self, ending: &Ending) -> Result<(), MachineError> {
        self.end_threads();
        // What is left of the old machine goes before the new one comes: there may not be room for both.
        if let Phase::Running(parts) = std::mem::take(&mut *lock(&self.control.phase)) {
            for (config, device) in self.config.memory_devices.iter_mut().zip(&parts.memory_devices)
            {
                config.requested = device.requested();
            }
        }
        self.control.ending.forget_reset();
        info!("{ending}; the machine starts again");
        self.build()
    }

    fn end_threads(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
        self.serial.iter().for_each(SerialWires::disconnect);
    }

    fn shut_down(&mut self) {
        self.end_threads();
        let mut phase = lock(&self.control.phase);
        if let Phase::Running(parts) = &*phase {
            *phase = Phase::Ended(Box::new(parts.status()));
        }
        drop(phase);
        self.serial.drain(..).for_each(SerialWires::finish);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.control.stop();
        self.shut_down();
    }
}
