//! QEMU as a machine: a child process, its agent's serial port on a socket, and QMP.

use std::{
    fs::{self, File},
    io,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;
use vmm::Ending;

use super::{
    Accelerator, Iommu, Machine, MemoryDevice, RAM, REGION_SIZE, Special, VmConfig, VmError,
    console::ConsoleText,
    qmp::{Qmp, QmpError},
};
use crate::kernel::GuestKernel;

const PROGRAM: &str = "qemu-system-x86_64";

/// Where the region of the virtio-mem device is: the first thing above 4 GiB.
const REGION: u64 = 4 << 30;

/// The device, as its properties are named.
const DEVICE: &str = "/machine/peripheral/mem0";

/// Why QEMU does not do as it should.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// There is none.
    #[error("{PROGRAM} is not installed: apt-get install qemu-system-x86")]
    NotInstalled,
    /// It does not start, or has ended meanwhile.
    #[error("{PROGRAM} has ended; it said: {0}")]
    Ended(String),
    /// It cannot be given its files.
    #[error("cannot prepare what QEMU needs")]
    Preparing(#[from] io::Error),
    /// It does not do what it is asked to.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// It answers with something else than a number.
    #[error("QEMU has no number for {0} of its virtio-mem device: is it older than 5.1?")]
    NoNumber(&'static str),
}

/// A QEMU that runs. It ends when this is dropped.
pub struct Qemu {
    process: Child,
    qmp: Mutex<Qmp>,
    files: Files,
}

/// What QEMU reads and writes.
struct Files(TempDir);

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn argument(&self, before: &str, name: &str) -> String {
        format!("{before}{}", self.path(name).display())
    }

    fn ended(&self) -> QemuError {
        let said = fs::read_to_string(self.path("errors")).unwrap_or_default();
        QemuError::Ended(said.trim().to_owned())
    }
}

impl Qemu {
    /// Starts one; gives the agent's end of its serial port too.
    pub fn start(
        accelerator: Accelerator,
        kernel: &GuestKernel,
        initrd: Vec<u8>,
        config: &VmConfig,
    ) -> Result<(Self, UnixStream), QemuError> {
        let files = Files(TempDir::with_prefix("moat-qemu-")?);
        fs::write(files.path("initramfs"), initrd)?;
        let agent = UnixListener::bind(files.path("agent"))?;
        let mut process = Command::new(PROGRAM)
            .args(machine(accelerator, config))
            .args(["-smp", &config.vcpus.to_string()])
            .args(["-m", &format!("{RAM}B,maxmem=4G,slots=1")])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio"])
            .args(["-kernel".as_ref(), kernel.image().as_os_str()])
            .args(["-initrd", &files.argument("", "initramfs")])
            .args(["-append", &config.command_line()])
            .args(["-serial", &files.argument("file:", "console")])
            .args(["-chardev", &files.argument("socket,id=agent,path=", "agent")])
            .args(["-serial", "chardev:agent"])
            .args(devices(config))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(files.path("errors"))?)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => QemuError::NotInstalled,
                _ => QemuError::Preparing(error),
            })?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            unreachable!("both were asked for")
        };
        // Where QEMU greets, it has connected its serial ports before.
        match Qmp::open(input, output).map(|qmp| (qmp, agent.accept())) {
            Ok((qmp, stream)) => {
                let (stream, _) = stream?;
                Ok((Self { process, qmp: Mutex::new(qmp), files }, stream))
            }
            Err(error) => {
                end(&mut process);
                Err(match error {
                    QmpError::Ended => files.ended(),
                    error => error.into(),
                })
            }
        }
    }

    /// A thread that panicked while asking left at most an answer that nobody waits for.
    fn qmp(&self) -> MutexGuard<'_, Qmp> {
        self.qmp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn property(&self, name: &'static str) -> Result<u64, QemuError> {
        let value = self.qmp().execute("qom-get", json!({"path": DEVICE, "property": name}))?;
        value.as_u64().ok_or(QemuError::NoNumber(name))
    }
}

