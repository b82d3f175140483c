//! Attempts to leave the shared directory, and to reach what must not be opened.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode as FileMode, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::descriptors::Descriptors;
use crate::server::{Mode, SharedDirectory};
use crate::test_guest::Guest;
use crate::wire::*;

fn guest() -> Guest {
    let guest = Guest::new(Mode::ReadWrite, &["file", "directory/", "directory/inner/"]);
    std::fs::write(guest.outside().join("secret"), "secret").unwrap();
    guest
}

/// Names that are no single name below a directory.
const BAD_NAMES: [&str; 8] = ["", ".", "..", "/", "/etc", "a/b", "../secret", "directory/.."];

#[test]
fn a_name_that_leads_elsewhere_is_refused_in_every_message() {
    let guest = guest();
    let directory = guest.find("directory").unwrap().nodeid;
    for bad in BAD_NAMES {
        let none = [0_u8; 0];
        let (mkdir, mknod) =
            (MkdirIn::default(), MknodIn { mode: libc::S_IFREG, ..MknodIn::default() });
        let (link, rename) = (LinkIn { oldnodeid: directory }, RenameIn { newdir: directory });
        let replies = [
            guest.ask(Opcode::Lookup, directory, none, &[bad]),
            guest.ask(Opcode::Mkdir, directory, mkdir, &[bad]),
            guest.ask(Opcode::Mknod, directory, mknod, &[bad]),
            guest.ask(Opcode::Create, directory, CreateIn::default(), &[bad]),
            guest.ask(Opcode::Symlink, directory, none, &[bad, "target"]),
            guest.ask(Opcode::Link, directory, link, &[bad]),
            guest.ask(Opcode::Unlink, directory, none, &[bad]),
            guest.ask(Opcode::Rmdir, directory, none, &[bad]),
            guest.ask(Opcode::Rename, directory, rename, &[bad, "new"]),
            guest.ask(Opcode::Rename, directory, rename, &["inner", bad]),
            guest.ask(Opcode::Rename2, directory, Rename2In::default(), &[bad, "new"]),
        ];
        for (index, reply) in replies.into_iter().enumerate() {
            assert_eq!(reply.unwrap_err(), Errno::INVAL, "{bad:?} in message {index}");
        }
    }
    assert_eq!(guest.lookup(ROOT, &"x".repeat(256)).unwrap_err(), Errno::NAMETOOLONG);
    assert_eq!(guest.lookup(ROOT, &"x".repeat(255)).unwrap_err(), Errno::NOENT);
    assert_eq!(std::fs::read(guest.outside().join("secret")).unwrap(), b"secret");
}

#[test]
fn a_name_without_an_end_is_refused() {
    let guest = guest();
    assert_eq!(guest.call(Opcode::Lookup, ROOT, b"file").unwrap_err(), Errno::INVAL);
    // What follows the end is not part of it.
    guest.call(Opcode::Lookup, ROOT, b"file\0/../../etc\0").unwrap();
}

#[test]
fn symbolic_links_are_shown_and_not_followed() {
    let guest = guest();
    symlink("/", guest.path("root")).unwrap();
    symlink("../secret", guest.path("up")).unwrap();
    symlink("/proc/self/root", guest.path("magic")).unwrap();
    for (name, target) in [("root", "/"), ("up", "../secret"), ("magic", "/proc/self/root")] {
        let link = guest.find(name).unwrap();
        assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
        let read = guest.call(Opcode::ReadLink, link.nodeid, &[]).unwrap();
        assert_eq!(read, target.as_bytes());
        assert_eq!(guest.lookup(link.nodeid, "etc").unwrap_err(), Errno::NOTDIR);
        assert_eq!(guest.open(link.nodeid, libc::O_RDONLY).unwrap_err(), Errno::LOOP);
        assert_eq!(guest.open_directory(link.nodeid).unwrap_err(), Errno::LOOP);
        let truncated = guest.set(link.nodeid, Valid::SIZE, SetAttrIn::default());
        assert_eq!(truncated.unwrap_err(), Errno::LOOP);
        let mkdir = guest.mkdir(link.nodeid, "new");
        assert_eq!(mkdir.unwrap_err(), Errno::NOTDIR);
    }
    assert_eq!(std::fs::read(guest.outside().join("secret")).unwrap(), b"secret");
}

