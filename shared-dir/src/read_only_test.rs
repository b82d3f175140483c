//! A read-only share is not changed, whatever a guest sends.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::server::Mode;
use crate::test_guest::Guest;
use crate::wire::*;

#[test]
fn every_change_is_erofs() {
    let guest = Guest::new(Mode::ReadOnly, &["file", "directory/", "directory/below"]);
    let before = state(&guest);
    let file = guest.find("file").unwrap().nodeid;
    let fh = guest.open(file, libc::O_RDONLY).unwrap();
    let none = [0_u8; 0];
    let mknod = MknodIn { mode: libc::S_IFREG | 0o644, ..MknodIn::default() };
    let write = WriteIn { fh, size: 1, ..WriteIn::default() };
    let set =
        |valid: Valid| guest.set(file, valid, SetAttrIn { fh, ..SetAttrIn::default() }).map(drop);
    let fallocate = FallocateIn { fh, length: 9, ..FallocateIn::default() };
    let copy =
        CopyFileRangeIn { fh_in: fh, fh_out: fh, off_out: 9, len: 1, ..CopyFileRangeIn::default() };
    let xattr = SetXattrIn { size: 1, flags: 0 };
    let asked = |opcode, reply: Result<Vec<u8>, Errno>| (opcode, reply.map(drop));
    let mut replies = vec![
        asked("mkdir", guest.ask(Opcode::Mkdir, ROOT, MkdirIn::default(), &["new"])),
        asked("mknod", guest.ask(Opcode::Mknod, ROOT, mknod, &["new"])),
        asked("symlink", guest.ask(Opcode::Symlink, ROOT, none, &["new", "file"])),
        asked("link", guest.ask(Opcode::Link, ROOT, LinkIn { oldnodeid: file }, &["new"])),
        asked("unlink", guest.ask(Opcode::Unlink, ROOT, none, &["file"])),
        asked("rmdir", guest.ask(Opcode::Rmdir, ROOT, none, &["directory"])),
        asked(
            "rename",
            guest.ask(Opcode::Rename, ROOT, RenameIn { newdir: ROOT }, &["file", "new"]),
        ),
        ("rename2", guest.rename((ROOT, "file"), (ROOT, "new"), 0)),
        ("create", guest.create(ROOT, "new", libc::O_RDONLY, 0o644).map(drop)),
        ("create existing", guest.create(ROOT, "file", libc::O_RDWR, 0o644).map(drop)),
        asked("write", guest.call(Opcode::Write, file, &[write.as_bytes(), b"x"].concat())),
        asked("fallocate", guest.ask(Opcode::Fallocate, file, fallocate, &[])),
        asked("copy_file_range", guest.ask(Opcode::CopyFileRange, file, copy, &[])),
        asked("setxattr", guest.ask(Opcode::SetXattr, file, xattr, &["user.x", ""])),
        asked("removexattr", guest.ask(Opcode::RemoveXattr, file, none, &["user.x"])),
        ("chmod", set(Valid::MODE)),
        ("chown", set(Valid::UID | Valid::GID)),
        ("truncate", set(Valid::SIZE)),
        ("ftruncate", set(Valid::SIZE | Valid::FH)),
        ("utimes", set(Valid::MTIME | Valid::MTIME_NOW)),
        ("no change", set(Valid::empty())),
    ];
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_TRUNC, libc::O_ACCMODE] {
        replies.push(("open", guest.open(file, flags).map(drop)));
    }
    for (name, reply) in replies {
        assert_eq!(reply, Err(Errno::ROFS), "{name}");
    }
    assert_eq!(state(&guest), before);
}

#[test]
fn what_changes_nothing_works() {
    let guest = Guest::new(Mode::ReadOnly, &["file", "directory/"]);
    let file = guest.find("file").unwrap().nodeid;
    let fh = guest.open(file, libc::O_RDONLY | libc::O_APPEND | libc::O_NOATIME).unwrap();
    assert_eq!(guest.read(fh, 1, 100).unwrap(), b"ile");
    guest.ask(Opcode::Fsync, file, FsyncIn { fh, ..FsyncIn::default() }, &[]).unwrap();
    guest.close(fh).unwrap();
    guest.call(Opcode::Statfs, ROOT, &[]).unwrap();
    let listing = guest.list(ROOT, 4096, false).unwrap();
    let names: Vec<_> = listing.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, [".", "..", "directory", "file"]);
}

/// Everything about the share that a guest could change.
fn state(guest: &Guest) -> Vec<String> {
    ["", "file", "directory", "directory/below"]
        .map(|name| {
            let path = guest.path(name);
            let status = fs::symlink_metadata(&path).unwrap();
            let content = match status.is_dir() {
                true => format!("{:?}", fs::read_dir(&path).unwrap().count()).into_bytes(),
                false => fs::read(&path).unwrap(),
            };
            let (mtime, ctime) = (status.mtime_nsec(), status.ctime_nsec());
            let (mode, links) = (status.mode(), status.nlink());
            format!("{name} {mode:o} {links} {mtime} {ctime} {content:?}")
        })
        .into()
}
