//! The command line: commands, options and their help.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use checks::framework::Mitigation;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use kernels::DebianKernel;
use launch::{GuestFile, Mode, Share};
use schemars::JsonSchema;
use serde::Deserialize;
use vmm::arch::x86_64::boot::BootProtocol;
use vmm::memory::host::HostMemoryConfig;
use vmm::{
    Enforcement, IommuConfig, MachineSpec, MemoryDeviceConfig, OnReset, ProbeConfig, Size,
    VirtioTransport,
};

use crate::settings::{self, Settings, names};

/// A KVM virtual machine monitor for people who ask: who may access this memory?
#[derive(Parser)]
#[command(version, about, long_about = None, after_help = "\
Examples:
  moat doctor
  moat run -- make check
  moat run --kernel debian-6.12 -- uname -r
  moat run --kernel bzImage --initrd initramfs --virtio-mem size=8G,requested=1G --api-socket /tmp/vm
  moat resize --api-socket /tmp/vm mem0 4G
  moat status --api-socket /tmp/vm
  moat pause --api-socket /tmp/vm
  moat check --kernel debian-6.12")]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a program in a virtual machine, or boot a kernel and wait until it ends
    Run(Box<RunArguments>),
    /// Ask the guest of a running machine to plug or unplug memory
    Resize(ResizeArguments),
    /// Show a running machine
    Status(StatusArguments),
    /// Pause a running machine: its vCPUs, its devices and its clocks stand still
    Pause(PauseArguments),
    /// Let a paused machine run again
    Resume(PauseArguments),
    /// Check that kernels keep user space and drivers out of device memory that is not theirs
    Check(CheckArguments),
    /// Fetch kernels of Debian's to run guests on, without installing them
    #[command(subcommand)]
    Kernel(KernelCommand),
    /// Find out whether this machine's KVM can run an unmodified kernel
    Doctor(DoctorArguments),
}

#[derive(Args)]
#[command(after_help = "\
With a COMMAND, --script, --file or --modules, or if --kernel is not a kernel image, moat runs the program (or a
shell) in the guest on this host's files and exits with its exit status. Otherwise it boots the kernel
and connects its console to this terminal.

Leave the console with Ctrl-A x, which ends the machine. Ctrl-A Ctrl-A sends a Ctrl-A.

Exit codes: 0 the guest powered off, 10 reset, 11 halted, 12 triple fault, 13 kernel panic, 14 KVM
could not continue, 15 the machine failed, 16 an access to an unplugged block with on-violation=stop,
128+N ended by signal N; 1 it could not start, 2 wrong usage.

When a program is run, the exit code is the program's, or 128+N if signal N ended it. Others are: 126 the
program cannot be started, 127 there is no such program, 240 the guest's kernel panicked, 241 it did not start
the program in time, 242 the program ran for too long, 243 the guest cannot run programs, 244 the guest ended
before the program, 245 moat could not start it, 246 you ended it with Ctrl-A x. A line on standard error gives
the reason.

A comma in a value, such as a path, is written twice: backing=file:/tmp/a,,b.

Examples:
  moat run -- make check
  moat run --kernel debian-6.12 -- uname -r
  moat run --kernel ~/linux --share .,rw -- make
  moat run --kernel bzImage --modules modules --memory 2G -- sh -c 'uname -r; exit 7'
  moat run --kernel ~/linux --file hello:/hello -- /hello
  moat run --kernel bzImage --initrd initramfs --cmdline 'console=ttyS0 quiet'
  moat run --kernel vmlinux --cpus 4 --memory 1G --virtio-mem size=8G,requested=1G
  moat run --kernel bzImage --serial file:console.log --api-socket /tmp/vm
  moat run --kernel bzImage --transport pci --probe --probe behind=root-port,acs=on
  moat run --kernel bzImage --transport pci --probe --iommu virtio
  moat run --kernel bzImage --initrd initramfs --serial2 unix:/tmp/test-channel")]
