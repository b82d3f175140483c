//! Runs a command in a host that QEMU emulates, where this machine's own KVM cannot run guests.
//!
//! One static program with two roles: started by scripts/kvm-host it starts QEMU and passes on the command's
//! streams; as /init of the emulated host it runs the command. They talk over a virtio-serial port.

mod guest;
mod host;
mod message;

use std::process::ExitCode;

use rustix::process::getpid;

/// The exit status if the emulated host failed, and nothing is known about the command.
const HOST_FAILED: u8 = 125;

fn main() -> ExitCode {
    let Err(error) = if getpid().is_init() { guest::run() } else { host::run() };
    eprintln!("kvm-host: {error:#}");
    ExitCode::from(HOST_FAILED)
}
