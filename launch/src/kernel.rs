//! Which kernel to run.

use std::path::{Path, PathBuf};

use rustix::system::uname;
use testvm::kernel::{GuestKernel, KernelError};
use thiserror::Error;

/// Why a kernel cannot be used.
#[derive(Debug, Error)]
pub enum KernelSourceError {
    /// The host's own.
    #[error("cannot run this host's own kernel; name another one with --kernel")]
    Host(#[source] KernelError),
    /// The one that was asked for.
    #[error(transparent)]
    Asked(#[from] KernelError),
}

/// A kernel and its modules: a bzImage and a directory of modules, a directory with both, or the host's own.
pub fn find_kernel(
    kernel: Option<&Path>,
    modules: Option<&Path>,
) -> Result<GuestKernel, KernelSourceError> {
    match kernel {
        None => host_kernel(),
        Some(path) => Ok(GuestKernel::at(path, modules)?),
    }
}

fn host_kernel() -> Result<GuestKernel, KernelSourceError> {
    let release = uname().release().to_string_lossy().into_owned();
    let image = PathBuf::from(format!("/boot/vmlinuz-{release}"));
    let modules = PathBuf::from(format!("/lib/modules/{release}"));
    GuestKernel::from_image(&image, Some(&modules)).map_err(KernelSourceError::Host)
}
