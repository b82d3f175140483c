//! Opening /dev/kvm, and saying what is wrong when that fails.

use std::io;

use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

/// A KVM that cannot be used.
#[derive(Debug, Error)]
pub enum KvmError {
    /// There is no KVM.
    #[error(
        "there is no /dev/kvm: load kvm_intel or kvm_amd, or, in a virtual machine, have nested \
         virtualisation enabled"
    )]
    Missing,
    /// It is somebody else's.
    #[error(
        "no permission for /dev/kvm: add yourself to its group (`usermod -aG kvm USER`, then log \
         in again) or run as root"
    )]
    Permission,
    /// Anything else.
    #[error("cannot open /dev/kvm: {0}")]
    Open(io::Error),
    /// It speaks another language.
    #[error("/dev/kvm has API version {0}, not 12")]
    ApiVersion(i32),
    /// It is too old, or not a full one.
    #[error("this KVM has no {0:?}, without which no stock kernel can be run")]
    Capability(Cap),
}

/// What every machine needs.
const REQUIRED: [Cap; 8] = [
    Cap::UserMemory,
    Cap::Irqchip,
    Cap::Pit2,
    Cap::Irqfd,
    Cap::Ioeventfd,
    Cap::ExtCpuid,
    Cap::SetTssAddr,
    Cap::ImmediateExit,
];

/// Opens /dev/kvm and checks that it does what a machine needs.
pub fn open() -> Result<Kvm, KvmError> {
    const API_VERSION: i32 = 12;
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Permission,
        errno => KvmError::Open(io::Error::from_raw_os_error(errno)),
    })?;
    if kvm.get_api_version() != API_VERSION {
        return Err(KvmError::ApiVersion(kvm.get_api_version()));
    }
    match REQUIRED.into_iter().find(|capability| !kvm.check_extension(*capability)) {
        Some(missing) => Err(KvmError::Capability(missing)),
        None => Ok(kvm),
    }
}

/// A vCPU that cannot be made, or cannot go on.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// KVM refuses an ioctl.
    #[error("{name} failed: {source}")]
    Ioctl {
        /// Its name.
        name: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// KVM does not know an MSR that every kernel needs.
    #[error("KVM refuses MSR {0:#x}")]
    MsrRefused(u32),
    /// More CPUID entries than KVM takes.
    #[error("{0} CPUID entries are more than KVM takes")]
    TooManyCpuidEntries(usize),
    /// The boot structures do not fit guest memory.
    #[error("cannot write boot structures to guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The host does not give a thread.
    #[error("cannot start a vCPU's thread: {0}")]
    Thread(std::io::Error),
}

impl VcpuError {
    /// For `map_err` on the ioctl called `name`.
    pub fn ioctl(name: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Ioctl { name, source }
    }
}
