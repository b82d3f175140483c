//! The command line: commands, options and their help.

use std::path::PathBuf;
use std::str::FromStr;

use checks::framework::Mitigation;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::host_memory::RamOption;
use crate::iommu::IommuOption;
use crate::probe::ProbeOption;
use crate::size::Size;
use crate::virtio_mem::VirtioMemOption;

/// A KVM virtual machine monitor for people who ask: who may touch this memory?
#[derive(Parser)]
#[command(version, about, long_about = None, after_help = "\
Examples:
  moat doctor
  moat run --kernel bzImage --initrd initramfs --virtio-mem size=8G,requested=1G --api-socket /tmp/vm
  moat resize --api-socket /tmp/vm mem0 4G
  moat status --api-socket /tmp/vm
  moat check --kernel ~/kernels/debian-6.12")]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Boot a kernel in a virtual machine and stay with it until it ends
    Run(Box<RunArguments>),
    /// Ask a running machine's guest to plug or unplug memory
    Resize(ResizeArguments),
    /// Show a running machine
    Status(StatusArguments),
    /// Check that kernels keep everybody away from device memory that is not theirs
    Check(CheckArguments),
    /// Find out whether this machine's KVM can carry an unmodified kernel
    Doctor(DoctorArguments),
}

#[derive(Args)]
#[command(after_help = "\
Leave the console with Ctrl-A x, which ends the machine. Ctrl-A Ctrl-A sends a Ctrl-A.

Exit codes: 0 the guest powered off, 10 reset, 11 halted, 12 triple fault, 13 kernel panic, 14 KVM
could not run it on, 15 the machine failed, 16 an access to an unplugged block with on-violation=stop,
128+N ended by signal N; 1 it could not start, 2 wrong usage.

A comma in a value, such as a path, is written twice: backing=file:/tmp/a,,b.

Examples:
  moat run --kernel bzImage --initrd initramfs --cmdline 'console=ttyS0 quiet'
  moat run --kernel vmlinux --cpus 4 --memory 1G --virtio-mem size=8G,requested=1G
  moat run --kernel bzImage --serial file:console.log --api-socket /tmp/vm
  moat run --kernel bzImage --transport pci --probe --probe behind=root-port,acs=on
  moat run --kernel bzImage --transport pci --probe --iommu virtio
  moat run --kernel bzImage --initrd initramfs --serial2 unix:/tmp/test-channel")]
pub struct RunArguments {
    /// Kernel to boot: a bzImage or an ELF vmlinux
    #[arg(long, value_name = "PATH")]
    pub kernel: PathBuf,
    /// Initramfs to give it
    #[arg(long, value_name = "PATH")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line [default: console=ttyS0 panic=-1, and pci=off where there is no PCI]
    #[arg(long, value_name = "STRING")]
    pub cmdline: Option<String>,
    /// Names of the kernel's functions, for reports: a System.map, a copy of /proc/kallsyms or a
    /// vmlinux. Without it they are looked for in the guest's memory
    #[arg(long, value_name = "PATH")]
    pub symbols: Option<PathBuf>,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// RAM, as in 512M or 8G
    #[arg(long, value_name = "SIZE", default_value_t = Size(512 << 20))]
    pub memory: Size,
    /// What RAM is made of: [backing=anonymous|memfd|hugetlb-2m|hugetlb-1g|file:PATH]
    /// [,huge-pages=on|off][,prealloc=on|off][,host-node=N]
    #[arg(long, value_name = "SETTINGS", default_value = "backing=anonymous")]
    pub memory_backing: RamOption,
    /// Add a virtio-mem device (mem0, mem1, …): size=8G[,requested=1G][,block-size=2M]
    /// [,backing=anonymous|memfd|hugetlb-2m|hugetlb-1g|file:PATH][,huge-pages=on|off]
    /// [,prealloc=on|off][,host-node=N][,node=N][,insist-inaccessible=on|off][,busy-every=N]
    /// [,on-violation=report|stop|machine-check|ignore]
    #[arg(long, value_name = "SETTINGS")]
    pub virtio_mem: Vec<VirtioMemOption>,
    /// How drivers reach virtio devices
    #[arg(long, value_enum, default_value_t = Transport::Mmio)]
    pub transport: Transport,
    /// Add a PCI device made to be probed (docs/probe.md):
    /// [behind=root-port|bridge][,acs=on|off][,functions=1][,memory=64K]
    #[arg(long, value_name = "SETTINGS", num_args = 0..=1, default_missing_value = "")]
    pub probe: Vec<ProbeOption>,
    /// Put every device behind an IOMMU: virtio[,bypass=on|off]. With bypass off no device reaches
    /// memory until a driver of the IOMMU lets it
    #[arg(long, value_name = "KIND")]
    pub iommu: Option<IommuOption>,
    /// What happens to unplugged memory: it is gone, or stays within the guest's reach
    #[arg(long, value_enum, default_value_t = Enforce::Strict)]
    pub enforce: Enforce,
    /// What happens when the guest reboots
    #[arg(long, value_enum, default_value_t = ResetAction::End)]
    pub on_reset: ResetAction,
    /// How to enter the kernel
    #[arg(long, value_enum, default_value_t = Protocol::Auto)]
    pub boot_protocol: Protocol,
    /// Where the console goes: tty (this terminal), file:PATH or unix:PATH
    #[arg(long, value_name = "TARGET", default_value = "tty")]
    pub serial: SerialTarget,
    /// Where the guest's second serial port (ttyS1) goes, likewise; nowhere unless given
    #[arg(long, value_name = "TARGET")]
    pub serial2: Option<SerialTarget>,
    /// Socket on which `moat resize` and `moat status` reach the machine
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Transport {
    /// virtio-mmio, which ACPI tells of
    Mmio,
    /// virtio-pci, a function each on bus 0
    Pci,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Enforce {
    /// Unplugged blocks are in no memory slot; whoever touches one is told
    Strict,
    /// One memory slot for the whole region, as most machines have it
    Off,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum ResetAction {
    /// moat ends, with exit code 10
    End,
    /// The machine starts again: nothing is plugged, and the kernel is loaded anew
    Restart,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Protocol {
    /// PVH where a vmlinux has it, else the Linux 64-bit protocol
    Auto,
    /// The Linux 64-bit boot protocol
    Linux64,
    /// PVH
    Pvh,
}

/// Where a console goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialTarget {
    Terminal,
    File(PathBuf),
    Unix(PathBuf),
}

impl FromStr for SerialTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "tty" => Ok(Self::Terminal),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(format!("invalid console {text:?}: expected tty, file:PATH or unix:PATH")),
        }
    }
}

