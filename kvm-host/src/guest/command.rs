//! The command: its streams, the keep-alive messages, and its end.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use agent_protocol::{End, FrameReader, Signal, write_frame};
use anyhow::Context;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::ioctl_fionread,
    process::{Pid, WaitOptions, wait},
};
use signal_hook::{consts::SIGCHLD, low_level::pipe};

use crate::{
    HOST_FAILED,
    message::{CHUNK, FromGuest, Start, Stream, ToGuest},
};

/// How often a message is sent at least, which shows that the emulated host does not hang.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// The status of a command that exists but cannot be run, as in shells.
const CANNOT_RUN: i32 = 126;
/// And of one that does not exist.
const NOT_FOUND: i32 = 127;

/// Runs a command to its end, with input from these messages and output to the channel.
pub fn run(start: &Start, messages: FrameReader<File>, channel: &File) -> anyhow::Result<End> {
    let (children, children_end) = UnixStream::pair()?;
    children.set_nonblocking(true)?;
    // Before there is a child that could end.
    pipe::register(SIGCHLD, children_end)?;
    let mut child = match spawn(start) {
        Ok(child) => child,
        Err((status, message)) => {
            let message = format!("kvm-host: {message}\n").into_bytes();
            write_frame(channel, &FromGuest::Output(Stream::Error, message))?;
            return Ok(End::Exited(status));
        }
    };
    let (Some(input), Some(output), Some(errors)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        unreachable!("all three were asked for")
    };
    thread::spawn(|| feed(input, messages));
    let pipes = [(Stream::Output, output.into()), (Stream::Error, errors.into())];
    let mut relay = Relay { channel, pipes: pipes.into(), children };
    relay.run_until_end_of(Pid::from_child(&child))
}

/// Starts it, in a process group of its own. The error is an exit status and a message.
fn spawn(start: &Start) -> Result<Child, (i32, String)> {
    let directory = Path::new(&start.directory);
    if !directory.is_dir() {
        let message = format!("the emulated host has no directory {}", directory.display());
        return Err((HOST_FAILED.into(), message));
    }
    let Some((program, arguments)) = start.command.split_first() else {
        return Err((NOT_FOUND, "no command was given".to_owned()));
    };
    Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(start.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(directory)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            let status = if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
            (status, format!("cannot run {}: {error}", program.display()))
        })
}

/// Writes what the host sends to the command's input, until the stream ends on either side. What comes for
/// an input that is closed is dropped.
fn feed(input: ChildStdin, mut messages: FrameReader<File>) {
    let mut input = Some(input);
    while let Ok(ToGuest::Input(bytes)) = messages.read() {
        if bytes.is_empty()
            || input.as_ref().is_some_and(|mut input| input.write_all(&bytes).is_err())
        {
            input = None;
        }
    }
}

/// What passes a command's output on.
struct Relay<'a> {
    channel: &'a File,
    /// Those that are open.
    pipes: Vec<(Stream, OwnedFd)>,
    /// Readable when a child has ended.
    children: UnixStream,
}

impl Relay<'_> {
    fn run_until_end_of(&mut self, command: Pid) -> anyhow::Result<End> {
        let mut alive = Instant::now();
        loop {
            self.wait()?;
            let end = reap(command)?;
            // After the command has ended, all that it wrote is in the pipes. Processes that it left
            // behind may go on writing, and are not waited for.
            self.forward().context("cannot pass on what the command wrote")?;
            if let Some(end) = end {
                return Ok(end);
            }
            if alive.elapsed() >= SIGN_OF_LIFE {
                write_frame(self.channel, &FromGuest::Alive)?;
                alive = Instant::now();
            }
        }
    }

    /// Waits until there is something to do, or it is time for a keep-alive message.
    fn wait(&self) -> io::Result<()> {
        let pipes = self.pipes.iter().map(|(_, pipe)| pipe.as_fd());
        let mut fds: Vec<_> = [self.children.as_fd()]
            .into_iter()
            .chain(pipes)
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        match poll(&mut fds, Some(&second)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // wait(2) finds out which have ended.
        match (&self.children).read(&mut [0; 64]) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Passes on what the pipes hold, and drops those whose writers are gone.
    fn forward(&mut self) -> anyhow::Result<()> {
        let mut open = Vec::new();
        for (stream, pipe) in self.pipes.drain(..) {
            let mut fds = [PollFd::new(&pipe, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default()))?;
            let events = fds[0].revents();
            let mut left = ioctl_fionread(&pipe)? as usize;
            while left > 0 {
                let mut bytes = vec![0; left.min(CHUNK)];
                let count = rustix::io::read(&pipe, &mut bytes)?;
                bytes.truncate(count);
                left -= count;
                write_frame(self.channel, &FromGuest::Output(stream, bytes))?;
            }
            // Its last writer went before the bytes were counted.
            if !events.contains(PollFlags::HUP) {
                open.push((stream, pipe));
            }
        }
        self.pipes = open;
        Ok(())
    }
}

/// Reaps every child that has ended, orphans included; returns how the command ended, if it has.
fn reap(command: Pid) -> io::Result<Option<End>> {
    let mut end = None;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == command => {
                end = Some(match status.terminating_signal() {
                    Some(signal) => End::Killed(Signal(signal)),
                    None => End::Exited(status.exit_status().unwrap_or_default()),
                });
            }
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(end),
            Err(error) => return Err(error.into()),
        }
    }
}
