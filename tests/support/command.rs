//! The `moat` command with a kernel that a test drives.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use bare_metal::Program;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A folder with a kernel that boots, waits for commands that never come, and never ends.
pub struct Fixture {
    pub directory: TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        bare_metal::write_elf(&directory.path().join("kernel"));
        Self { directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), contents).unwrap();
        self.path(name)
    }

    pub fn run(&self, arguments: &[&str]) -> Command {
        let mut command = moat(&["run", "--serial", "file:/dev/null"]);
        command.args(arguments).current_dir(self.directory.path());
        command
    }

    /// The arguments by which a machine lets its guest be [driven](Self::drive).
    pub const DRIVEN: [&str; 13] = [
        "run",
        "--kernel",
        "kernel",
        "--boot-protocol",
        "pvh",
        "--memory",
        "64M",
        "--memory-backing",
        "backing=file:ram",
        "--serial2",
        "unix:agent",
        "--virtio-mem",
        "size=1G",
    ];

    /// Starts `command`, which runs moat with those arguments, and connects to the program in its guest.
    pub fn drive(&self, command: &mut Command) -> (Child, Program) {
        let mut child = command.current_dir(self.directory.path()).spawn().unwrap();
        let stream = loop {
            match UnixStream::connect(self.path("agent")) {
                Ok(stream) => break stream,
                Err(_) => assert_eq!(child.try_wait().unwrap(), None, "it has ended"),
            }
            thread::yield_now();
        };
        (child, Program::connect(stream, &self.path("ram")))
    }

    /// Starts a machine with an API, and waits for the message that it is running.
    pub fn start(&self, arguments: &[&str]) -> Running {
        self.start_as(self.run(&["--kernel", "kernel", "--api-socket", "api"]).args(arguments))
    }

    /// The same for a `command` of one's own.
    pub fn start_as(&self, command: &mut Command) -> Running {
        let socket = self.path("api");
        command.current_dir(self.directory.path()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("running; `moat status --api-socket api`"), "{line:?}");
        Running { child: Some(child), socket }
    }
}

pub struct Running {
    pub child: Option<Child>,
    socket: PathBuf,
}

impl Running {
    pub fn moat(&self, command: &str, arguments: &[&str]) -> Output {
        moat(&[command, "--api-socket"]).arg(&self.socket).args(arguments).output().unwrap()
    }

    pub fn end(mut self, signal: Signal) -> Output {
        let child = self.child.take().unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        child.wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().unwrap();
        }
    }
}

pub fn moat(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moat"));
    command.args(arguments).stdin(Stdio::null());
    command
}
