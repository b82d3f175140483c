//! A Linux guest with the agent in it, on a machine of the test's own making.

use std::io::{self, Write};
use std::net::Shutdown;
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tempfile::NamedTempFile;
use testvm::guest::{Guest, GuestError};
use testvm::initramfs::Initramfs;
use testvm::kernel::GuestKernel;
use vmm::arch::x86_64::boot::BootProtocol;
use vmm::{
    Ending, IommuConfig, Machine, MachineControl, MachineSpec, MemoryDeviceConfig, OnReset,
    ProbeConfig, SerialEndpoint, SerialEndpoints, Size, VirtioTransport,
};

use super::MIB;

/// Emulated hosts need 10 seconds; much more is a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A kernel that scripts/guest-kernel has made.
pub fn kernel(name: &str) -> GuestKernel {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/kernels");
    GuestKernel::open(&kernels.join(name))
        .unwrap_or_else(|error| panic!("{error}; run `scripts/guest-kernel path {name}`"))
}

/// Whether KVM runs in an emulated host. There a guest may be lost, the likelier the more vCPUs it
/// has: see `pin_to_one_cpu` in scripts/kvm-host.
pub fn emulated() -> bool {
    std::env::var_os("MOAT_KVM_HOST").is_some_and(|host| host == "emulated")
}

/// As many vCPUs as a long test may have: `wanted`, or 1 where more would be lost.
pub fn lasting_vcpus(wanted: u32) -> u32 {
    if emulated() { 1 } else { wanted }
}

/// What differs from one test to the next.
#[derive(Clone)]
pub struct LinuxConfig<'a> {
    pub vcpus: u32,
    pub memory: u64,
    /// Another image than the kernel's bzImage.
    pub image: Option<PathBuf>,
    pub protocol: BootProtocol,
    pub parameters: &'a str,
    pub modules: &'a [&'a str],
    pub virtio_transport: VirtioTransport,
    pub memory_devices: Vec<MemoryDeviceConfig>,
    pub probes: Vec<ProbeConfig>,
    pub iommu: Option<IommuConfig>,
    pub on_reset: OnReset,
}

impl Default for LinuxConfig<'_> {
    fn default() -> Self {
        Self {
            vcpus: 1,
            memory: 512 * MIB,
            image: None,
            protocol: BootProtocol::Auto,
            parameters: "",
            modules: &[],
            virtio_transport: VirtioTransport::Mmio,
            memory_devices: Vec::new(),
            probes: Vec::new(),
            iommu: None,
            on_reset: OnReset::End,
        }
    }
}

/// A booted guest.
pub struct Linux {
    pub guest: Guest,
    pub control: Stopping,
    ending: mpsc::Receiver<Ending>,
    console: Console,
}

/// Stops the machine when dropped.
pub struct Stopping(MachineControl);

impl Deref for Stopping {
    type Target = MachineControl;

    fn deref(&self) -> &MachineControl {
        &self.0
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What the guest prints: shown when the test fails.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", String::from_utf8_lossy(&self.0.lock().unwrap()));
        }
    }
}

impl Linux {
    /// Boots, and if an emulated host loses a guest of several vCPUs, says so and boots again.
    pub fn boot(kernel: &GuestKernel, config: LinuxConfig<'_>) -> Self {
        let attempts = if emulated() && config.vcpus > 1 { 3 } else { 1 };
        for attempt in 1..attempts {
            match Self::try_boot(kernel, config.clone()) {
                Ok(linux) => return linux,
                Err(error) => eprintln!(
                    "attempt {attempt}: the emulated host lost a guest of {} vCPUs: {error}",
                    config.vcpus
                ),
            }
        }
        Self::try_boot(kernel, config).unwrap()
    }

    fn try_boot(kernel: &GuestKernel, config: LinuxConfig<'_>) -> Result<Self, GuestError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let modules = kernel.modules(config.modules).unwrap();
        let console = Console::default();
        let mut initrd = NamedTempFile::new().unwrap();
        initrd.write_all(&Initramfs::new().with_modules(modules).build()).unwrap();
        let spec = MachineSpec {
            cpus: config.vcpus,
            memory: Size(config.memory),
            boot_protocol: config.protocol,
            initrd: Some(initrd.path().to_owned()),
            cmdline: Some(format!("console=ttyS0 panic=-1 {}", config.parameters)),
            transport: config.virtio_transport,
            virtio_mem: config.memory_devices,
            probe: config.probes,
            iommu: config.iommu,
            on_reset: config.on_reset,
            ..MachineSpec::new(config.image.unwrap_or_else(|| kernel.image().into()))
        };
        let serial = SerialEndpoints {
            console: SerialEndpoint {
                name: "the console",
                input: None,
                output: Box::new(console.clone()),
            },
            agent: SerialEndpoint {
                name: "the agent",
                input: Some(Box::new(theirs.try_clone().unwrap())),
                output: Box::new(theirs.try_clone().unwrap()),
            },
        };
        let machine = Machine::start(spec, serial).unwrap();
        let control = Stopping(machine.control());
        let (sender, ending) = mpsc::channel();
        std::thread::spawn(move || {
            let ending = machine.wait();
            theirs.shutdown(Shutdown::Both).unwrap();
            // The test may have ended without asking.
            let _ = sender.send(ending);
        });
        let guest = Guest::connect(ours, PATIENCE)?;
        Ok(Self { guest, control, ending, console })
    }

    /// Has the guest reboot, on a machine that starts again.
    pub fn reboot(self) -> Self {
        self.guest.reboot().unwrap();
        Self { guest: self.guest.wait_to_restart(PATIENCE).unwrap(), ..self }
    }

    /// What the guest has printed so far.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&self.console.0.lock().unwrap()).into_owned()
    }

    /// Waits for the machine's end.
    pub fn ending(&self) -> Ending {
        self.ending.recv_timeout(PATIENCE).expect("the machine ends")
    }

    /// Waits until device `index` has plugged what is requested.
    pub fn wait_until_converged(&self, index: usize) {
        self.wait_until("it has plugged what is requested", || {
            let device = &self.control.status().unwrap().memory_devices[index];
            device.plugged == device.requested
        });
    }

    /// Waits for a state that nobody signals.
    pub fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let became_so = (0..3000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            is_so()
        });
        assert!(became_so, "waited in vain until {what}: {:#?}", self.control.status().unwrap());
    }
}
