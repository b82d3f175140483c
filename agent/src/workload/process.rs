//! The workload's program as a process.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
    process::{Command, Stdio},
};

use agent_protocol::{End, WindowSize, Workload};
use rustix::{
    process::{Pid, WaitOptions, wait},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::sys;

/// A program that runs, and our ends of its streams.
pub struct Program {
    /// It is the leader of a session, and of a process group, of its own.
    pub pid: Pid,
    /// What it reads.
    pub input: File,
    /// What it writes.
    pub output: File,
    /// What it writes to its standard error. Without, that is the output too: it has a terminal.
    pub errors: Option<File>,
}

impl Program {
    /// Starts a workload's program.
    pub fn start(workload: &Workload) -> io::Result<Self> {
        if !Path::new(OsStr::from_bytes(&workload.directory)).is_dir() {
            return Err(io::Error::other("its working directory does not exist in the guest"));
        }
        let mut arguments = workload.command.iter().map(|bytes| OsStr::from_bytes(bytes));
        let program = arguments.next().ok_or(io::ErrorKind::InvalidInput)?;
        let environment = workload
            .environment
            .iter()
            .map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value)));
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(environment);
        sys::start_session_as(
            &mut command,
            &workload.credentials,
            &workload.directory,
            workload.terminal.is_some(),
        );
        match workload.terminal {
            Some(size) => Self::start_on_terminal(command, size),
            None => Self::start_on_pipes(command),
        }
    }

    fn start_on_pipes(mut command: Command) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let end = |end: Option<OwnedFd>| File::from(end.expect("it was asked for"));
        Ok(Self {
            pid: pid_of(child.id()),
            input: end(child.stdin.take().map(Into::into)),
            output: end(child.stdout.take().map(Into::into)),
            errors: Some(end(child.stderr.take().map(Into::into))),
        })
    }

    fn start_on_terminal(mut command: Command, size: WindowSize) -> io::Result<Self> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let path = ptsname(&ours, Vec::new())?;
        let open =
            || File::options().read(true).write(true).open(OsStr::from_bytes(path.as_bytes()));
        let ours = File::from(ours);
        set_size(&ours, size)?;
        command.stdin(open()?).stdout(open()?).stderr(open()?);
        let child = command.spawn()?;
        let input = ours.try_clone()?;
        Ok(Self { pid: pid_of(child.id()), input, output: ours, errors: None })
    }

    /// Our end of its terminal, if it has one.
    pub fn terminal(&self) -> Option<File> {
        self.errors.is_none().then(|| self.output.try_clone().ok()).flatten()
    }
}

fn pid_of(id: u32) -> Pid {
    Pid::from_raw(id as i32).expect("a process that runs has a number")
}

/// Gives a terminal a size.
pub fn set_size(terminal: &File, size: WindowSize) -> io::Result<()> {
    let WindowSize { rows, columns } = size;
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

/// Waits for a process, and meanwhile reaps all others that end.
pub fn wait_for(pid: Pid) -> End {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended == pid => return sys::end(status),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => unreachable!("process {pid:?} has not been waited for: {error}"),
        }
    }
}

/// Kills every process but this one.
pub fn kill_all() {
    // There may be none.
    let _ = sys::kill_all();
    while let Ok(Some(_)) | Err(rustix::io::Errno::INTR) = wait(WaitOptions::empty()) {}
}