#[test]
fn attributes_of_a_symbolic_link_are_not_those_of_its_target() {
    let guest = guest();
    let secret = guest.outside().join("secret");
    symlink("../secret", guest.path("up")).unwrap();
    let link = guest.find("up").unwrap().nodeid;
    let before = std::fs::metadata(&secret).unwrap();
    let valid = Valid::MTIME | Valid::ATIME;
    let attr = guest.set(link, valid, SetAttrIn { mtime: 5, atime: 6, ..SetAttrIn::default() });
    assert_eq!(attr.unwrap().mtime, 5);
    let _ = guest.set(link, Valid::MODE, SetAttrIn { mode: 0o777, ..SetAttrIn::default() });
    let after = std::fs::metadata(&secret).unwrap();
    assert_eq!(before.modified().unwrap(), after.modified().unwrap());
    assert_eq!(before.permissions(), after.permissions());
    // A second name for the link is a link.
    guest.ask(Opcode::Link, ROOT, LinkIn { oldnodeid: link }, &["again"]).unwrap();
    assert!(guest.path("again").symlink_metadata().unwrap().is_symlink());
}

#[test]
fn creating_over_a_symbolic_link_does_not_follow_it() {
    let guest = guest();
    symlink("../new", guest.path("dangling")).unwrap();
    let flags = libc::O_WRONLY | libc::O_TRUNC;
    assert_eq!(guest.create(ROOT, "dangling", flags, 0o644).unwrap_err(), Errno::LOOP);
    symlink("../secret", guest.path("up")).unwrap();
    assert_eq!(guest.create(ROOT, "up", flags, 0o644).unwrap_err(), Errno::LOOP);
    assert!(!guest.outside().join("new").exists());
    assert_eq!(std::fs::read(guest.outside().join("secret")).unwrap(), b"secret");
}

#[test]
fn a_directory_that_is_moved_out_has_no_way_up() {
    let guest = guest();
    let inner = guest.find("directory/inner").unwrap().nodeid;
    std::fs::rename(guest.path("directory"), guest.outside().join("moved")).unwrap();
    assert_eq!(guest.lookup(inner, "..").unwrap_err(), Errno::INVAL);
    // It is still the guest's, as a process's on the host.
    guest.attributes(inner).unwrap();
    assert!(guest.list(inner, 4096, true).unwrap().iter().all(|(_, _, node)| *node == 0));
    assert_eq!(guest.find("directory").unwrap_err(), Errno::NOENT);
}

#[test]
fn without_descriptors_a_directory_that_is_moved_out_is_gone() {
    let files = ["directory/", "directory/inner/"];
    let guest = Guest::with_descriptors(Mode::ReadWrite, &files, Descriptors::at_most(0));
    let inner = guest.find("directory/inner").unwrap().nodeid;
    std::fs::create_dir(guest.outside().join("other")).unwrap();
    std::fs::create_dir(guest.outside().join("other/inner")).unwrap();
    std::fs::rename(guest.path("directory"), guest.outside().join("moved")).unwrap();
    assert_eq!(guest.attributes(inner).unwrap_err(), Errno::STALE);
    // Another one of the same name, or a link that leads to where it is, does not do.
    std::fs::rename(guest.outside().join("other"), guest.path("directory")).unwrap();
    assert_eq!(guest.attributes(inner).unwrap_err(), Errno::STALE);
    std::fs::remove_dir_all(guest.path("directory")).unwrap();
    symlink("../moved", guest.path("directory")).unwrap();
    assert_eq!(guest.attributes(inner).unwrap_err(), Errno::STALE);
}

/// A directory and a link out of the share change places all the time.
#[test]
fn a_race_with_the_host_leads_nowhere_else() {
    for most in [0, 1000] {
        let files = ["directory/", "directory/below"];
        let guest = Guest::with_descriptors(Mode::ReadWrite, &files, Descriptors::at_most(most));
        let outside = guest.outside().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("below"), "secret").unwrap();
        symlink("../outside", guest.path("link")).unwrap();
        let (directory, link) = (guest.path("directory"), guest.path("link"));
        std::thread::scope(|scope| {
            let exchanging = scope.spawn(|| {
                for _ in 0..20_000 {
                    let (old, new) = (&directory, &link);
                    renameat_with(CWD, old, CWD, new, RenameFlags::EXCHANGE).unwrap();
                }
            });
            while !exchanging.is_finished() {
                let Ok(below) = guest.find("directory/below") else { continue };
                let Ok(fh) = guest.open(below.nodeid, libc::O_RDWR) else { continue };
                assert_eq!(guest.read(fh, 0, 99).unwrap(), b"directory/below");
                guest.close(fh).unwrap();
            }
        });
        assert_eq!(std::fs::read(outside.join("below")).unwrap(), b"secret");
    }
}

