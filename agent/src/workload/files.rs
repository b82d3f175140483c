//! The file systems of a workload.

use std::{
    ffi::{CStr, CString, OsStr},
    fs,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use agent_protocol::{Share, Workload};
use anyhow::Context;
use rustix::{
    mount::{MountFlags, mount, mount_move},
    process::{chdir, chroot},
    system::sethostname,
};

/// The host's files as they are.
const LOWER: &str = "/lower";
/// What the guest changes.
const CHANGES: &str = "/changes";
/// Both together.
const MERGED: &str = "/merged";

/// Mounts what a workload is to see, and makes it the root directory.
pub fn mount_all(workload: &Workload) -> anyhow::Result<()> {
    if let Some(tag) = &workload.root_tag {
        mount_root(tag)?;
        crate::mount_kernel_file_systems()?;
    }
    for (kind, target, options) in [
        ("devpts", "/dev/pts", c"mode=620,gid=5,ptmxmode=666"),
        ("tmpfs", "/dev/shm", c"mode=1777"),
        ("tmpfs", "/run", c"mode=755"),
    ] {
        let flags = MountFlags::NOSUID;
        mount_at(kind, kind, Path::new(target), flags, Some(options))?;
    }
    for Share { tag, path, read_only } in &workload.shares {
        let flags = if *read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        mount_at("virtiofs", tag, Path::new(OsStr::from_bytes(path)), flags, None)?;
    }
    sethostname(workload.host_name.as_bytes()).context("cannot set the host name")?;
    Ok(())
}

/// The host's files, with a layer in memory over them, as the root directory.
fn mount_root(tag: &str) -> anyhow::Result<()> {
    mount_at("virtiofs", tag, Path::new(LOWER), MountFlags::RDONLY, None)?;
    mount_at("tmpfs", "changes", Path::new(CHANGES), MountFlags::empty(), None)?;
    let (upper, work) = (format!("{CHANGES}/upper"), format!("{CHANGES}/work"));
    for directory in [&upper, &work] {
        fs::create_dir(directory).with_context(|| format!("cannot make {directory}"))?;
    }
    let options = CString::new(format!("lowerdir={LOWER},upperdir={upper},workdir={work}"))?;
    mount_at("overlay", "root", Path::new(MERGED), MountFlags::empty(), Some(&options))?;
    // As switch_root(8) does: an initramfs cannot be left by pivot_root(2).
    chdir(MERGED).context("cannot enter the root directory")?;
    mount_move(MERGED, "/").context("cannot move the root directory")?;
    chroot(".").context("cannot change the root directory")?;
    chdir("/").context("cannot enter the new root directory")
}

/// Mounts a file system at a directory, which is made if it is missing.
fn mount_at(
    kind: &str,
    source: &str,
    target: &Path,
    flags: MountFlags,
    options: Option<&CStr>,
) -> anyhow::Result<()> {
    fs::create_dir_all(target)
        .with_context(|| format!("cannot make the directory {}", target.display()))?;
    mount(source, target, kind, flags, options)
        .with_context(|| format!("cannot mount {kind} {source} on {}", target.display()))
}
