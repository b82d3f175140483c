//! The kernels of Debian's in a user's cache.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use tempfile::TempDir;

use crate::apt::Apt;
use crate::packages::{at, unpack};
use crate::program::Program;
use crate::{Architecture, DebianKernel, FetchError, Say};

/// A directory with a link for each kernel, by its name, to where that is unpacked. A kernel is a directory:
/// bzImage, config, release and modules/lib/modules/RELEASE.
#[derive(Debug)]
pub struct KernelCache {
    directory: PathBuf,
    architecture: Architecture,
}

impl KernelCache {
    /// Where packages are unpacked, and worked on.
    const UNPACKED: &str = "unpacked";

    /// The user's: moat/kernels in XDG_CACHE_HOME, or in ~/.cache (XDG Base Directory Specification).
    pub fn of_user() -> Result<Self, FetchError> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|it| it.is_absolute());
        let cache = absolute("XDG_CACHE_HOME")
            .or_else(|| Some(absolute("HOME")?.join(".cache")))
            .ok_or(FetchError::NoCache)?;
        Ok(Self { directory: cache.join("moat/kernels"), architecture: Architecture::Amd64 })
    }

    /// The directory of a kernel, and its release, if it has been fetched.
    pub fn get(&self, kernel: &DebianKernel) -> Option<(PathBuf, String)> {
        let directory = self.directory.join(kernel.name);
        let release = fs::read_to_string(directory.join("release")).ok()?;
        Some((directory, release.trim_end().to_owned()))
    }

    /// The directory of a kernel, which is fetched if it is not there.
    pub fn path(
        &self,
        kernel: &DebianKernel,
        mirror: Option<&str>,
        say: Say<'_>,
    ) -> Result<PathBuf, FetchError> {
        if let Some((directory, _)) = self.get(kernel) {
            return Ok(directory);
        }
        let _lock = self.lock(say)?;
        // Another process may have fetched it meanwhile.
        match self.get(kernel) {
            Some((directory, _)) => Ok(directory),
            None => self.fetch_locked(kernel, mirror, say),
        }
    }

    /// Gets the newest version of a kernel.
    pub fn fetch(
        &self,
        kernel: &DebianKernel,
        mirror: Option<&str>,
        say: Say<'_>,
    ) -> Result<PathBuf, FetchError> {
        let _lock = self.lock(say)?;
        self.fetch_locked(kernel, mirror, say)
    }

    /// Does it while the caller holds the lock.
    fn fetch_locked(
        &self,
        kernel: &DebianKernel,
        mirror: Option<&str>,
        say: Say<'_>,
    ) -> Result<PathBuf, FetchError> {
        let name = kernel.name;
        Program::check_all()?;
        let unpacked = self.directory.join(Self::UNPACKED);
        fs::create_dir_all(&unpacked).map_err(at(&unpacked))?;
        self.remove_unused(&unpacked)?;
        let work = TempDir::new_in(&unpacked).map_err(at(&unpacked))?;
        say(&format!("looking for the newest {name}"));
        let apt_directory = make_directory(work.path(), "apt")?;
        let apt = Apt::update(&apt_directory, kernel, self.architecture, mirror)?;
        let packages = apt.image_packages(&kernel.meta_package(self.architecture))?;
        let image = &packages[0];
        let finished = unpacked.join(format!("{}_{}", image.name, image.version));
        if !finished.exists() {
            say(&format!("downloading {} {}", image.name, image.version));
            let downloads = make_directory(work.path(), "downloads")?;
            apt.download(&packages, &downloads)?;
            say(&format!("unpacking {}", image.name));
            let new = work.path().join("kernel");
            unpack(&downloads, &new)?;
            fs::rename(&new, &finished).map_err(at(&finished))?;
        }
        self.point(kernel, &finished)?;
        let (directory, release) = self
            .get(kernel)
            .ok_or(FetchError::UnknownLayout { package: image.name.clone(), missing: "release" })?;
        say(&format!("{name} is Linux {release}, in {}", directory.display()));
        Ok(directory)
    }

    /// Makes a kernel's name a link to where it is, at once.
    fn point(&self, kernel: &DebianKernel, finished: &Path) -> Result<(), FetchError> {
        let new = self.directory.join(format!(".{}.new", kernel.name));
        let target = Path::new(Self::UNPACKED).join(finished.file_name().unwrap_or_default());
        // It is there if another run was killed.
        let _ = fs::remove_file(&new);
        symlink(target, &new).map_err(at(&new))?;
        let link = self.directory.join(kernel.name);
        fs::rename(&new, &link).map_err(at(&link))
    }

    /// Removes what a fetch that was killed has left, and kernels that were the newest before the last fetch:
    /// until now guests might have been running from them.
    fn remove_unused(&self, unpacked: &Path) -> Result<(), FetchError> {
        let used: Vec<_> = DebianKernel::ALL
            .iter()
            .filter_map(|kernel| fs::canonicalize(self.directory.join(kernel.name)).ok())
            .collect();
        let unpacked = fs::canonicalize(unpacked).map_err(at(unpacked))?;
        let entries = fs::read_dir(&unpacked).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        for entry in entries.map_err(at(&unpacked))? {
            let path = entry.path();
            if !used.contains(&path) {
                fs::remove_dir_all(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }

    /// Waits until no other process fetches into this cache, and keeps others from it until this process, and
    /// what it has started meanwhile, closes the file.
    fn lock(&self, say: Say<'_>) -> Result<File, FetchError> {
        fs::create_dir_all(&self.directory).map_err(at(&self.directory))?;
        let path = self.directory.join("lock");
        let open = || -> io::Result<File> {
            let file = File::options().create(true).append(true).open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => {
                    say("waiting for another process that fetches a kernel");
                    flock(&file, FlockOperation::LockExclusive)?;
                }
                result => result?,
            }
            // If this process is killed its apt-get goes on for a while.
            fcntl_setfd(&file, FdFlags::empty())?;
            Ok(file)
        };
        open().map_err(at(&path))
    }
}

fn make_directory(parent: &Path, name: &str) -> Result<PathBuf, FetchError> {
    let path = parent.join(name);
    fs::create_dir(&path).map_err(at(&path))?;
    Ok(path)
}