pub struct RunArguments {
    /// Kernel to boot: a name of `moat kernel list`, which is fetched if it is not there; a directory that a
    /// kernel was built in; one with bzImage, config, release and modules; or a bzImage or ELF vmlinux, with
    /// --modules to run a program [default, to run a program: this host's own]
    #[arg(long, value_name = "PATH|NAME")]
    pub kernel: Option<PathBuf>,
    /// Initramfs for the kernel
    #[arg(long, value_name = "PATH", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line [default: console=ttyS0 panic=-1 swiotlb=noforce, and pci=off where there is no PCI]
    #[arg(long, value_name = "STRING")]
    pub cmdline: Option<String>,
    /// Names of the kernel's functions, for reports: a System.map, a copy of /proc/kallsyms or a
    /// vmlinux. Without it moat searches the guest's memory for them
    #[arg(long, value_name = "PATH")]
    pub symbols: Option<PathBuf>,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// RAM, as in 512M or 8G
    #[arg(long, value_name = "SIZE", default_value_t = Size(512 << 20))]
    pub memory: Size,
    #[arg(long, value_name = "SETTINGS", default_value = "backing=anonymous")]
    #[arg(value_parser = settings::parse::<HostMemoryConfig>)]
    #[arg(help = settings::help::<HostMemoryConfig>("How RAM is allocated on the host"))]
    pub memory_backing: HostMemoryConfig,
    #[arg(long, value_name = "SETTINGS", value_parser = settings::parse::<MemoryDeviceConfig>)]
    #[arg(help = settings::help::<MemoryDeviceConfig>("Add a virtio-mem device (mem0, mem1, …)"))]
    pub virtio_mem: Vec<MemoryDeviceConfig>,
    /// How drivers reach virtio devices
    #[arg(long, default_value = "mmio", value_parser = names::<VirtioTransport>())]
    pub transport: VirtioTransport,
    #[arg(long, value_name = "SETTINGS", num_args = 0..=1, default_missing_value = "behind=nothing")]
    #[arg(value_parser = settings::parse::<ProbeConfig>)]
    #[arg(help = settings::help::<ProbeConfig>("Add a probe, a PCI device that counts accesses (docs/probe.md)"))]
    pub probe: Vec<ProbeConfig>,
    #[arg(long, value_name = "KIND", value_parser = settings::parse::<IommuConfig>)]
    #[arg(help = settings::help::<IommuConfig>("Put every device behind an IOMMU, as in virtio,bypass=off"))]
    pub iommu: Option<IommuConfig>,
    /// Whether the guest is kept out of unplugged memory
    #[arg(long, default_value = "strict", value_parser = names::<Enforcement>())]
    pub enforce: Enforcement,
    /// What happens when the guest resets the machine
    #[arg(long, default_value = "end", value_parser = names::<OnReset>())]
    pub on_reset: OnReset,
    /// How to enter the kernel
    #[arg(long, default_value = "auto", value_parser = names::<BootProtocol>())]
    pub boot_protocol: BootProtocol,
    /// Where the console goes: tty (this terminal), file:PATH or unix:PATH [default: tty; when a program is
    /// run, its last lines are printed after a failure]
    #[arg(long, value_name = "TARGET", value_parser = settings::parse_value::<SerialTarget>)]
    pub serial: Option<SerialTarget>,
    /// Where the guest's second serial port (ttyS1) goes, likewise [default: not connected]
    #[arg(long, value_name = "TARGET", value_parser = settings::parse_value::<SerialTarget>)]
    pub serial2: Option<SerialTarget>,
    /// Socket for `moat resize`, `status`, `pause` and `resume`
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
    #[command(flatten)]
    pub program: ProgramArguments,
}

