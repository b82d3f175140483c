//! The ports of a virtio console.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use agent_protocol::port;
use anyhow::Context;
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with,
};

/// Where Linux lists ports (drivers/char/virtio_console.c).
const PORTS: &str = "/sys/class/virtio-ports";

/// The streams between a workload and the host.
pub struct Console {
    pub control: File,
    pub stdin: File,
    pub stdout: File,
    pub stderr: File,
}

impl Console {
    /// Opens the ports, after waiting for them to appear: a driver finds its devices, and learns of their
    /// ports, some time after it is loaded.
    pub fn open(uevents: Uevents) -> anyhow::Result<Self> {
        let open = |name| {
            let path = uevents.wait_for(|| find(name)).context("cannot wait for ports")?;
            let file = File::options().read(true).write(true).open(&path);
            file.with_context(|| format!("cannot open port {name}, {}", path.display()))
        };
        Ok(Self {
            control: open(port::CONTROL)?,
            stdin: open(port::STDIN)?,
            stdout: open(port::STDOUT)?,
            stderr: open(port::STDERR)?,
        })
    }
}

/// The device of a port that has this name, once it has.
fn find(name: &str) -> Option<PathBuf> {
    let ports = fs::read_dir(PORTS).ok()?;
    let has_name = |path: &Path| {
        fs::read_to_string(path.join("name")).is_ok_and(|found| found.trim_end() == name)
    };
    let path = ports.filter_map(|port| Some(port.ok()?.path())).find(|path| has_name(path))?;
    Some(Path::new("/dev").join(path.file_name()?))
}

/// The kernel's messages about devices that appear or change.
pub struct Uevents(OwnedFd);

impl Uevents {
    /// Those from now on.
    pub fn listen() -> anyhow::Result<Self> {
        let open = || {
            let socket = socket_with(
                AddressFamily::NETLINK,
                SocketType::DGRAM,
                SocketFlags::CLOEXEC,
                Some(netlink::KOBJECT_UEVENT),
            )?;
            // The kernel's own events are group 1.
            bind(&socket, &netlink::SocketAddrNetlink::new(0, 1))?;
            Ok::<_, rustix::io::Errno>(Self(socket))
        };
        open().context("cannot listen to the kernel's uevents")
    }

    /// Calls `find` at every event until it finds something.
    fn wait_for<T>(&self, find: impl Fn() -> Option<T>) -> io::Result<T> {
        loop {
            if let Some(found) = find() {
                return Ok(found);
            }
            match recv(&self.0, &mut [0; 4096], RecvFlags::empty()) {
                // Some events were lost, so what they were about is there by now.
                Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::NOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
