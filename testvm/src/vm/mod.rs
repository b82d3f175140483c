//! A virtual machine with an agent in it, for the scenarios: one virtio-mem device, PCI endpoints, a
//! console that is kept, and a bound on everything that it is waited for.

mod console;
mod moat;
mod monitor;
mod qemu;
mod qmp;

use console::ConsoleText;
use std::{
    fmt, io,
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use vmm::{
    Ending, MachineError,
    machine::{NotRunning, RequestCounters, ResizeRefused},
    violations::ViolationCounters,
};

use self::{moat::Moat, qemu::Qemu};
pub use self::{
    monitor::{
        Accelerator, Direction, DmaEngine, Endpoint, Endpoints, Feature, Iommu, Register, Vmm,
    },
    qemu::QemuError,
    qmp::{Qmp, QmpError},
};
use crate::{
    guest::{Guest, GuestError, Observe, PciAddress},
    initramfs::Initramfs,
    kernel::{GuestKernel, KernelError},
};

/// The driver of the bus that every virtio device is on.
pub const BUS: &str = "virtio_pci";
/// The driver under test.
pub const DRIVER: &str = "virtio_mem";
/// The driver of a virtio-iommu.
pub const IOMMU_DRIVER: &str = "virtio_iommu";

const MIB: u64 = 1 << 20;

/// Less than 4 GiB, so that the region is the first thing above it.
const RAM: u64 = 512 * MIB;
const REGION_SIZE: u64 = 1024 * MIB;

/// Emulated processors need 10 to 20 seconds; much more is a hang.
const BOOT: Duration = Duration::from_secs(90);
/// How long a guest has to do what it was asked to.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// A virtual machine to be.
#[derive(Clone, Copy, Debug)]
pub struct VmConfig<'a> {
    /// What runs it.
    pub vmm: Vmm,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Parameters for the kernel.
    pub parameters: &'a str,
    /// Bytes that the virtio-mem device requests at first.
    pub requested: u64,
    /// What is special about the machine.
    pub special: Special,
}

/// What can be special about a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Nothing.
    None,
    /// A PCI endpoint has a 64-bit BAR that is as large as the virtio-mem region.
    LargeBar,
    /// It has an IOMMU, and more functions like the idle one: two in one slot, two behind a bridge to
    /// conventional PCI, and one behind each of two root ports, without access control and with. Some
    /// function has MSI-X, a ROM and power management.
    Iommu,
}

impl VmConfig<'_> {
    fn command_line(&self) -> String {
        // On KVM the kernel does not ask either whether its timer works. Emulated, on a busy machine, it
        // would find that it does not.
        let timer = match self.vmm {
            Vmm::Qemu(Accelerator::Tcg, _) => "no_timer_check ",
            Vmm::Moat | Vmm::Qemu(Accelerator::Kvm, _) => "",
        };
        // What goes wrong before there is a driver for the console is printed, too.
        let console = "console=ttyS0 earlyprintk=ttyS0,115200";
        format!("{console} panic=-1 {timer}{}", self.parameters)
    }
}

/// The virtio-mem device, as the machine has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryDevice {
    /// Its region, in guest physical addresses.
    pub region: Range<u64>,
    /// Bytes requested from the driver.
    pub requested: u64,
    /// Bytes plugged.
    pub plugged: u64,
}

/// What has reached the virtio-mem device and its unplugged memory so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witness {
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
    /// Those that it did not, being told not to, asleep or in a reset.
    pub refused: u64,
}

impl BarAccesses {
    /// All of them.
    pub fn total(self) -> u64 {
        self.decoded + self.refused
    }
}

/// A machine, whoever runs it. It ends when it is dropped.
trait Machine {
    fn memory_device(&self) -> Result<MemoryDevice, VmError>;

    /// Asks the virtio-mem driver for another size.
    fn request(&self, bytes: u64) -> Result<(), VmError>;

    /// Where the monitor counts it, what has reached the virtio-mem device.
    fn witness(&self) -> Option<Witness> {
        None
    }

    /// Where the monitor counts them, how many accesses of vCPUs have reached a function's BARs.
    fn bar_accesses(&self, _function: PciAddress) -> Option<BarAccesses> {
        None
    }

    /// How the machine ended, if it does within this time.
    fn wait_for_end(&self, patience: Duration) -> Option<Ending>;

