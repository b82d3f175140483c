//! What this machine has below /tmp, /run and /dev/shm, where the emulated host has file systems of its own.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use rustix::mount::mount_bind;

/// Where the root of the machine outside can be reached with nothing mounted over it.
pub const OUTSIDE: &str = "/run/host";

fn outside(path: &Path) -> PathBuf {
    let mut outside = OUTSIDE.as_bytes().to_vec();
    outside.extend(path.as_os_str().as_bytes());
    OsStr::from_bytes(&outside).into()
}

/// Makes a file or directory of the machine outside appear where it is there, unless it does already, as
/// part of a directory that was shared before.
pub fn share(path: &OsStr) -> anyhow::Result<()> {
    let path = Path::new(path);
    let outside = outside(path);
    // A link's target may be hidden and shared on its own, and a file may have gone meanwhile.
    let Ok(original) = fs::metadata(&outside) else { return Ok(()) };
    let identity = |file: &fs::Metadata| (file.dev(), file.ino());
    if fs::metadata(path).is_ok_and(|here| identity(&here) == identity(&original)) {
        return Ok(());
    }
    let mount = || -> io::Result<()> {
        if original.is_dir() {
            fs::create_dir_all(path)?;
        } else {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            File::options().append(true).create(true).open(path)?;
        }
        Ok(mount_bind(&outside, path)?)
    };
    mount().with_context(|| format!("cannot share {}", path.display()))
}

/// Copies a file or directory to the machine outside, unless it has one there.
pub fn copy_out(path: &OsStr) -> anyhow::Result<()> {
    let path = Path::new(path);
    let outside = outside(path);
    if (path.is_file() || path.is_dir()) && !outside.exists() {
        let status = Command::new("cp").arg("-R").args([path, &outside]).status()?;
        ensure!(status.success(), "cannot copy {} to the machine outside", path.display());
    }
    Ok(())
}
