//! Who is compared, and the command line that makes each run the same guest.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// RAM of every guest.
pub const RAM_MIB: u64 = 512;

/// Size of the virtio-mem region, where there is one.
const REGION: &str = "3G";
/// Where moat puts the region; QEMU is told to put it there too.
const REGION_ADDRESS: u64 = 4 << 30;

/// Movable, or a shrink could fail for what the guest has put there.
const CMDLINE: &str = "console=ttyS0 panic=-1 memhp_default_state=online_movable";

/// What is run.
pub struct Programs {
    pub moat: PathBuf,
    pub qemu: PathBuf,
    pub qemu_firmware: Option<PathBuf>,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

/// One way to run a guest.
#[derive(Clone, Copy)]
pub struct Contender {
    pub name: &'static str,
    vmm: Vmm,
}

#[derive(Clone, Copy)]
enum Vmm {
    Moat { options: &'static [&'static str] },
    Qemu { machine: &'static str },
}

/// Files and sockets of one VM.
pub struct Place<'a>(pub &'a Path);

impl Place<'_> {
    pub fn console(&self) -> PathBuf {
        self.0.join("console")
    }

    pub fn agent(&self) -> PathBuf {
        self.0.join("agent")
    }

    pub fn control(&self) -> PathBuf {
        self.0.join("control")
    }
}

impl Contender {
    pub const MOAT: Self = Self { name: "moat", vmm: Vmm::Moat { options: &[] } };
    pub const MOAT_PCI: Self =
        Self { name: "moat --transport pci", vmm: Vmm::Moat { options: &["--transport", "pci"] } };
    pub const MOAT_UNENFORCED: Self =
        Self { name: "moat --enforce off", vmm: Vmm::Moat { options: &["--enforce", "off"] } };
    // It has no place for memory devices: virtio-mem-pci starts with pcie=on, but has no address.
    pub const QEMU_MICROVM: Self =
        Self { name: "QEMU microvm", vmm: Vmm::Qemu { machine: "microvm" } };
    pub const QEMU_Q35: Self = Self { name: "QEMU q35", vmm: Vmm::Qemu { machine: "q35" } };

    /// In the order of the report.
    pub const ALL: [Self; 5] =
        [Self::MOAT, Self::MOAT_PCI, Self::MOAT_UNENFORCED, Self::QEMU_MICROVM, Self::QEMU_Q35];

    /// Whether its control socket speaks QMP, and not moat's API.
    pub fn is_qemu(self) -> bool {
        matches!(self.vmm, Vmm::Qemu { .. })
    }

    /// The command that boots a guest, with a virtio-mem device or without.
    pub fn command(self, programs: &Programs, place: &Place, virtio_mem: bool) -> Command {
        match self.vmm {
            Vmm::Moat { options } => moat(programs, place, virtio_mem, options),
            Vmm::Qemu { machine } => qemu(programs, place, virtio_mem, machine),
        }
    }
}

fn moat(programs: &Programs, place: &Place, virtio_mem: bool, options: &[&str]) -> Command {
    let mut command = Command::new(&programs.moat);
    command
        .args(["run", "--cpus", "1", "--memory", &format!("{RAM_MIB}M"), "--cmdline", CMDLINE])
        .arg("--kernel")
        .arg(&programs.kernel)
        .arg("--initrd")
        .arg(&programs.initramfs)
        .args(["--serial", &format!("file:{}", place.console().display())])
        .args(["--serial2", &format!("unix:{}", place.agent().display())])
        .arg("--api-socket")
        .arg(place.control())
        .args(options);
    if virtio_mem {
        command.args(["--virtio-mem", &format!("size={REGION}")]);
    }
    command
}

fn qemu(programs: &Programs, place: &Place, virtio_mem: bool, machine: &str) -> Command {
    let socket = |path: PathBuf| format!("path={},server=on,wait=off", path.display());
    let mut command = Command::new(&programs.qemu);
    command
        .args(["-machine", machine, "-accel", "kvm", "-cpu", "host", "-smp", "1"])
        // No more than it is told to have: no disk controller's media, no network, no display.
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .arg("-kernel")
        .arg(&programs.kernel)
        .arg("-initrd")
        .arg(&programs.initramfs)
        .args(["-append", CMDLINE])
        .args(["-serial", &format!("file:{}", place.console().display())])
        .args(["-chardev", &format!("socket,id=agent,{}", socket(place.agent()))])
        // Where -serial would be heeded once only, as by microvm.
        .args(["-device", "isa-serial,chardev=agent"])
        .args(["-chardev", &format!("socket,id=control,{}", socket(place.control()))])
        .args(["-mon", "chardev=control,mode=control"]);
    if let Some(directory) = &programs.qemu_firmware {
        command.arg("-L").arg(directory);
    }
    if virtio_mem {
        let device = format!("virtio-mem-pci,id=mem0,memdev=memory,memaddr={REGION_ADDRESS}");
        command
            .args(["-m", &format!("{RAM_MIB}M,maxmem=4G,slots=1")])
            .args(["-object", &format!("memory-backend-ram,id=memory,size={REGION}")])
            .args(["-device", &device]);
    } else {
        command.args(["-m", &format!("{RAM_MIB}M")]);
    }
    command
}