#[test]
fn device_nodes_fifos_and_sockets_are_shown_and_never_opened() {
    let guest = guest();
    rustix::fs::mkfifoat(CWD, guest.path("fifo"), FileMode::RWXU).unwrap();
    let _listener = UnixListener::bind(guest.path("socket")).unwrap();
    let mut names = vec![("fifo", libc::S_IFIFO), ("socket", libc::S_IFSOCK)];
    let device = rustix::fs::makedev(1, 7);
    let path = guest.path("device");
    let made = rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, FileMode::RWXU, device);
    if made.is_ok() {
        names.push(("device", libc::S_IFCHR));
        assert_eq!(guest.find("device").unwrap().attr.rdev, 1 << 8 | 7);
    }
    for (name, file_type) in names {
        let node = guest.find(name).unwrap();
        assert_eq!(node.attr.mode & libc::S_IFMT, file_type);
        for flags in [libc::O_RDONLY, libc::O_RDWR | libc::O_TRUNC] {
            // This would wait for ever for a writer of the FIFO.
            assert_eq!(guest.open(node.nodeid, flags).unwrap_err(), Errno::NXIO);
        }
        assert_eq!(guest.open_directory(node.nodeid).unwrap_err(), Errno::NOTDIR);
        let truncated = guest.set(node.nodeid, Valid::SIZE, SetAttrIn::default());
        assert_eq!(truncated.unwrap_err(), Errno::NXIO);
        let existing = guest.create(ROOT, name, libc::O_RDONLY, 0o644);
        assert_eq!(existing.unwrap_err(), Errno::NXIO);
    }
}

#[test]
fn a_guest_makes_no_device_nodes() {
    let guest = guest();
    for file_type in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFLNK, libc::S_IFDIR, 0] {
        let mknod = MknodIn { mode: file_type | 0o666, rdev: 1 << 8 | 3, ..MknodIn::default() };
        let reply = guest.ask(Opcode::Mknod, ROOT, mknod, &["node"]);
        assert_eq!(reply.unwrap_err(), Errno::PERM);
    }
    // RENAME_WHITEOUT.
    assert_eq!(guest.rename((ROOT, "file"), (ROOT, "new"), 4).unwrap_err(), Errno::INVAL);
}

#[test]
fn interfaces_of_the_hosts_kernel_are_empty_directories() {
    let descriptors = Descriptors::at_most(100);
    let host = SharedDirectory::open(Path::new("/"), Mode::ReadWrite, descriptors).unwrap();
    let guest = Guest { server: host, ..guest() };
    let init = InitIn { major: 7, minor: 38, ..InitIn::default() };
    guest.ask(Opcode::Init, 0, init, &[]).unwrap();
    for name in ["proc", "sys"] {
        let node = guest.find(name).unwrap().nodeid;
        assert_eq!(guest.attributes(node).unwrap().mode & libc::S_IFMT, libc::S_IFDIR);
        assert_eq!(guest.list(node, 4096, true).unwrap(), []);
        for below in ["self", "kernel", "1", "none"] {
            assert_eq!(guest.lookup(node, below).unwrap_err(), Errno::NOENT);
        }
        assert_eq!(guest.mkdir(node, "new").unwrap_err(), Errno::ACCESS);
        assert_eq!(guest.create(node, "new", libc::O_RDWR, 0o600).unwrap_err(), Errno::ACCESS);
        let chmod = guest.set(node, Valid::MODE, SetAttrIn { mode: 0o700, ..SetAttrIn::default() });
        assert_eq!(chmod.unwrap_err(), Errno::ACCESS);
    }
}

#[test]
fn files_of_two_file_systems_have_different_numbers() {
    let descriptors = Descriptors::at_most(100);
    let host = SharedDirectory::open(Path::new("/"), Mode::ReadOnly, descriptors).unwrap();
    assert_eq!(host.inodes.number(1, 5), 1 << 48 ^ 5);
    assert_eq!(host.inodes.number(2, 5), 2 << 48 ^ 5);
    assert_eq!(host.inodes.number(1, 5), 1 << 48 ^ 5);
}