#[derive(Args)]
#[command(after_help = "\
The guest does the work, so this returns before it is done; `moat status` shows how far it is.

Example:
  moat resize --api-socket /tmp/vm mem0 4G")]
pub struct ResizeArguments {
    /// The machine's API socket, as given to `moat run`
    #[arg(long, value_name = "PATH")]
    pub api_socket: PathBuf,
    /// The device, mem0 for the first
    pub device: String,
    /// How much memory it shall have plugged
    pub size: Size,
}

#[derive(Args)]
#[command(after_help = "\
Example:
  moat status --api-socket /tmp/vm --json")]
pub struct StatusArguments {
    /// The machine's API socket, as given to `moat run`
    #[arg(long, value_name = "PATH")]
    pub api_socket: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = "\
Every scenario has a control, which shows that its check can fail. What a kernel cannot be asked is
skipped, and the report says why. Progress goes to standard error, the report to standard output.

Exit codes: 0 all that could be asked holds, 1 something failed or nothing could be asked, 2 wrong
usage.

Examples:
  moat check --kernel ~/kernels/debian-6.12
  moat check --kernel ~/kernels/debian-6.1 --kernel ~/kernels/protected --json
  moat check --kernel ~/linux/arch/x86/boot/bzImage --modules ~/linux-modules --only VM3,VM11
  moat check --kernel ~/kernels/debian-6.12 --vmm moat,qemu
  moat check --kernel ~/kernels/unprotected --expect-without io-strict-devmem
  moat check --judge report.json --expect-without pci-revocation,exclusive-region
  moat check --list")]
pub struct CheckArguments {
    /// Kernel to check: a bzImage, or a directory with bzImage, config, release (what `uname -r` prints)
    /// and modules/lib/modules/RELEASE; may be repeated
    #[arg(long, value_name = "PATH", required_unless_present_any = ["list", "judge"])]
    pub kernel: Vec<PathBuf>,
    /// Modules of kernels that are a bzImage: what `make modules_install` filled
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,
    /// Check only these scenarios
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Show the scenarios that there are, and check nothing
    #[arg(long)]
    pub list: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Number of vCPUs of each guest; with several, mappings are torn down across them
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// What runs the guests; with several, tables show where they differ
    #[arg(long, value_enum, value_delimiter = ',', default_value = "moat")]
    pub vmm: Vec<CheckedVmm>,
    /// The kernels lack this mitigation, so what depends on it must fail
    #[arg(long, value_name = "MITIGATION", value_delimiter = ',', value_parser = mitigation_parser())]
    pub expect_without: Vec<Mitigation>,
    /// Run no guest: judge what a report of --json has recorded
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "only"])]
    pub judge: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckedVmm {
    /// moat
    Moat,
    /// QEMU, which must be installed; with KVM where it works, else by emulation
    Qemu,
    /// Likewise, with VT-d for IOMMU, for kernels that have no driver of virtio-iommu
    QemuIntelIommu,
}

fn mitigation_parser() -> impl TypedValueParser<Value = Mitigation> {
    let value = |it: Mitigation| PossibleValue::new(it.name()).help(it.description());
    PossibleValuesParser::new(Mitigation::ALL.map(value)).try_map(|name| name.parse())
}

#[derive(Args)]
#[command(after_help = "\
Exit codes: 0 it can, 1 it cannot.")]
pub struct DoctorArguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
