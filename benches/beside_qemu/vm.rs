//! A guest that is booting or running in a VMM of its own.

use std::{
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::{
    contender::{Contender, Place, Programs, Setup},
    control::Control,
};

/// Emulated hosts need 10 seconds; more is a hang.
const BOOT: Duration = Duration::from_secs(120);

/// The VMM's process. Dropping it ends it.
pub struct Vm {
    process: Child,
    directory: TempDir,
    contender: Contender,
}

impl Vm {
    /// Starts the VMM, and connects to the far end of the guest's second serial port, where the
    /// agent will say hello, or the program that it is ready.
    pub fn start(
        programs: &Programs,
        contender: Contender,
        setup: &Setup,
    ) -> anyhow::Result<(Self, UnixStream)> {
        let directory = TempDir::new()?;
        let process = contender
            .command(programs, &Place(directory.path()), setup)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", contender.name))?;
        let mut vm = Self { process, directory, contender };
        let agent = vm.connect(&Place(vm.directory.path()).agent())?;
        agent.set_read_timeout(Some(BOOT))?;
        Ok((vm, agent))
    }

    /// The VMM's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The file that RAM of a program is in.
    pub fn ram(&self) -> PathBuf {
        Place(self.directory.path()).ram()
    }

    /// Its control socket.
    pub fn control(&mut self) -> anyhow::Result<Control> {
        let stream = self.connect(&Place(self.directory.path()).control())?;
        Control::new(stream, self.contender.is_qemu())
    }

    /// An error with what the guest has said on its console.
    pub fn trouble(&self, error: impl Into<anyhow::Error>) -> anyhow::Error {
        let console = fs::read_to_string(Place(self.directory.path()).console());
        error.into().context(format!("{}: {}", self.contender.name, console.unwrap_or_default()))
    }

    /// Nobody tells when a VMM's socket appears, but it appears at once.
    fn connect(&mut self, path: &Path) -> anyhow::Result<UnixStream> {
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Ok(stream),
                Err(error) if is_absent(&error) => std::thread::yield_now(),
                Err(error) => return Err(error.into()),
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("{} ended, {status}; what it said is above", self.contender.name);
            }
        }
    }
}

/// Whether a socket is not there, or nobody listens there yet.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
