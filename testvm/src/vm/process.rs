//! A monitor that is a process of its own.

use std::{
    fs::{self, File},
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{POLL, VmError};

/// The process, and a directory for its files and sockets. Dropping it ends the process.
pub struct Process {
    program: &'static str,
    child: Mutex<Child>,
    files: TempDir,
    started: Instant,
}

impl Process {
    /// Runs `program`, found as a shell would find it. What it says goes to a file.
    pub(super) fn start(
        program: &'static str,
        files: TempDir,
        arrange: impl FnOnce(&mut Command),
    ) -> Result<Self, VmError> {
        let mut command = Command::new(program);
        command.stderr(File::create(files.path().join("errors"))?);
        arrange(&mut command);
        let started = Instant::now();
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => VmError::NotInstalled(program),
            _ => error.into(),
        })?;
        Ok(Self { program, child: Mutex::new(child), files, started })
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child().id()
    }

    /// A file in its directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The contents of a file in its directory; nothing if there is none.
    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_default()
    }

    /// That it has ended, with what it said.
    pub(super) fn ended(&self) -> VmError {
        let said = String::from_utf8_lossy(&self.read("errors")).trim().to_owned();
        VmError::ProcessEnded { program: self.program, said }
    }

    /// Connects to a socket that it makes. Nobody tells when that appears, but it appears at once.
    pub(super) fn connect(&self, path: &Path) -> Result<UnixStream, VmError> {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Ok(stream),
                Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => {}
                Err(error) => return Err(error.into()),
            }
            if self.child().try_wait()?.is_some() {
                return Err(self.ended());
            }
            thread::yield_now();
        }
    }

    /// Waits for its end, so long at most.
    pub(super) fn wait(&self, patience: Duration) -> io::Result<Option<ExitStatus>> {
        let end = Instant::now() + patience;
        loop {
            let status = self.child().try_wait()?;
            if status.is_some() || Instant::now() >= end {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
    }

    /// Nothing panics while it has this.
    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already cannot be killed, and needs not be.
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// An option that ends in a path. moat and QEMU take a comma for its end unless it is doubled.
pub(super) fn option(before: &str, path: &Path) -> String {
    format!("{before}{}", path.display().to_string().replace(',', ",,"))
}

/// A switch, as moat and QEMU spell it.
pub(super) fn switch(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}
