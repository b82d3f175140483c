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

use super::{POLL_INTERVAL, VmError};

/// The process, and a directory for its files and sockets. Dropping it ends the process.
pub struct MonitorProcess {
    program: &'static str,
    child: Mutex<Child>,
    files: TempDir,
    started: Instant,
}

impl MonitorProcess {
    /// Runs `program`, found by PATH. Its standard error goes to a file.
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

    /// The error that it has ended, with what it wrote to its standard error.
    pub(super) fn ended(&self) -> VmError {
        let said = String::from_utf8_lossy(&self.read("errors")).trim().to_owned();
        VmError::ProcessEnded { program: self.program, said }
    }

    /// Connects to a socket that it makes, retrying until the socket exists.
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

    /// Waits for its end, at most this long.
    pub(super) fn wait(&self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let end = Instant::now() + timeout;
        loop {
            let status = self.child().try_wait()?;
            if status.is_some() || Instant::now() >= end {
                return Ok(status);
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// No thread panics while it holds this lock.
    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MonitorProcess {
    fn drop(&mut self) {
        // Fails if it has ended already.
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
