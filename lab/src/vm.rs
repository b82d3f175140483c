//! A virtual machine with an agent in it, for the scenarios: one virtio-mem device, a console that
//! is kept, and a bound on everything that it is waited for.

use std::{
    fmt,
    io::{self, Write},
    net::Shutdown,
    ops::Range,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use vmm::{
    Ending, Enforcement, Machine, MachineConfig, MachineControl, MachineError, MemoryDeviceConfig,
    MemoryDeviceStatus, SerialEndpoint, boot::BootProtocol, machine::ResizeRefused,
    memory::host::Backing,
};

use crate::{
    guest::{Guest, GuestError, Observe},
    initramfs::Initramfs,
    kernel::{GuestKernel, KernelError, ModuleSet},
};

/// The driver under test, and the bus that its device is on.
pub const DRIVER: &str = "virtio_mem";
const BUS: &str = "virtio_mmio";

/// What [`Vm::boot`] gives a guest to load.
pub const MODULES: [&str; 2] = [BUS, DRIVER];

const MIB: u64 = 1 << 20;

/// Less than 4 GiB, so that the region is the first thing above it.
const RAM: u64 = 512 * MIB;
const REGION_SIZE: u64 = 1024 * MIB;
const DEVICE: &str = "mem0";

/// Emulated hosts need 10 seconds; much more is a hang.
const BOOT: Duration = Duration::from_secs(60);
/// How long a guest has to do what it was asked to.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// A virtual machine to be.
#[derive(Clone, Copy, Debug)]
pub struct VmConfig<'a> {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Parameters for the kernel.
    pub parameters: &'a str,
    /// Bytes that the virtio-mem device requests at first.
    pub requested: u64,
}

