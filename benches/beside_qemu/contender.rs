//! Who is compared, and the command line that makes each run the same guest.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use bare_metal::{
    Program,
    virtio_mem::{MOAT_ECAM, Q35_ECAM, mmio_registers, pci_registers},
};
use virtio_driver::Registers;

/// RAM of every guest.
pub const RAM_MIB: u64 = 512;

/// Movable, or a shrink could fail for what the guest has put there.
const CMDLINE: &str = "console=ttyS0 panic=-1 memhp_default_state=online_movable";

/// QEMU's entropy device, which goes through an IOMMU if there is one.
const ENTROPY: &str = "virtio-rng-pci,disable-legacy=on,iommu_platform=on";

/// What is run.
pub struct Programs {
    pub moat: PathBuf,
    pub qemu: PathBuf,
    pub qemu_firmware: Option<PathBuf>,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub program: PathBuf,
}

/// What a VM is to be.
#[derive(Clone, Copy)]
pub struct Setup {
    pub guest: Guest,
    pub vcpus: u32,
    pub memory_device: Option<MemoryDevice>,
}

/// What runs in a VM.
#[derive(Clone, Copy)]
pub enum Guest {
    /// Linux, with the agent at the second serial port.
    Linux,
    /// The bare-metal guest that drives devices as it is told to.
    Program,
}

/// A virtio-mem device.
#[derive(Clone, Copy)]
pub struct MemoryDevice {
    /// Bytes of its region.
    pub size: u64,
    /// Bytes requested at first.
    pub requested: u64,
    pub backing: Backing,
}

