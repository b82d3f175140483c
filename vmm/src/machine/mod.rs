//! One virtual machine: building, running, restarting and ending it.

mod builder;
mod control;
mod error;
mod files;
mod io;
mod page_descriptors;
mod pause;
mod probe;
mod running;
mod spec;
mod status;

use std::sync::Arc;

use log::info;

pub use control::MachineControl;
pub use devices::virtio::iommu::{EndpointStatus, IommuStatus};
pub use devices::virtio::mem::RequestCounters;
pub use error::{MachineError, NotRunning, ResizeRefused};
pub use files::InitrdError;
pub use io::{MachineIo, SharedFiles};
pub use pause::PauseError;
pub use probe::ProbeConfig;
pub use spec::{IommuConfig, IommuKind, MachineSpec, OnReset, VirtioTransport};
pub use status::{MachineStatus, Resizing, RunState};

pub use crate::board::console_port::{ConsolePorts, PortReader, PortWriter};
pub use crate::board::memory_device::{
    Enforcement, MemoryDeviceConfig, MemoryDeviceError, MemoryDeviceStatus,
};
pub use crate::board::pci::{PciFunctionStatus, PciPlace, PciRangeStatus, PciStatus};
pub use crate::board::serial::SerialEndpoint;
pub use crate::exit::Ending;

use crate::board::serial::SerialWires;
use crate::size::Size;
use crate::sync::lock;
use builder::Builder;
use control::Phase;
use files::Files;
use running::Running;

/// A machine. Dropping it ends it.
pub struct Machine {
    spec: MachineSpec,
    files: Files,
    io: MachineIo,
    serial: Vec<SerialWires>,
    control: MachineControl,
    running: Option<Running>,
}

impl Machine {
    /// Builds a machine and lets it run. [`Self::wait`] restarts it after a reset.
    pub fn start(spec: MachineSpec, io: MachineIo) -> Result<Self, MachineError> {
        Self::start_with(spec, io, MachineControl::default())
    }

    /// The same for a machine that `control` controls: it can be stopped by that while it starts.
    pub fn start_with(
        spec: MachineSpec,
        mut io: MachineIo,
        control: MachineControl,
    ) -> Result<Self, MachineError> {
        let files = Files::open(&spec, io.initrd.take(), &control)?;
        // Serial endpoints have threads that outlive a reset; the rest of `io` is handed to each new device.
        let serial_endpoints = [&mut io.console, &mut io.agent]
            .map(|endpoint| std::mem::replace(endpoint, SerialEndpoint::null()));
        // From here on, dropping the machine shuts down what has been started.
        let mut machine = Self { spec, files, io, serial: Vec::new(), control, running: None };
        for endpoint in serial_endpoints {
            let devices = Arc::clone(&machine.control.devices);
            let wires = SerialWires::start(endpoint, devices)
                .map_err(MachineError::host("cannot start a serial port"))?;
            machine.serial.push(wires);
        }
        machine.build()?;
        if machine.spec.on_reset == OnReset::End {
            // The guest has a copy, and without a restart no other is needed.
            machine.files.initrd = Vec::new();
        }
        Ok(machine)
    }

    fn build(&mut self) -> Result<(), MachineError> {
        let builder =
            Builder::new(&self.spec, &mut self.files, &self.io, &self.serial, &self.control)?;
        let built = builder.build();
        // If the machine was stopped meanwhile, that is the cause of any error.
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

    /// Controls the machine from any thread.
    pub fn control(&self) -> MachineControl {
        self.control.clone()
    }

    /// Waits for the machine's end and shuts everything down. Restarts it each time its guest resets it, if
    /// [`MachineSpec::on_reset`] is [`OnReset::Restart`].
    pub fn wait(mut self) -> Ending {
        loop {
            let ending = self.control.ending.wait();
            if !ending.is_reset() || self.spec.on_reset == OnReset::End {
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
                    return Ending::MachineError(format!("it cannot be restarted: {error}"));
                }
            }
        }
    }

    fn restart(&mut self, ending: &Ending) -> Result<(), MachineError> {
        self.end_threads();
        // The old machine's parts are freed before the new ones are created: there may not be memory for both.
        if let Phase::Running(parts) = std::mem::take(&mut *lock(&self.control.phase)) {
            for (config, device) in self.spec.virtio_mem.iter_mut().zip(&parts.memory_devices) {
                config.requested = Size(device.requested());
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
            let status = MachineStatus { state: RunState::Ended, ..parts.status() };
            *phase = Phase::Ended(Box::new(status));
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
