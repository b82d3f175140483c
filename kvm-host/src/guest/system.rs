//! Modules, file systems and the loopback interface, as a command expects them.

use std::{
    fs::{self, File, Permissions},
    io, mem,
    os::{
        fd::AsRawFd,
        unix::fs::{PermissionsExt, symlink},
    },
};

use anyhow::Context;
use rustix::{
    mount::{MountFlags, mount, mount_bind, mount_move},
    net::{AddressFamily, SocketType, socket},
    process::{chdir, chroot},
    system::finit_module,
};

use super::sharing::OUTSIDE;

/// Loads the modules of the initramfs, which are numbered in the order of loading.
pub fn load_modules() -> anyhow::Result<()> {
    let entries = fs::read_dir("/modules")?.map(|entry| Ok(entry?.path()));
    let mut paths = entries.collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        finit_module(File::open(&path)?, c"", 0)
            .with_context(|| format!("cannot load {}", path.display()))?;
    }
    Ok(())
}

/// Makes the file system of the machine outside the root, and covers what must be the emulated host's own.
pub fn mount_file_systems() -> anyhow::Result<()> {
    // Larger messages than 500 KiB are not possible. Caching more than mmap does would hide
    // changes made to files outside.
    let options = c"trans=virtio,version=9p2000.L,msize=512000,cache=mmap";
    mount("root", "/root", "9p", MountFlags::empty(), options)
        .context("cannot mount the file system of the machine outside")?;
    chdir("/root")?;
    mount_move(".", "/")?;
    chroot(".")?;

    cover("proc", "/proc")?;
    cover("sysfs", "/sys")?;
    cover("tmpfs", "/run")?;
    fs::create_dir(OUTSIDE)?;
    mount_bind("/", OUTSIDE)?;
    cover("tmpfs", "/tmp")?;
    make_devices()?;
    for directory in ["/tmp", "/dev/shm"] {
        fs::set_permissions(directory, Permissions::from_mode(0o1777))?;
    }
    Ok(())
}

fn make_devices() -> anyhow::Result<()> {
    cover("devtmpfs", "/dev")?;
    for directory in ["/dev/pts", "/dev/shm"] {
        fs::create_dir(directory)?;
    }
    mount("devpts", "/dev/pts", "devpts", MountFlags::empty(), c"ptmxmode=666")?;
    cover("tmpfs", "/dev/shm")?;
    fs::remove_file("/dev/ptmx")?;
    for (target, link) in [
        ("pts/ptmx", "/dev/ptmx"),
        ("/proc/self/fd", "/dev/fd"),
        ("fd/0", "/dev/stdin"),
        ("fd/1", "/dev/stdout"),
        ("fd/2", "/dev/stderr"),
    ] {
        symlink(target, link)?;
    }
    Ok(())
}

fn cover(kind: &str, target: &str) -> anyhow::Result<()> {
    mount(kind, target, kind, MountFlags::empty(), None)
        .with_context(|| format!("cannot mount {kind} on {target}"))
}

/// Brings the interface `lo` up: netdevice(7).
pub fn enable_loopback() -> io::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: ifreq is plain data, for which zeros are a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (place, letter) in request.ifr_name.iter_mut().zip(*b"lo") {
        *place = letter as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the socket is open, and the kernel reads the request, a live local of its type.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
