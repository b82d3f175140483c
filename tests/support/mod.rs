//! What the end-to-end tests share.

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod check;
pub mod command;
pub mod conformance;
pub mod host_memory;
pub mod kallsyms;
pub mod launch;
pub mod linux;
pub mod lspci;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use bare_metal::Program;
use tempfile::TempDir;
use vmm::arch::x86_64::boot::BootProtocol;
use vmm::memory::backing::Backing;
use vmm::{
    Enforcement, Machine, MachineError, MachineIo, MachineSpec, MemoryDeviceConfig, SerialEndpoint,
    Size,
};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// How often a test repeats itself: the value of an environment variable for a long run, or `default`.
pub fn rounds(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |rounds| rounds.parse().expect("a number"))
}

/// Resident memory of this process, in bytes.
pub fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// A machine that runs the bare-metal program.
pub struct ProgramMachine {
    pub machine: Machine,
    pub program: Program,
    _directory: TempDir,
}

impl ProgramMachine {
    pub fn start(vcpus: u32, memory_devices: Vec<MemoryDeviceConfig>) -> Self {
        Self::start_with(vcpus, memory_devices, Enforcement::Strict)
    }

    pub fn start_with(
        vcpus: u32,
        memory_devices: Vec<MemoryDeviceConfig>,
        enforce: Enforcement,
    ) -> Self {
        Self::start_as(|usual| MachineSpec {
            cpus: vcpus,
            virtio_mem: memory_devices,
            enforce,
            ..usual
        })
        .unwrap()
    }

    /// `change` changes the usual configuration.
    pub fn start_as(change: impl FnOnce(MachineSpec) -> MachineSpec) -> Result<Self, MachineError> {
        Self::start_printing(change, SerialEndpoint::null())
    }

    /// Likewise, and what it prints goes to `console`.
    pub fn start_printing(
        change: impl FnOnce(MachineSpec) -> MachineSpec,
        console: SerialEndpoint,
    ) -> Result<Self, MachineError> {
        let directory = TempDir::new().unwrap();
        let kernel: PathBuf = directory.path().join("program.elf");
        let ram = directory.path().join("ram");
        bare_metal::write_elf(&kernel);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let spec = MachineSpec {
            boot_protocol: BootProtocol::Pvh,
            memory: Size(128 * MIB),
            memory_backing: Backing::File(ram.clone()).into(),
            ..MachineSpec::new(kernel)
        };
        let agent = SerialEndpoint {
            name: "the agent",
            input: Some(Box::new(theirs.try_clone().unwrap())),
            output: Box::new(theirs),
        };
        let io = MachineIo { console, agent, ..MachineIo::default() };
        let machine = Machine::start(change(spec), io)?;
        Ok(Self { machine, program: Program::connect(ours, &ram), _directory: directory })
    }
}
