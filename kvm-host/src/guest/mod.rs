//! In the emulated host: /init, which makes it look like this machine and runs the command.

mod command;
mod kvm;
mod sharing;
mod system;

use std::{
    convert::Infallible,
    fs::{self, File},
    os::unix::ffi::OsStrExt,
    thread,
};

use agent_protocol::{FrameError, FrameReader, write_frame};
use anyhow::bail;
use rustix::{
    fs::inotify,
    system::{RebootCommand, reboot},
    termios::tcdrain,
};

use crate::message::{FromGuest, Stream, ToGuest};

/// Runs the command that comes over the channel. On an error it prints that on the console and restarts,
/// on which QEMU ends.
pub fn run() -> anyhow::Result<Infallible> {
    let Err(error) = run_command();
    eprintln!("{error:#}");
    tcdrain(std::io::stderr())?;
    reboot(RebootCommand::Restart)?;
    Err(error)
}

fn run_command() -> anyhow::Result<Infallible> {
    system::load_modules()?;
    system::mount_file_systems()?;
    system::enable_loopback()?;
    let _held = kvm::hold_machines()?;
    let channel = open_channel()?;
    let mut messages = FrameReader::new(channel.try_clone()?);
    let ToGuest::Start(start) = messages.read()? else { bail!("input came before a command") };
    for path in &start.shared {
        report(sharing::share(path), &channel)?;
    }
    let end = command::run(&start, messages, &channel)?;
    for path in &start.copied_out {
        report(sharing::copy_out(path), &channel)?;
    }
    // For what was written through memory maps.
    rustix::fs::sync();
    write_frame(&channel, &FromGuest::Ended(end))?;
    // QEMU is ended from outside.
    loop {
        thread::park();
    }
}

/// Reports what could not be shared. The command runs all the same: it may not need it.
fn report(result: anyhow::Result<()>, channel: &File) -> Result<(), FrameError> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => {
            let line = format!("kvm-host: {error:#}\n").into_bytes();
            write_frame(channel, &FromGuest::Output(Stream::Error, line))
        }
    }
}

/// Opens the one virtio-serial port, which appears some time after its driver.
fn open_channel() -> anyhow::Result<File> {
    let watch = inotify::init(inotify::CreateFlags::empty())?;
    inotify::add_watch(&watch, "/dev", inotify::WatchFlags::CREATE)?;
    loop {
        for entry in fs::read_dir("/dev")? {
            let entry = entry?;
            if entry.file_name().as_bytes().starts_with(b"vport") {
                return Ok(File::options().read(true).write(true).open(entry.path())?);
            }
        }
        rustix::io::read(&watch, &mut [0; 4096])?;
    }
}