impl Machine for Qemu {
    fn memory_device(&self) -> Result<MemoryDevice, VmError> {
        Ok(MemoryDevice {
            region: REGION..REGION + REGION_SIZE,
            requested: self.property("requested-size")?,
            plugged: self.property("size")?,
        })
    }

    fn request(&self, bytes: u64) -> Result<(), VmError> {
        let request = json!({"path": DEVICE, "property": "requested-size", "value": bytes});
        self.qmp().execute("qom-set", request).map_err(QemuError::from)?;
        Ok(())
    }

    fn wait_for_end(&self, patience: Duration) -> Option<Ending> {
        match self.qmp().wait_for_shutdown(patience) {
            Ok(reason) => Some(match reason?.as_str() {
                "guest-shutdown" => Ending::PowerOff,
                "guest-reset" => Ending::Reset,
                "guest-panic" => Ending::Panic,
                other => Ending::MachineError(format!("QEMU ended it: {other}")),
            }),
            Err(_) => Some(Ending::MachineError(self.files.ended().to_string())),
        }
    }

    fn console(&self) -> ConsoleText {
        ConsoleText::from(&fs::read(self.files.path("console")).unwrap_or_default()[..])
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

/// One that has ended already cannot be killed, and needs not be.
fn end(process: &mut Child) {
    let _ = process.kill();
    let _ = process.wait();
}

/// The machine itself.
fn machine(accelerator: Accelerator, config: &VmConfig) -> Vec<&'static str> {
    let mut arguments = match accelerator {
        Accelerator::Kvm => vec!["-accel", "kvm", "-cpu", "host"],
        Accelerator::Tcg => vec!["-accel", "tcg", "-cpu", "max"],
    };
    arguments.push("-no-reboot");
    arguments.extend(match (config.special, config.vmm.iommu()) {
        (Special::None | Special::LargeBar, _) => ["-machine", "q35"].as_slice(),
        // Before all devices, which otherwise would not be behind it.
        (Special::Iommu, Iommu::Virtio) => {
            &["-machine", "q35", "-device", "virtio-iommu-pci,boot-bypass=off"]
        }
        (Special::Iommu, Iommu::Intel) => {
            &["-machine", "q35,kernel-irqchip=split", "-device", "intel-iommu,intremap=on"]
        }
    });
    arguments
}

/// Its DMA reaches all RAM.
const EDU: &str = "edu,dma_mask=0xffffffff";

/// What [`Special::Iommu`] promises. Linux takes a function that it finds late for one of several only
/// if its own header says so, and not just that of function 0.
fn more_functions() -> Vec<String> {
    vec![
        "e1000e".to_owned(),
        format!("{EDU},addr=10.0,multifunction=on"),
        format!("{EDU},addr=10.1,multifunction=on"),
        "pcie-pci-bridge,id=conventional,addr=11".to_owned(),
        format!("{EDU},bus=conventional,addr=1"),
        format!("{EDU},bus=conventional,addr=2"),
        "pcie-root-port,id=sharing,addr=12,chassis=1,disable-acs=on".to_owned(),
        format!("{EDU},bus=sharing"),
        "pcie-root-port,id=isolating,addr=13,chassis=2".to_owned(),
        format!("{EDU},bus=isolating"),
    ]
}

/// What [`Vmm::endpoints`](super::Vmm::endpoints) promises, and the device with the memory.
fn devices(config: &VmConfig) -> Vec<String> {
    let requested = config.requested;
    let mut devices = vec![
        EDU.to_owned(),
        "virtio-rng-pci,disable-legacy=on".to_owned(),
        format!(
            "virtio-mem-pci,id=mem0,memdev=backing,memaddr={REGION},requested-size={requested}"
        ),
    ];
    match config.special {
        Special::None => {}
        Special::LargeBar => devices.push(format!("pci-testdev,membar={REGION_SIZE}")),
        Special::Iommu => devices.extend(more_functions()),
    }
    let backing = format!("memory-backend-ram,id=backing,size={REGION_SIZE}");
    let devices = devices.into_iter().flat_map(|device| ["-device".to_owned(), device]);
    ["-object".to_owned(), backing].into_iter().chain(devices).collect()
}
