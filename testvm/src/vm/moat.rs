//! moat's own machine, in this process.

use std::{
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use vmm::{Ending, Machine, MachineControl, MachineIo, MachineSpec, SerialEndpoint, Size};

use super::{
    ConsoleText, IommuConfig, MemoryDevice, RunningMachine, VmConfig, VmError, console::Console,
};

/// A machine of moat's, in this process.
pub(super) struct Moat {
    control: MachineControl,
    ending: mpsc::Receiver<Ending>,
    watcher: Option<JoinHandle<()>>,
    console: Console,
}

impl Moat {
    /// Starts one; returns the far end of its second serial port too.
    pub(super) fn start(config: &VmConfig) -> Result<(Self, UnixStream), VmError> {
        let console = Console::default();
        let (ours, theirs) = UnixStream::pair()?;
        let spec = machine_spec(config)?;
        let io = MachineIo {
            console: SerialEndpoint {
                name: "the console",
                input: None,
                output: Box::new(console.clone()),
            },
            agent: serial(&theirs)?,
            initrd: Some(config.initrd.clone()),
            ..MachineIo::default()
        };
        let machine = Machine::start(spec, io)?;
        let control = machine.control();
        let (sender, ending) = mpsc::channel();
        let watcher = thread::spawn(move || {
            let ending = machine.wait();
            // The thread that reads the agent's input has a copy of the stream: without this, a caller
            // who waits for an answer would not see that the machine has ended.
            let _ = theirs.shutdown(Shutdown::Both);
            // Fails if the receiver was dropped.
            let _ = sender.send(ending);
        });
        Ok((Self { control, ending, watcher: Some(watcher), console }, ours))
    }
}

impl RunningMachine for Moat {
    fn memory_device(&self, name: &str) -> Result<MemoryDevice, VmError> {
        MemoryDevice::of(self.control.status()?, name)
    }

    fn request(&self, name: &str, bytes: u64) -> Result<(), VmError> {
        self.control.resize(name, bytes)?;
        Ok(())
    }

    fn control(&self) -> Option<&MachineControl> {
        Some(&self.control)
    }

    fn wait_for_end(&self, timeout: Duration) -> Option<Ending> {
        self.ending.recv_timeout(timeout).ok()
    }

    fn console(&self) -> ConsoleText {
        self.console.text()
    }
}

impl Drop for Moat {
    fn drop(&mut self) {
        self.control.stop();
        if let Some(watcher) = self.watcher.take() {
            // A panic there has been reported already.
            let _ = watcher.join();
        }
    }
}

/// All but the initramfs.
fn machine_spec(config: &VmConfig) -> Result<MachineSpec, VmError> {
    Ok(MachineSpec {
        cpus: config.vcpus,
        memory: Size(config.memory),
        memory_backing: config.ram.clone(),
        boot_protocol: config.protocol,
        cmdline: Some(config.command_line()),
        transport: config.virtio_transport,
        virtio_mem: config.memory_devices.clone(),
        probe: config.probes.clone(),
        iommu: bypass(config)?.map(|bypass| vmm::IommuConfig { bypass, ..Default::default() }),
        enforce: config.enforcement,
        on_reset: config.on_reset,
        ..MachineSpec::new(config.kernel.clone())
    })
}

/// Whether its IOMMU, if there is one, lets devices through at first. An error names what moat does not
/// support.
pub(super) fn bypass(config: &VmConfig) -> Result<Option<bool>, VmError> {
    let unsupported = |what| Err(VmError::Unsupported { vmm: config.vmm, what });
    if config.nic {
        return unsupported("a network adapter");
    }
    match config.iommu {
        None => Ok(None),
        Some(IommuConfig::Virtio { bypass }) => Ok(Some(bypass)),
        Some(IommuConfig::Intel) => unsupported("VT-d"),
    }
}

fn serial(stream: &UnixStream) -> io::Result<SerialEndpoint> {
    let input = Box::new(stream.try_clone()?);
    Ok(SerialEndpoint {
        name: "the agent",
        input: Some(input),
        output: Box::new(stream.try_clone()?),
    })
}
