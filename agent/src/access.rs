//! Single accesses to memory, each one `mov` of the asked width.
//!
//! In assembly, so that no compiler turns them into something wider, narrower or vectorised: a
//! hypervisor that has to emulate the instruction knows these.

use std::{
    arch::asm,
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use agent_protocol::{Failure, Width};
use rustix::pipe::pipe;

use crate::{
    fault::{self, AccessReport},
    sys::{self, Fork},
};

/// Loads from an address.
///
/// # Safety
///
/// The address must not be that of memory which Rust references, unless it is only read there. It
/// need not be mapped: then the process gets a signal.
pub unsafe fn load(address: u64, width: Width) -> u64 {
    let value: u64;
    match width {
        // SAFETY: the caller vouches for the address; nothing but the named register changes.
        Width::Byte => unsafe {
            asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) address,
                options(nostack, preserves_flags, readonly));
        },
        // SAFETY: as above.
        Width::Word => unsafe {
            asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) address,
                options(nostack, preserves_flags, readonly));
        },
        // SAFETY: as above.
        Width::Long => unsafe {
            asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) address,
                options(nostack, preserves_flags, readonly));
        },
        // SAFETY: as above.
        Width::Quad => unsafe {
            asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) address,
                options(nostack, preserves_flags, readonly));
        },
    }
    value
}

/// Stores at an address the low bytes of a value.
///
/// # Safety
///
/// The address must not be that of memory which Rust references. It need not be mapped: then the
/// process gets a signal.
pub unsafe fn store(address: u64, width: Width, value: u64) {
    match width {
        // SAFETY: the caller vouches for the address; nothing else changes.
        Width::Byte => unsafe {
            asm!("mov byte ptr [{0}], {1}", in(reg) address, in(reg_byte) value as u8,
                options(nostack, preserves_flags));
        },
        // SAFETY: as above.
        Width::Word => unsafe {
            asm!("mov word ptr [{0}], {1:x}", in(reg) address, in(reg) value,
                options(nostack, preserves_flags));
        },
        // SAFETY: as above.
        Width::Long => unsafe {
            asm!("mov dword ptr [{0}], {1:e}", in(reg) address, in(reg) value,
                options(nostack, preserves_flags));
        },
        // SAFETY: as above.
        Width::Quad => unsafe {
            asm!("mov qword ptr [{0}], {1}", in(reg) address, in(reg) value,
                options(nostack, preserves_flags));
        },
    }
}

/// Makes an access in a child forked for it.
pub fn in_child(access: impl FnOnce() -> u64) -> Result<u64, Failure> {
    let (reports, pipe) = pipe().map_err(io::Error::from)?;
    match sys::fork()? {
        Fork::Child => report(&pipe, access),
        Fork::Parent(child) => {
            drop(pipe);
            let end = sys::wait(child)?;
            match AccessReport::read(File::from(reports), end) {
                Some(AccessReport::Value(value)) => Ok(value),
                Some(AccessReport::Fault(fault)) => Err(Failure::Fault(fault)),
                None => Err(Failure::Ended(end)),
            }
        }
    }
}

fn report(pipe: &OwnedFd, access: impl FnOnce() -> u64) -> ! {
    fault::redirect(pipe);
    AccessReport::Value(access()).write(pipe.as_raw_fd());
    sys::exit(0)
}
