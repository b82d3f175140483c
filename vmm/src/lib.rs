//! One virtual machine on KVM: its memory and memory slots, its vCPUs, its devices, and how it
//! boots and ends.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("moat supports x86-64 only");

pub mod api;
pub mod arch;
mod board;
pub mod doctor;
mod exit;
mod files;
mod firmware;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod quiesce;
pub mod size;
pub mod socket;
pub mod symbols;
mod sync;
pub mod threads;
pub mod vcpu;
pub mod violations;

pub use machine::{
    ConsolePorts, Ending, Enforcement, IommuConfig, IommuKind, Machine, MachineControl,
    MachineError, MachineIo, MachineSpec, MachineStatus, MemoryDeviceConfig, MemoryDeviceStatus,
    OnReset, PciPlace, PortReader, PortWriter, ProbeConfig, SerialEndpoint, SharedFiles,
    VirtioTransport,
};
pub use size::Size;
