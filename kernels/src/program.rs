//! Debian's programs.

use std::env;
use std::io;
use std::process::{Command, Stdio};

use crate::FetchError;

/// A program.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    name: &'static str,
    /// Debian's package that has it.
    package: &'static str,
}

impl Program {
    pub const APT_GET: Self = Self { name: "apt-get", package: "apt" };
    pub const APT_CACHE: Self = Self { name: "apt-cache", package: "apt" };
    pub const DPKG_DEB: Self = Self { name: "dpkg-deb", package: "dpkg" };
    pub const DEPMOD: Self = Self { name: "depmod", package: "kmod" };
    const ALL: [Self; 4] = [Self::APT_GET, Self::APT_CACHE, Self::DPKG_DEB, Self::DEPMOD];

    /// A command of it. Its messages go to standard error unless the caller wants something else.
    pub fn command(self) -> Command {
        // A plain user's path does not have depmod.
        let mut path = env::var_os("PATH").unwrap_or_default();
        path.push(":/usr/sbin:/sbin");
        let mut command = Command::new(self.name);
        command
            .env("PATH", path)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        command
    }

    /// Runs a command of it, whether that succeeds or not, and returns what it prints.
    pub fn output(self, command: &mut Command) -> Result<String, FetchError> {
        let output = command.output().map_err(|error| self.lost(error))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command of it, which must succeed.
    pub fn run(self, command: &mut Command) -> Result<(), FetchError> {
        // What it prints is no answer of moat's.
        command.stdout(Stdio::null());
        match command.status().map_err(|error| self.lost(error))? {
            status if status.success() => Ok(()),
            status => Err(FetchError::Failed { program: self.name, status }),
        }
    }

    fn lost(self, source: io::Error) -> FetchError {
        match source.kind() {
            io::ErrorKind::NotFound => {
                FetchError::NoProgram { program: self.name, package: self.package }
            }
            _ => FetchError::NotStarted { program: self.name, source },
        }
    }

    /// Whether all are there, before anything is downloaded.
    pub fn check_all() -> Result<(), FetchError> {
        for program in Self::ALL {
            program.run(program.command().arg("--version"))?;
        }
        Ok(())
    }
}