/// What to run in the guest.
#[derive(Args)]
#[command(next_help_heading = "To run a program")]
pub struct ProgramArguments {
    /// Directory of this host that is the guest's root. What the guest changes there stays in its memory; the
    /// host's files do not change
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Share another directory with the guest, at the same path or at PATH: read-only, or with `rw` so that
    /// the guest's changes reach the host
    #[arg(long, value_name = "DIR[:PATH][,rw]", value_parser = parse_share)]
    pub share: Vec<Share>,
    /// Copy a file into the guest's memory, to the same path or to GUEST; may be repeated. The guest has no other
    /// files then, and needs no virtio-fs. The program has to be one of them, and static
    #[arg(long, value_name = "HOST[:GUEST]", value_parser = parse_file, conflicts_with_all = ["root", "initrd"])]
    pub file: Vec<GuestFile>,
    /// Modules of a kernel image: the directory that `make modules_install` filled
    #[arg(long, value_name = "DIR", requires = "kernel", conflicts_with = "initrd")]
    pub modules: Option<PathBuf>,
    /// The program's working directory in the guest [default: the current one, or / with --root or
    /// --file]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// User who runs the program, by name or number [default: the one who runs moat]
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Environment variable for the program, with a value or with moat's. PATH, HOME, USER, LOGNAME, SHELL,
    /// TERM, LANG, LC_ALL and TZ are passed on in any case
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// How long the guest may take to start the program, in seconds or as in 90s, 5m, 1h
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = parse_time)]
    pub boot_timeout: Duration,
    /// How long the program may run, likewise [default: as long as it takes]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub timeout: Option<Duration>,
    /// Run a shell with the script on standard input
    #[arg(long, conflicts_with = "command")]
    pub script: bool,
    /// Program to run in the guest, with its arguments [default: a shell]
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "initrd")]
    pub command: Vec<OsString>,
}

/// Reads DIR[:PATH][,rw].
fn parse_share(text: &str) -> Result<Share, String> {
    let (places, mode) = match text.strip_suffix(",rw") {
        Some(places) => (places, Mode::ReadWrite),
        None => (text, Mode::ReadOnly),
    };
    let (directory, path) = match places.split_once(':') {
        Some((directory, path)) => (Path::new(directory), Some(PathBuf::from(path))),
        None => (Path::new(places), None),
    };
    let directory = directory
        .canonicalize()
        .map_err(|error| format!("cannot share {}: {error}", directory.display()))?;
    let path = path.unwrap_or_else(|| directory.clone());
    if !path.is_absolute() {
        return Err(format!(
            "invalid path in the guest {}: expected an absolute path, as in DIR:/mnt",
            path.display()
        ));
    }
    Ok(Share { directory, path: path.into_os_string().into_vec(), mode })
}

/// Reads seconds, or a number with a unit.
fn parse_time(text: &str) -> Result<Duration, String> {
    let units = [('s', 1), ('m', 60), ('h', 3600)];
    let with_unit = units.iter().find_map(|&(unit, it)| Some((text.strip_suffix(unit)?, it)));
    let (number, seconds) = with_unit.unwrap_or((text, 1));
    let number: Option<u32> = number.parse().ok();
    let time = number.map(|number| Duration::from_secs(u64::from(number) * seconds));
    time.ok_or_else(|| "expected seconds or a number with s, m, h".to_owned())
}

/// Reads HOST[:GUEST].
fn parse_file(text: &str) -> Result<GuestFile, String> {
    let (file, path) = match text.split_once(':') {
        Some((file, path)) => (file, Ok(PathBuf::from(path))),
        None => (text, absolute(text)),
    };
    let path = path.map_err(|error| format!("cannot use {file}: {error}"))?;
    Ok(GuestFile { file: file.into(), path })
}

impl RunArguments {
    /// Whether to run a program or a shell. If not, the kernel only boots: that is so for a kernel image without
    /// a program, and for any kernel with an initramfs.
    pub fn has_program(&self) -> bool {
        let ProgramArguments { command, script, file, modules, .. } = &self.program;
        let is_image = self.kernel.as_deref().is_some_and(kernels::is_image);
        let asks = !command.is_empty() || *script || !file.is_empty() || modules.is_some();
        self.initrd.is_none() && (asks || !is_image)
    }

