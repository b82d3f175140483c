//! Unix sockets that this process serves, each at a path in the file system while it is served.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen};
use thiserror::Error;

/// Why a socket cannot be served.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Something else is there.
    #[error("{} exists and is no socket; give another path", .0.display())]
    NotASocket(PathBuf),
    /// Another process serves it.
    #[error("{} is served by another process; give another path", .0.display())]
    InUse(PathBuf),
    /// It is unknown whether another process serves it.
    #[error(
        "cannot connect to the socket {} ({source}), so another process may be using it; give another path",
        path.display()
    )]
    Unknown {
        /// The path.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// It cannot be created.
    #[error("cannot serve a socket at {}: {source}", path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
}

/// The path of a socket that this process serves. It is removed when this is dropped, unless another
/// process has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// How many clients may wait to be served.
    const BACKLOG: i32 = 16;

    /// Serves a socket at `path`, for this user only. A socket that an ended process has left there is
    /// replaced.
    pub fn serve(path: &Path) -> Result<(UnixListener, Self), SocketError> {
        let bind_error = |source| SocketError::Bind { path: path.into(), source };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        // Two processes that replace the same socket would remove each other's. Where the directory cannot
        // be opened, it is not locked.
        let _lock = File::open(directory.unwrap_or(Path::new(".")))
            .inspect(|directory| drop(directory.lock()));
        remove_dead(path)?;
        let address = SocketAddrUnix::new(path).map_err(|error| bind_error(error.into()))?;
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        );
        let socket = socket.map_err(|error| bind_error(error.into()))?;
        bind(&socket, &address).map_err(|error| bind_error(error.into()))?;
        let metadata = fs::symlink_metadata(path).map_err(bind_error)?;
        let file = Self { path: path.into(), device: metadata.dev(), inode: metadata.ino() };
        // Before a client can connect.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(bind_error)?;
        listen(&socket, Self::BACKLOG).map_err(|error| bind_error(error.into()))?;
        Ok((UnixListener::from(socket), file))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours =
            |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode);
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that no process serves any more, and nothing else.
fn remove_dead(path: &Path) -> Result<(), SocketError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.into()));
    }
    match try_to_connect(path) {
        Err(Errno::CONNREFUSED) => {
            fs::remove_file(path).map_err(|source| SocketError::Bind { path: path.into(), source })
        }
        // EAGAIN: the server's backlog is full.
        Ok(()) | Err(Errno::AGAIN) => Err(SocketError::InUse(path.into())),
        Err(error) => Err(SocketError::Unknown { path: path.into(), source: error.into() }),
    }
}

fn try_to_connect(path: &Path) -> Result<(), Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &address)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::net::{UnixDatagram, UnixStream};

    use tempfile::TempDir;

    fn socket() -> (TempDir, PathBuf) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("socket");
        (directory, path)
    }

    #[test]
    fn a_socket_is_for_this_user_only_and_is_removed_with_its_server() {
        let (_directory, path) = socket();
        let (listener, file) = SocketFile::serve(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop((listener, file));
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_without_a_server_is_replaced_and_other_files_are_left_alone() {
        let (directory, path) = socket();
        drop(UnixListener::bind(&path).unwrap());
        let (_listener, _file) = SocketFile::serve(&path).unwrap();
        assert!(matches!(SocketFile::serve(&path), Err(SocketError::InUse(_))));

        let datagrams = directory.path().join("datagrams");
        let _datagram = UnixDatagram::bind(&datagrams).unwrap();
        assert!(matches!(SocketFile::serve(&datagrams), Err(SocketError::Unknown { .. })));
        let file = directory.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(matches!(SocketFile::serve(&file), Err(SocketError::NotASocket(_))));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(matches!(SocketFile::serve(&link), Err(SocketError::NotASocket(_))));
        assert!(datagrams.exists() && file.exists() && link.exists());
        let nowhere = directory.path().join("missing/socket");
        assert!(matches!(SocketFile::serve(&nowhere), Err(SocketError::Bind { .. })));
        let long = directory.path().join("x".repeat(200));
        assert!(matches!(SocketFile::serve(&long), Err(SocketError::Bind { .. })));
    }

    #[test]
    fn a_socket_whose_backlog_is_full_is_in_use() {
        let (_directory, path) = socket();
        let (_listener, _file) = SocketFile::serve(&path).unwrap();
        let clients: Vec<_> = std::iter::from_fn(|| match try_to_connect(&path) {
            Ok(()) => Some(()),
            Err(error) => {
                assert_eq!(error, Errno::AGAIN);
                None
            }
        })
        .collect();
        assert!(!clients.is_empty());
        assert!(matches!(SocketFile::serve(&path), Err(SocketError::InUse(_))));
    }

    #[test]
    fn a_socket_that_another_server_has_created_is_not_removed() {
        let (_directory, path) = socket();
        let (listener, file) = SocketFile::serve(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let (_other, _other_file) = SocketFile::serve(&path).unwrap();
        drop((listener, file));
        UnixStream::connect(&path).unwrap();
    }
}
