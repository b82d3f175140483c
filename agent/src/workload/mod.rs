//! Runs one program with the host's files and streams, instead of doing what a host asks step by step.

mod console;
mod files;
mod process;
mod relay;

use std::{convert::Infallible, fs, io, os::fd::AsFd, thread};

use agent_protocol::{FrameReader, Report, WORKLOAD_PATH, WindowSize, Workload, write_frame};
use anyhow::{Context, anyhow};
use rustix::net::{AddressFamily, SocketType, socket};

use self::{console::Console, process::Program};
use crate::{modules, sys};

/// The workload in the initramfs, if there is one.
pub fn find() -> anyhow::Result<Option<Workload>> {
    match fs::read(WORKLOAD_PATH) {
        Ok(bytes) => {
            let workload = postcard::from_bytes(&bytes);
            workload
                .map(Some)
                .with_context(|| format!("cannot decode the workload in {WORKLOAD_PATH}"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {WORKLOAD_PATH}")),
    }
}

/// Runs a workload, reports how it ended, and then waits for the host to end the guest.
pub fn run(workload: &Workload) -> anyhow::Result<Infallible> {
    // Before the modules can find any port.
    let uevents = console::Uevents::listen()?;
    for module in &workload.modules {
        modules::load(module, "")
            .map_err(|failure| anyhow!("cannot load module {module}: {failure:?}"))?;
    }
    let console = Console::open(uevents)?;
    let control = console.control.try_clone()?;
    let report = match files::mount_all(workload).and_then(|()| enable_loopback()) {
        Err(error) => Report::NotReady(format!("{error:#}")),
        Ok(()) => run_program(workload, console),
    };
    write_frame(&control, &report)?;
    loop {
        thread::park();
    }
}

/// Brings the interface `lo` up, on which Linux then has 127.0.0.1 and ::1: netdevice(7).
fn enable_loopback() -> anyhow::Result<()> {
    let enable = || {
        // Any will do, and kernels without Internet protocols have this one.
        let socket = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
        // struct ifreq: a name, and here the flags.
        let mut request = b"lo".to_vec();
        request.resize(libc::IFNAMSIZ, 0);
        request.extend((libc::IFF_UP as libc::c_short).to_ne_bytes());
        sys::exchange(socket.as_fd(), libc::SIOCSIFFLAGS as u32, &mut request)
    };
    enable().map(drop).context("cannot bring the loopback interface up")
}

fn run_program(workload: &Workload, console: Console) -> Report {
    let Console { control, stdin, stdout, stderr } = console;
    let program = match Program::start(workload) {
        Ok(program) => program,
        Err(error) => {
            let not_found = error.kind() == io::ErrorKind::NotFound;
            return Report::NotStarted { not_found, reason: error.to_string() };
        }
    };
    let pid = program.pid;
    // Fails only if the host's end is closed, and then the guest ends too.
    let _ = write_frame(&control, &Report::Started);
    if let Some(terminal) = program.terminal() {
        thread::spawn(move || {
            let mut sizes = FrameReader::new(control);
            while let Ok(size) = sizes.read::<WindowSize>() {
                // Fails only if the program has closed its terminal.
                let _ = process::set_size(&terminal, size);
            }
        });
    }
    thread::spawn(move || relay::copy(stdin, program.input));
    let mut outputs = vec![thread::spawn(move || relay::copy(program.output, stdout))];
    // Without, the port is closed here: the host waits for the end of each.
    if let Some(errors) = program.errors {
        outputs.push(thread::spawn(move || relay::copy(errors, stderr)));
    }
    let end = process::wait_for(pid);
    // What the program left behind would keep its output open.
    process::kill_all();
    outputs.into_iter().for_each(|output| drop(output.join()));
    Report::Ended(end)
}