    /// The machine that they describe.
    pub fn spec(&self) -> MachineSpec {
        MachineSpec {
            kernel: self.kernel.clone().unwrap_or_default(),
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            symbols: self.symbols.clone(),
            cpus: self.cpus,
            memory: self.memory,
            memory_backing: self.memory_backing.clone(),
            virtio_mem: self.virtio_mem.clone(),
            transport: self.transport,
            probe: self.probe.clone(),
            iommu: self.iommu,
            enforce: self.enforce,
            on_reset: self.on_reset,
            boot_protocol: self.boot_protocol,
        }
    }
}

impl Settings for HostMemoryConfig {}
impl Settings for MemoryDeviceConfig {}
impl Settings for ProbeConfig {}

impl Settings for IommuConfig {
    const IMPLIED_KEY: Option<&str> = Some("kind");
}

/// Where a console goes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SerialTarget {
    /// This terminal.
    Tty,
    /// A file.
    File(#[schemars(extend("format" = "path"))] PathBuf),
    /// A socket.
    Unix(#[schemars(extend("format" = "path"))] PathBuf),
}

#[derive(Args)]
#[command(after_help = "\
The guest's driver plugs and unplugs, so this returns earlier; `moat status` shows the progress.

Example:
  moat resize --api-socket /tmp/vm mem0 4G")]
pub struct ResizeArguments {
    /// The machine's API socket, as given to `moat run`
    #[arg(long, value_name = "PATH")]
    pub api_socket: PathBuf,
    /// The device, mem0 for the first
    pub device: String,
    /// How much memory the guest is to have plugged
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
Pausing a paused machine, or resuming a running one, changes nothing.

Example:
  moat pause --api-socket /tmp/vm && moat resume --api-socket /tmp/vm")]
pub struct PauseArguments {
    /// The machine's API socket, as given to `moat run`
    #[arg(long, value_name = "PATH")]
    pub api_socket: PathBuf,
}

#[derive(Args)]
#[command(after_help = "\
Every scenario has a control, which shows that its check can fail. What cannot be checked on a kernel is
skipped, and the report gives the reason. Progress goes to standard error, the report to standard output.

Exit codes: 0 everything that could be checked holds, 1 something failed or nothing could be checked, 2
wrong usage.

Examples:
  moat check --kernel debian-6.12
  moat check --kernel debian-6.1 --kernel ~/kernels/protected --json
  moat check --kernel ~/linux --only VM3,VM11
  moat check --kernel ~/bzImage --modules ~/linux-modules
  moat check --kernel debian-6.12 --vmm moat,qemu
  moat check --kernel ~/kernels/unprotected --expect-without io-strict-devmem
  moat check --judge report.json --expect-without pci-revocation,exclusive-region
  moat check --list")]
pub struct CheckArguments {
    /// Kernel to check: a name of `moat kernel list`, which is fetched if it is not there; a directory that a
    /// kernel was built in; one with bzImage, config, release (what `uname -r` prints) and
    /// modules/lib/modules/RELEASE; or a bzImage with --modules; may be repeated
    #[arg(long, value_name = "PATH|NAME", required_unless_present_any = ["list", "judge"])]
    pub kernel: Vec<PathBuf>,
    /// Modules of kernels that are an image: the directory that `make modules_install` filled
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,
    /// Check only these scenarios
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub only: Vec<String>,
    /// List all scenarios, and check nothing
    #[arg(long)]
    pub list: bool,
    /// What is printed on standard output
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub format: ReportFormat,
    /// Short for --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Directory to write the report to in every format; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Name by which kcidb knows who sends results
    #[arg(long, value_name = "NAME", default_value = "moat", value_parser = kcidb_origin)]
    pub kcidb_origin: String,
    /// Number of vCPUs of each guest; with several, mappings are torn down across them
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Monitor that runs the guests; with several, tables show where they differ
    #[arg(long, value_enum, value_delimiter = ',', default_value = "moat")]
    pub vmm: Vec<CheckedVmm>,
    /// The kernels lack this mitigation, so what depends on it must fail
    #[arg(long, value_name = "MITIGATION", value_delimiter = ',', value_parser = mitigation_parser())]
    pub expect_without: Vec<Mitigation>,
    /// Run no guest: read the observations of a report made by --json, and judge them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "only"])]
    pub judge: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Tables for people
    Table,
    /// What was observed and how it is judged, which --judge reads
    Json,
    /// Kernel TAP, as KUnit's parser reads it
    Ktap,
    /// XML that Jenkins, GitLab and others show
    Junit,
    /// JSON for KernelCI's database
    Kcidb,
    /// Markdown for GitHub's step summary
    Github,
    /// A page that needs nothing else
    Html,
}

/// As kcidb-io's schema wants it.
fn kcidb_origin(name: &str) -> Result<String, String> {
    let is_allowed = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_';
    match !name.is_empty() && name.chars().all(is_allowed) {
        true => Ok(name.to_owned()),
        false => Err("expected lower-case letters, digits and underscores".to_owned()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckedVmm {
    /// moat
    Moat,
    /// QEMU, which must be installed; with KVM where it works, else by emulation
    Qemu,
    /// Likewise, with VT-d as IOMMU, for kernels that have no driver of virtio-iommu
    QemuIntelIommu,
}

fn mitigation_parser() -> impl TypedValueParser<Value = Mitigation> {
    let value = |it: Mitigation| PossibleValue::new(it.name()).help(it.description());
    PossibleValuesParser::new(Mitigation::ALL.map(value)).try_map(|name| name.parse())
}

#[derive(Subcommand)]
#[command(after_help = "\
Kernels are kept in moat/kernels of the user's cache directory (XDG_CACHE_HOME, or ~/.cache). apt-get
downloads them, from the mirrors that /etc/apt names, or from --mirror, and verifies them; nothing on this
machine is installed or changed, and root is not needed.

Examples:
  moat kernel list
  moat kernel path debian-6.12
  moat kernel fetch debian-newest
  moat kernel fetch debian-6.1-cloud --mirror https://deb.debian.org/debian")]
pub enum KernelCommand {
    /// List the kernels, and what has been fetched of them
    List(KernelListArguments),
    /// Print the directory of a kernel, which is fetched if it is not there
    Path(KernelArguments),
    /// Get the newest version of a kernel
    Fetch(KernelArguments),
}

#[derive(Args)]
#[command(after_help = "\
Example:
  moat kernel list --json")]
pub struct KernelListArguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  moat kernel path debian-6.12
  moat kernel fetch debian-newest --mirror https://deb.debian.org/debian")]
pub struct KernelArguments {
    /// The kernel
    #[arg(value_parser = kernel_parser())]
    pub name: &'static DebianKernel,
    /// Mirror of Debian's to get it from, as in sources.list(5) [default: those in /etc/apt]
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
}

fn kernel_parser() -> impl TypedValueParser<Value = &'static DebianKernel> {
    let value = |kernel: &DebianKernel| PossibleValue::new(kernel.name).help(kernel.description);
    let named = |name: String| DebianKernel::named(&name).ok_or("no such kernel");
    PossibleValuesParser::new(DebianKernel::ALL.iter().map(value)).try_map(named)
}

#[derive(Args)]
#[command(after_help = "\
Exit codes: 0 KVM can be used, 1 it cannot.")]
pub struct DoctorArguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_seconds_or_has_a_unit() {
        for (text, seconds) in [("0", 0), ("90", 90), ("90s", 90), ("5m", 300), ("2h", 7200)] {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "-1", "1d", "1.5h", "1mh", "99999999999"] {
            assert_eq!(
                parse_time(text),
                Err("expected seconds or a number with s, m, h".to_owned()),
                "{text}"
            );
        }
    }
}