/// What plugged memory is made of.
#[derive(Clone, Copy)]
pub enum Backing {
    Anonymous,
    Memfd,
    /// Pages of 2 MiB.
    Hugetlb,
    /// Beside the VM's sockets.
    File,
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
    Qemu { machine: &'static str, devices: &'static [&'static str] },
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

    /// RAM of a program.
    pub fn ram(&self) -> PathBuf {
        self.0.join("ram")
    }

    /// Plugged memory that is in a file.
    fn region(&self) -> PathBuf {
        self.0.join("region")
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
        Self { name: "QEMU microvm", vmm: Vmm::Qemu { machine: "microvm", devices: &[] } };
    pub const QEMU_Q35: Self =
        Self { name: "QEMU q35", vmm: Vmm::Qemu { machine: "q35", devices: &[] } };

    /// moat and QEMU with an entropy device and an idle function on PCI.
    pub const ON_PCI: [Self; 2] = [
        Self { vmm: Vmm::Moat { options: &["--transport", "pci", "--probe"] }, ..Self::MOAT },
        Self { vmm: Vmm::Qemu { machine: "q35", devices: &[ENTROPY, "edu"] }, ..Self::QEMU_Q35 },
    ];
    /// The same, behind an IOMMU.
    pub const BEHIND_IOMMU: [Self; 2] = [
        Self {
            vmm: Vmm::Moat { options: &["--transport", "pci", "--probe", "--iommu", "virtio"] },
            ..Self::MOAT
        },
        Self {
            vmm: Vmm::Qemu { machine: "q35", devices: &["virtio-iommu-pci", ENTROPY, "edu"] },
            ..Self::QEMU_Q35
        },
    ];

    /// In the order of the report.
    pub const ALL: [Self; 5] =
        [Self::MOAT, Self::MOAT_PCI, Self::MOAT_UNENFORCED, Self::QEMU_MICROVM, Self::QEMU_Q35];

    /// Whether its control socket speaks QMP, and not moat's API.
    pub fn is_qemu(self) -> bool {
        matches!(self.vmm, Vmm::Qemu { .. })
    }

    /// The registers of its virtio-mem device, which `program` is to drive.
    pub fn registers(self, program: &mut Program) -> Registers {
        match self.vmm {
            Vmm::Qemu { .. } => pci_registers(program, Q35_ECAM),
            Vmm::Moat { options } if options.contains(&"pci") => pci_registers(program, MOAT_ECAM),
            Vmm::Moat { .. } => mmio_registers(),
        }
    }

    /// The command that starts a VM.
    pub fn command(self, programs: &Programs, place: &Place, setup: &Setup) -> Command {
        match self.vmm {
            Vmm::Moat { options } => moat(programs, place, setup, options),
            Vmm::Qemu { machine, devices } => qemu(programs, place, setup, machine, devices),
        }
    }
}

fn moat(programs: &Programs, place: &Place, setup: &Setup, options: &[&str]) -> Command {
    let mut command = Command::new(&programs.moat);
    command
        .args(["run", "--cpus", &setup.vcpus.to_string(), "--memory", &format!("{RAM_MIB}M")])
        .args(["--serial", &format!("file:{}", place.console().display())])
        .args(["--serial2", &format!("unix:{}", place.agent().display())])
        .arg("--api-socket")
        .arg(place.control())
        .args(options);
    match setup.guest {
        Guest::Linux => {
            command.args(["--cmdline", CMDLINE]).arg("--kernel").arg(&programs.kernel);
            command.arg("--initrd").arg(&programs.initramfs);
        }
        Guest::Program => {
            command.arg("--kernel").arg(&programs.program);
            let ram = format!("backing=file:{}", place.ram().display());
            command.args(["--memory-backing", &ram]);
            // Nobody has to be warned of violations that are measured.
            command.env("RUST_LOG", "error");
        }
    }
    if let Some(MemoryDevice { size, requested, backing }) = setup.memory_device {
        let backing = match backing {
            Backing::Anonymous => "anonymous".to_owned(),
            Backing::Memfd => "memfd".to_owned(),
            Backing::Hugetlb => "hugetlb-2m".to_owned(),
            Backing::File => format!("file:{}", place.region().display()),
        };
        let device = format!("size={size},requested={requested},backing={backing}");
        command.args(["--virtio-mem", &device]);
    }
    command
}

fn qemu(
    programs: &Programs,
    place: &Place,
    setup: &Setup,
    machine: &str,
    devices: &[&str],
) -> Command {
    let socket = |path: PathBuf| format!("path={},server=on,wait=off", path.display());
    let mut command = Command::new(&programs.qemu);
    command
        .args(["-accel", "kvm", "-cpu", "host", "-smp", &setup.vcpus.to_string()])
        // No more than it is told to have: no disk controller's media, no network, no display.
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-serial", &format!("file:{}", place.console().display())])
        .args(["-chardev", &format!("socket,id=agent,{}", socket(place.agent()))])
        // Where -serial would be heeded once only, as by microvm.
        .args(["-device", "isa-serial,chardev=agent"])
        .args(["-chardev", &format!("socket,id=control,{}", socket(place.control()))])
        .args(["-mon", "chardev=control,mode=control"]);
    if let Some(directory) = &programs.qemu_firmware {
        command.arg("-L").arg(directory);
    }
    match setup.guest {
        Guest::Linux => {
            command.args(["-machine", machine, "-append", CMDLINE]);
            command.arg("-kernel").arg(&programs.kernel).arg("-initrd").arg(&programs.initramfs);
        }
        Guest::Program => {
            let path = place.ram();
            let ram = format!("id=ram,share=on,size={RAM_MIB}M,mem-path={}", path.display());
            command
                .args(["-machine", &format!("{machine},memory-backend=ram")])
                .args(["-object", &format!("memory-backend-file,{ram}")])
                .arg("-kernel")
                .arg(&programs.program);
        }
    }
    for device in devices {
        command.args(["-device", device]);
    }
    if let Some(MemoryDevice { size, requested, backing }) = setup.memory_device {
        let backing = match backing {
            // Like moat, it promises more than the host has.
            Backing::Anonymous => "memory-backend-ram,reserve=off".to_owned(),
            Backing::Memfd => "memory-backend-memfd,reserve=off".to_owned(),
            Backing::Hugetlb => "memory-backend-memfd,hugetlb=on,reserve=off".to_owned(),
            Backing::File => {
                format!("memory-backend-file,share=on,mem-path={}", place.region().display())
            }
        };
        let most = (RAM_MIB << 20) + size;
        // It goes to where moat puts it: to 4 GiB, unless it is too large for that on a processor of
        // AMD's, which has a hole below 1 TiB.
        let device = format!("virtio-mem-pci,id=mem0,memdev=memory,requested-size={requested}");
        command
            .args(["-m", &format!("{RAM_MIB}M,maxmem={most}B,slots=1")])
            .args(["-object", &format!("{backing},id=memory,size={size}")])
            .args(["-device", &device]);
    } else {
        command.args(["-m", &format!("{RAM_MIB}M")]);
    }
    command
}
