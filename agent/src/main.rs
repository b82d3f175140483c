//! The agent: the static program that is /init in a guest and does what the host asks of it.
//!
//! Process 1 mounts what a guest needs, opens the serial port to the host and then only passes
//! messages: whatever may die of a signal or get stuck in the kernel is done by workers, processes
//! that it forks on request and that keep their own files and mappings.

mod access;
mod event_fd;
mod fault;
mod hammer;
mod kernel_log;
mod mapping;
mod modules;
mod polling;
mod serial;
mod supervisor;
mod sys;
mod worker;
mod workload;
mod writing;

use std::{
    convert::Infallible,
    fs,
    io::{self, Write},
    panic,
};

use anyhow::{Context, ensure};
use rustix::{
    mount::{MountFlags, mount},
    process::getpid,
    system::{RebootCommand, reboot},
};

use crate::{serial::SerialPort, supervisor::Supervisor};

fn main() -> anyhow::Result<()> {
    ensure!(getpid().is_init(), "the agent is /init of a guest and does nothing elsewhere");
    panic::set_hook(Box::new(|panic| give_up(panic)));
    let Err(error) = run();
    give_up(format_args!("{error:#}"));
    Ok(())
}

fn run() -> anyhow::Result<Infallible> {
    mount_kernel_file_systems()?;
    mount("tmpfs", "/tmp", "tmpfs", MountFlags::NOSUID, None)
        .context("cannot mount tmpfs on /tmp")?;
    if let Some(workload) = workload::find()? {
        return workload::run(&workload);
    }
    Supervisor::new(SerialPort::open()?)?.run()
}

/// Prints the reason on the console. Process 1 then powers off, because a kernel whose process 1 ends
/// reports little and may hang; a worker just ends.
fn give_up(reason: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "agent: {reason}");
    if !getpid().is_init() {
        sys::exit(101);
    }
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        let _ = writeln!(io::stderr(), "agent: cannot power off: {error}");
    }
}

fn mount_kernel_file_systems() -> anyhow::Result<()> {
    let flags = MountFlags::NOSUID;
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(kind, target, kind, flags, None)
            .with_context(|| format!("cannot mount {kind} on {target}"))?;
    }
    let security = "/sys/kernel/security";
    if fs::exists(security)? {
        mount("securityfs", security, "securityfs", flags, None)
            .with_context(|| format!("cannot mount securityfs on {security}"))?;
    }
    Ok(())
}
