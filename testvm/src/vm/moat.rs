//! moat's own machine.

use std::{
    io::{self, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tempfile::NamedTempFile;
use vmm::{
    Ending, IommuConfig, Machine as MoatMachine, MachineControl, MachineSpec, MemoryDeviceConfig,
    PciPlace, ProbeConfig, SerialEndpoint, SerialEndpoints, Size, VirtioTransport,
};

use super::{
    BarAccesses, Machine, MemoryDevice, RAM, REGION_SIZE, Special, VmConfig, VmError, Witness,
    console::{Console, ConsoleText},
};
use crate::{guest::PciAddress, kernel::GuestKernel};

const DEVICE: &str = "mem0";

/// A machine of moat's, in this process.
pub struct Moat {
    control: MachineControl,
    ending: mpsc::Receiver<Ending>,
    watcher: Option<JoinHandle<()>>,
    console: Console,
}

impl Moat {
    /// Starts one; gives the agent's end of its serial port too.
    pub fn start(
        kernel: &GuestKernel,
        initrd: Vec<u8>,
        config: &VmConfig,
    ) -> Result<(Self, UnixStream), VmError> {
        let console = Console::default();
        let (ours, theirs) = UnixStream::pair()?;
        // It is read once.
        let mut file = NamedTempFile::new()?;
        file.write_all(&initrd)?;
        let spec = MachineSpec {
            cpus: config.vcpus,
            memory: Size(RAM),
            initrd: Some(file.path().to_owned()),
            transport: VirtioTransport::Pci,
            probe: probes(config.special),
            iommu: (config.special == Special::Iommu).then(IommuConfig::default),
            cmdline: Some(config.command_line()),
            virtio_mem: vec![MemoryDeviceConfig {
                requested: Size(config.requested),
                ..MemoryDeviceConfig::new(REGION_SIZE)
            }],
            ..MachineSpec::new(kernel.image().to_owned())
        };
        let serial = SerialEndpoints {
            console: SerialEndpoint {
                name: "the console",
                input: None,
                output: Box::new(console.clone()),
            },
            agent: serial(&theirs)?,
        };
        let machine = MoatMachine::start(spec, serial)?;
        let control = machine.control();
        let (sender, ending) = mpsc::channel();
        let watcher = thread::spawn(move || {
            let ending = machine.wait();
            // The thread that reads the agent's input has a copy of the stream: without this, who
            // waits for an answer would not see that there is nobody left to give it.
            let _ = theirs.shutdown(Shutdown::Both);
            // Nobody may care how it ended.
            let _ = sender.send(ending);
        });
        Ok((Self { control, ending, watcher: Some(watcher), console }, ours))
    }
}

impl Machine for Moat {
    fn memory_device(&self) -> Result<MemoryDevice, VmError> {
        let status = self.control.status()?.memory_devices.remove(0);
        Ok(MemoryDevice {
            region: status.address..status.address + status.size,
            requested: status.requested,
            plugged: status.plugged,
        })
    }

    fn request(&self, bytes: u64) -> Result<(), VmError> {
        self.control.resize(DEVICE, bytes)?;
        Ok(())
    }

    fn witness(&self) -> Option<Witness> {
        let status = self.control.status().ok()?.memory_devices.remove(0);
        Some(Witness { violations: status.violations, requests: status.requests })
    }

    fn bar_accesses(&self, function: PciAddress) -> Option<BarAccesses> {
        let functions = self.control.status().ok()?.pci?.functions;
        let address = function.to_string();
        let counters =
            functions.into_iter().find(|function| address.ends_with(&function.address))?.counters;
        let decoded = counters.reads + counters.writes;
        Some(BarAccesses { decoded, refused: counters.refused })
    }

    fn wait_for_end(&self, patience: Duration) -> Option<Ending> {
        self.ending.recv_timeout(patience).ok()
    }

    fn console(&self) -> ConsoleText {
        self.console.text()
    }
}

impl Drop for Moat {
    fn drop(&mut self) {
        self.control.stop();
        if let Some(watcher) = self.watcher.take() {
            // A panic there has been reported already, and there is nothing left to do.
            let _ = watcher.join();
        }
    }
}

/// The idle one comes first.
fn probes(special: Special) -> Vec<ProbeConfig> {
    let probe = ProbeConfig::default;
    match special {
        Special::None => vec![probe()],
        Special::LargeBar => vec![ProbeConfig { memory: REGION_SIZE as u32, ..probe() }],
        Special::Iommu => {
            let behind_port = |access_control| PciPlace::RootPort { access_control };
            vec![
                probe(),
                ProbeConfig { functions: 2, ..probe() },
                ProbeConfig { place: PciPlace::ConventionalBridge, ..probe() },
                ProbeConfig { place: PciPlace::ConventionalBridge, ..probe() },
                ProbeConfig { place: behind_port(false), ..probe() },
                ProbeConfig { place: behind_port(true), ..probe() },
            ]
        }
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
