//! Opening /dev/kvm, with errors that name the cause and the fix.

use std::io;

use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

/// Why KVM cannot be used.
#[derive(Debug, Error)]
pub enum KvmError {
    /// There is no KVM.
    #[error(
        "there is no /dev/kvm: load kvm_intel or kvm_amd, or, in a virtual machine, have nested \
         virtualisation enabled"
    )]
    Missing,
    /// This user may not open it.
    #[error(
        "no permission for /dev/kvm: add yourself to its group (`usermod -aG kvm USER`, then log \
         in again) or run as root"
    )]
    Permission,
    /// Anything else.
    #[error("cannot open /dev/kvm: {0}")]
    Open(io::Error),
    /// It has another API version.
    #[error("/dev/kvm has API version {0}; expected 12")]
    ApiVersion(i32),
    /// It is too old, or incomplete.
    #[error("this KVM lacks the capability {0:?}, which an unmodified kernel needs")]
    Capability(Cap),
}

/// The capabilities that every machine needs.
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

/// Opens /dev/kvm and checks that it has what every machine needs.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| KvmError::of_open(error.errno()))?;
    check(kvm.get_api_version(), |capability| kvm.check_extension(capability))?;
    Ok(kvm)
}

impl KvmError {
    /// Why /dev/kvm cannot be opened.
    fn of_open(errno: i32) -> Self {
        match errno {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => Self::Missing,
            libc::EACCES | libc::EPERM => Self::Permission,
            errno => Self::Open(io::Error::from_raw_os_error(errno)),
        }
    }
}

fn check(api_version: i32, has: impl Fn(Cap) -> bool) -> Result<(), KvmError> {
    const API_VERSION: i32 = 12;
    if api_version != API_VERSION {
        return Err(KvmError::ApiVersion(api_version));
    }
    match REQUIRED.into_iter().find(|capability| !has(*capability)) {
        Some(missing) => Err(KvmError::Capability(missing)),
        None => Ok(()),
    }
}

/// Why a vCPU cannot be created or continued.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// KVM refuses an ioctl.
    #[error("{name} failed: {source}")]
    Ioctl {
        /// Its name.
        name: &'static str,
        /// KVM's error.
        source: kvm_ioctls::Error,
    },
    /// KVM does not support an MSR that every kernel needs.
    #[error("KVM refuses MSR {0:#x}")]
    MsrRefused(u32),
    /// More CPUID entries than KVM takes.
    #[error("{0} CPUID entries are more than KVM takes")]
    TooManyCpuidEntries(usize),
    /// The boot structures do not fit guest memory.
    #[error("cannot write boot structures to guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The host has no descriptor left.
    #[error("cannot duplicate a vCPU's descriptor: {0}")]
    Descriptor(std::io::Error),
    /// The host cannot start a thread.
    #[error("cannot start a vCPU's thread: {0}")]
    Thread(std::io::Error),
}

impl VcpuError {
    /// For `map_err` on the ioctl called `name`.
    pub fn ioctl(name: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Ioctl { name, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_opening_kvm_says_how_to_fix_it() {
        for (errno, message) in [
            (libc::ENOENT, "there is no /dev/kvm: load kvm_intel or kvm_amd"),
            (libc::ENODEV, "there is no /dev/kvm: load kvm_intel or kvm_amd"),
            (libc::ENXIO, "there is no /dev/kvm: load kvm_intel or kvm_amd"),
            (libc::EACCES, "no permission for /dev/kvm: add yourself to its group"),
            (libc::EPERM, "no permission for /dev/kvm: add yourself to its group"),
            (libc::EISDIR, "cannot open /dev/kvm: Is a directory"),
        ] {
            let error = KvmError::of_open(errno).to_string();
            assert!(error.starts_with(message), "{errno}: {error}");
        }
    }

    #[test]
    fn another_api_version_is_refused() {
        for version in [-1, 0, 11, 13] {
            let error = check(version, |_| true).unwrap_err().to_string();
            assert_eq!(error, format!("/dev/kvm has API version {version}; expected 12"));
        }
        check(12, |_| true).unwrap();
    }

    #[test]
    fn a_missing_capability_is_an_error() {
        for missing in REQUIRED {
            let error = check(12, |capability| capability != missing).unwrap_err().to_string();
            let expected = format!(
                "this KVM lacks the capability {missing:?}, which an unmodified kernel needs"
            );
            assert_eq!(error, expected);
        }
    }
}