    /// What the guest has printed.
    fn console(&self) -> ConsoleText;
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
    /// QEMU does not do as it should.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// The agent's serial port cannot be wired.
    #[error("cannot wire the agent's serial port")]
    Wiring(#[from] io::Error),
    /// The guest's agent said no, or nothing.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The machine has not started, or has ended.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// A size that the device cannot have.
    #[error(transparent)]
    Resize(#[from] ResizeRefused),
    /// The guest's kernel has ended itself, which its scenario has taken down.
    #[error("the guest's kernel has died")]
    Died,
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
        matches!(
            self,
            Self::Died
                | Self::Guest(GuestError::NoAnswer { .. } | GuestError::Channel { .. })
                | Self::Qemu(QemuError::Ended(_) | QemuError::Qmp(_))
        )
    }
}

/// A running virtual machine. Dropping it ends it.
pub struct Vm {
    /// The guest in it.
    pub guest: Guest,
    vmm: Vmm,
    machine: Box<dyn Machine>,
    region: Range<u64>,
}

/// What went wrong, and the guest's last words.
#[derive(Debug)]
pub struct Trouble {
    /// What went wrong.
    pub error: VmError,
    /// How the machine had ended by then, if it had.
    pub ending: Option<Ending>,
    /// What the guest's kernel says that it has died of, if it does.
    pub cause: Option<String>,
    /// The end of the guest's console.
    pub console: String,
    /// Whether the guest never got as far as being asked anything.
    pub at_boot: bool,
}

impl Trouble {
    fn of(error: VmError, machine: &dyn Machine) -> Self {
        // The channel ends with the machine, a moment before it can say how.
        let patience = match error {
            VmError::Guest(GuestError::Channel { .. }) => PATIENCE,
            _ => Duration::ZERO,
        };
        let ending = machine.wait_for_end(patience);
        let console = machine.console();
        Self {
            error,
            ending,
            cause: console.cause_of_death(),
            console: if console.is_blank() { "(nothing)".into() } else { console.tail() },
            at_boot: false,
        }
    }
}

impl From<VmError> for Box<Trouble> {
    fn from(error: VmError) -> Self {
        let console = String::new();
        Self::new(Trouble { error, ending: None, cause: None, console, at_boot: false })
    }
}

impl Vm {
    /// Boots a kernel with the agent, and waits until the agent says hello.
    pub fn boot(
        kernel: &GuestKernel,
        initramfs: &Initramfs,
        config: VmConfig,
    ) -> Result<Self, Box<Trouble>> {
        let initrd = initramfs.build();
        let (machine, agent): (Box<dyn Machine>, _) = match config.vmm {
            Vmm::Moat => {
                let (machine, agent) = Moat::start(kernel, initrd, &config)?;
                (Box::new(machine), agent)
            }
            Vmm::Qemu(accelerator, _) => {
                let (machine, agent) =
                    Qemu::start(accelerator, kernel, initrd, &config).map_err(VmError::from)?;
                (Box::new(machine), agent)
            }
        };
        let region = machine.memory_device()?.region;
        match Guest::connect(agent, BOOT) {
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

    /// The device-managed region, in guest physical addresses.
    pub fn region(&self) -> Range<u64> {
        self.region.clone()
    }

    /// The virtio-mem device as the host sees it.
    pub fn device(&self) -> Result<MemoryDevice, VmError> {
        self.machine.memory_device()
    }

    /// What has reached the virtio-mem device, as far as the monitor counts it.
    pub fn witness(&self) -> Option<Witness> {
        self.machine.witness()
    }

    /// How many accesses of vCPUs have reached a function's BARs, as far as the monitor counts them.
    pub fn bar_accesses(&self, function: PciAddress) -> Option<BarAccesses> {
        self.machine.bar_accesses(function)
    }

    /// Loads the driver of the IOMMU, if the kernel has one that is not there yet, before there is a
    /// driver for anything that is behind it.
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
        self.machine.request(bytes)
    }

    /// Waits until the driver has plugged this much and told the rest of its kernel.
    pub fn wait_until_plugged(&self, bytes: u64) -> Result<(), VmError> {
        self.wait_until(&format!("{} MiB are plugged", bytes / MIB), || {
            Ok(self.device()?.plugged == bytes && {
                // Blocks are plugged before their memory is added. Where they are smaller than what
                // Linux adds at once they are unplugged before it is removed, too: only of all of it
                // one can wait for that.
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
        match self.machine.wait_for_end(PATIENCE) {
            Some(Ending::PowerOff) => Ok(()),
            Some(other) => Err(VmError::Ending(other)),
            None => Err(VmError::NoEnding),
        }
    }

    /// Whether the guest did not answer because its kernel has ended itself.
    pub fn has_died_of<T>(&self, answer: &Result<T, GuestError>) -> bool {
        matches!(answer, Err(GuestError::NoAnswer { .. } | GuestError::Channel { .. }))
            && matches!(self.machine.wait_for_end(PATIENCE), Some(Ending::Panic | Ending::Reset))
    }

    /// An error with what else is known about the machine by now.
    pub fn trouble(&self, error: VmError) -> Box<Trouble> {
        Box::new(Trouble::of(error, &*self.machine))
    }

    /// The last lines of the guest's console.
    pub fn console_tail(&self) -> String {
        self.machine.console().tail()
    }
}

/// What `/proc/iomem` calls the memory that the driver has added.
pub const ADDED_MEMORY: &str = "System RAM (virtio_mem)";

impl fmt::Display for Trouble {
    /// Of a guest that was lost what its kernel died of, or else how the machine ended. Of others the error
    /// with its causes, and how the machine ended, if it has.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.error.guest_is_lost() {
            match (&self.cause, &self.ending) {
                (Some(cause), _) => return write!(f, "the guest's kernel died: {cause}"),
                // That it does not answer any more follows.
                (None, Some(ending)) => return write!(f, "{ending}"),
                (None, None) => {}
            }
        }
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
    fn trouble_names_causes_and_the_end() {
        let mut trouble = Box::<Trouble>::from(VmError::Wiring(io::Error::other("no room")));
        trouble.ending = Some(Ending::TripleFault);
        let text = trouble.to_string();
        assert!(text.contains("serial port: no room; the guest died of a triple fault"), "{text}");
        // What a kernel complains about is no reason for anything else.
        trouble.cause = Some("invalid opcode in f".into());
        assert_eq!(trouble.to_string(), text);
        trouble.error = VmError::Died;
        assert_eq!(trouble.to_string(), "the guest's kernel died: invalid opcode in f");
    }
}