/// Why a virtual machine could not be had, or not be waited for.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A kernel's modules cannot be had.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The machine cannot be.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The agent's serial port cannot be wired.
    #[error("cannot wire the agent's serial port")]
    Wiring(#[from] io::Error),
    /// The guest's agent said no, or nothing.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A size that the device cannot have.
    #[error(transparent)]
    Resize(#[from] ResizeRefused),
    /// Something that every guest of these machines should have.
    #[error("the guest has no {0}")]
    Absent(&'static str),
    /// Something did not become true.
    #[error("waited {PATIENCE:?} in vain until {0}")]
    Patience(String),
    /// The guest ended in another way than by powering off.
    #[error("{0}, where it should have powered off")]
    Ending(Ending),
    /// The guest went on.
    #[error("the guest did not power off within {PATIENCE:?}")]
    NoEnding,
}

impl VmError {
    /// Whether the guest cannot be asked anything any more.
    pub fn guest_is_lost(&self) -> bool {
        matches!(self, Self::Guest(GuestError::NoAnswer { .. } | GuestError::Channel { .. }))
    }
}

/// A running virtual machine. Dropping it ends it.
pub struct Vm {
    /// The guest in it.
    pub guest: Guest,
    control: MachineControl,
    ending: mpsc::Receiver<Ending>,
    watcher: Option<JoinHandle<()>>,
    console: Console,
}

/// What went wrong, and the guest's last words.
#[derive(Debug)]
pub struct Trouble {
    /// What went wrong.
    pub error: VmError,
    /// How the machine had ended by then, if it had.
    pub ending: Option<Ending>,
    /// The end of the guest's console.
    pub console: String,
}

impl From<VmError> for Trouble {
    fn from(error: VmError) -> Self {
        Self { error, ending: None, console: String::new() }
    }
}

impl Vm {
    /// Boots a kernel with the agent and these modules, and waits until the agent says hello.
    pub fn boot(
        kernel: &GuestKernel,
        modules: ModuleSet,
        config: VmConfig,
    ) -> Result<Self, Trouble> {
        let console = Console::default();
        let (ours, theirs) = UnixStream::pair().map_err(VmError::from)?;
        let machine = Machine::start(MachineConfig {
            vcpus: config.vcpus,
            memory: RAM,
            kernel: kernel.image().to_owned(),
            protocol: BootProtocol::Auto,
            initrd: Initramfs::new().with_modules(modules).build(),
            cmdline: format!("console=ttyS0 panic=-1 {}", config.parameters),
            memory_devices: vec![MemoryDeviceConfig {
                size: REGION_SIZE,
                requested: config.requested,
                block_size: MemoryDeviceConfig::DEFAULT_BLOCK_SIZE,
                backing: Backing::Anonymous,
                insist_on_inaccessible: false,
            }],
            enforcement: Enforcement::Strict,
            console: SerialEndpoint { input: None, output: Box::new(console.clone()) },
            agent: serial(&theirs).map_err(VmError::from)?,
        })
        .map_err(VmError::from)?;
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
        match Guest::connect(ours, BOOT) {
            Ok(guest) => Ok(Self { guest, control, ending, watcher: Some(watcher), console }),
            Err(error) => {
                let ended = ending.try_recv().ok();
                control.stop();
                let _ = watcher.join();
                Err(Trouble { error: error.into(), ending: ended, console: console.tail() })
            }
        }
    }

    /// The device-managed region, in guest physical addresses.
    pub fn region(&self) -> Range<u64> {
        let device = self.device();
        device.address..device.address + device.size
    }

    /// The virtio-mem device as the host sees it.
    pub fn device(&self) -> MemoryDeviceStatus {
        self.control.status().memory_devices.remove(0)
    }

    /// Loads the driver, and waits until it has plugged what is requested.
    pub fn load_driver(&self) -> Result<(), VmError> {
        self.start_driver()?;
        self.wait_until_plugged(self.device().requested)
    }

    /// Loads the driver.
    pub fn start_driver(&self) -> Result<(), VmError> {
        // The bus is there already when the driver comes back.
        self.guest.load_module(BUS, "").outcome()?;
        Ok(self.guest.load_module(DRIVER, "")?)
    }

    /// Takes the driver away.
    pub fn unload_driver(&self) -> Result<(), GuestError> {
        self.guest.unload_module(DRIVER)
    }

    /// Asks the driver for another size, and waits until the device has it.
    pub fn resize(&self, bytes: u64) -> Result<(), VmError> {
        self.request(bytes)?;
        self.wait_until_plugged(bytes)
    }

    /// Asks the driver for another size; a driver to come finds it asked for.
    pub fn request(&self, bytes: u64) -> Result<(), VmError> {
        self.control.resize(DEVICE, bytes)?;
        Ok(())
    }

    /// Waits until the driver has plugged this much and told the rest of its kernel.
    pub fn wait_until_plugged(&self, bytes: u64) -> Result<(), VmError> {
        self.wait_until(&format!("{} MiB are plugged", bytes / MIB), || {
            Ok(self.device().plugged == bytes && {
                // Blocks are plugged before memory is added, and removed before they are unplugged.
                let added = self.guest.iomem()?.size_of(ADDED_MEMORY);
                if bytes == 0 { added == 0 } else { added >= bytes }
            })
        })
    }

    /// Waits for a state that nobody signals.
    pub fn wait_until(
        &self,
        what: &str,
        mut is_so: impl FnMut() -> Result<bool, VmError>,
    ) -> Result<(), VmError> {
        let end = Instant::now() + PATIENCE;
        while !is_so()? {
            if Instant::now() > end {
                return Err(VmError::Patience(what.to_owned()));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Powers the guest off.
    pub fn power_off(&self) -> Result<(), VmError> {
        self.guest.power_off()?;
        match self.ending.recv_timeout(PATIENCE) {
            Ok(Ending::PowerOff) => Ok(()),
            Ok(other) => Err(VmError::Ending(other)),
            Err(_) => Err(VmError::NoEnding),
        }
    }

    /// An error with what else is known about the machine by now.
    pub fn trouble(&self, error: VmError) -> Trouble {
        Trouble { error, ending: self.ending.try_recv().ok(), console: self.console_tail() }
    }

    /// The last lines of the guest's console.
    pub fn console_tail(&self) -> String {
        self.console.tail()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.control.stop();
        if let Some(watcher) = self.watcher.take() {
            // A panic there has been reported already, and there is nothing left to do.
            let _ = watcher.join();
        }
    }
}

/// What `/proc/iomem` calls the memory that the driver has added.
pub const ADDED_MEMORY: &str = "System RAM (virtio_mem)";

fn serial(stream: &UnixStream) -> io::Result<SerialEndpoint> {
    let input = Box::new(stream.try_clone()?);
    Ok(SerialEndpoint { input: Some(input), output: Box::new(stream.try_clone()?) })
}

/// What a guest has said on its console.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    const TAIL_LINES: usize = 25;

    fn text(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tail(&self) -> String {
        let text = String::from_utf8_lossy(&self.text()).replace('\r', "");
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(Self::TAIL_LINES)..].join("\n")
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Display for Trouble {
    /// The error with its causes, and how the machine ended.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)?;
        let mut cause = std::error::Error::source(&self.error);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        self.ending.as_ref().map_or(Ok(()), |ending| write!(f, "; {ending}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_console_is_its_last_lines() {
        let mut console = Console::default();
        for line in 0..100 {
            write!(console, "line {line}\r\n").unwrap();
        }
        let tail = console.tail();
        assert!(tail.starts_with("line 75\nline 76\n") && tail.ends_with("line 99"), "{tail}");
    }

    #[test]
    fn trouble_names_causes_and_the_end() {
        let mut trouble = Trouble::from(VmError::Wiring(io::Error::other("no room")));
        trouble.ending = Some(Ending::TripleFault);
        let text = trouble.to_string();
        assert!(text.contains("serial port: no room; the guest died of a triple fault"), "{text}");
    }
}
