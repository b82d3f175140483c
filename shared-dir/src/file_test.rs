//! What is in files, and whose they are.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::descriptors::Descriptors;
use crate::server::Mode;
use crate::test_guest::{Guest, number, parse};
use crate::wire::*;

fn guest() -> Guest {
    Guest::new(Mode::ReadWrite, &["file", "directory/"])
}

/// The file `file`, open for reading and writing.
fn open(guest: &Guest) -> (u64, u64) {
    let file = guest.find("file").unwrap().nodeid;
    (file, guest.open(file, libc::O_RDWR).unwrap())
}

/// Bytes of which no two pages are the same.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 4096 * 7 + at) as u8).collect()
}

#[test]
fn the_largest_write_and_read_go_through_whole() {
    let guest = guest();
    let (_, fh) = open(&guest);
    let data = pattern(MOST_DATA);
    assert_eq!(guest.write(fh, 3, &data).unwrap() as usize, MOST_DATA);
    assert!(fs::read(guest.path("file")).unwrap() == [b"fil", &data[..]].concat());
    let read = ReadIn { fh, offset: 3, size: MOST_DATA as u32, ..ReadIn::default() };
    let header = guest.header(number(Opcode::Read), ROOT, size_of::<ReadIn>());
    assert!(guest.send(header, read.as_bytes(), MOST_DATA + 16).unwrap() == data);
    // Across pieces of memory, and to the end.
    assert!(guest.read(fh, 5000, 9000).unwrap() == data[4997..13997]);
    assert!(guest.read(fh, MOST_DATA as u64, 9000).unwrap() == data[MOST_DATA - 3..]);
    assert_eq!(guest.read(fh, 1 << 40, 9000).unwrap(), b"");
    for offset in [1 << 63, u64::MAX] {
        assert_eq!(guest.read(fh, offset, 1).unwrap_err(), Errno::INVAL);
        assert_eq!(guest.write(fh, offset, b"x").unwrap_err(), Errno::INVAL);
    }
}

#[test]
fn a_handle_does_only_what_it_was_opened_for() {
    let guest = guest();
    let file = guest.find("file").unwrap().nodeid;
    let reader = guest.open(file, libc::O_RDONLY).unwrap();
    let writer = guest.open(file, libc::O_WRONLY | libc::O_APPEND).unwrap();
    assert_eq!(guest.write(reader, 0, b"x").unwrap_err(), Errno::BADF);
    assert_eq!(guest.read(writer, 0, 1).unwrap_err(), Errno::BADF);
    // The guest sends the offset at which to append.
    guest.write(writer, 0, b"FI").unwrap();
    assert_eq!(guest.read(reader, 0, 9).unwrap(), b"FIle");
    guest.open(file, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!(guest.read(reader, 0, 9).unwrap(), b"");
}

#[test]
fn an_open_file_outlives_its_name() {
    let guest = guest();
    let (file, fh) = open(&guest);
    guest.unlink(ROOT, "file").unwrap();
    assert_eq!(guest.attributes(file).unwrap().nlink, 0);
    guest.write(fh, 4, b" goes on").unwrap();
    assert_eq!(guest.read(fh, 0, 99).unwrap(), b"file goes on");
    let attr = guest.set(file, Valid::SIZE, SetAttrIn { size: 2, ..SetAttrIn::default() });
    assert_eq!(attr.unwrap().size, 2);
    let again = guest.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(again, 0, 99).unwrap(), b"fi");
    guest.close(fh).unwrap();
    guest.close(again).unwrap();
    guest.forget(file, 1);
    assert_eq!(guest.descriptors.held(), 0);
}

#[test]
fn a_file_that_vanishes_on_the_host_is_an_error() {
    let guest = guest();
    let (file, fh) = open(&guest);
    fs::remove_dir(guest.path("directory")).unwrap();
    fs::remove_file(guest.path("file")).unwrap();
    assert_eq!(guest.read(fh, 0, 9).unwrap(), b"file");
    assert_eq!(guest.attributes(file).unwrap().nlink, 0);
    for name in ["file", "directory"] {
        assert_eq!(guest.find(name).unwrap_err(), Errno::NOENT);
    }
    assert_eq!(guest.unlink(ROOT, "file").unwrap_err(), Errno::NOENT);
}

#[test]
fn create_opens_what_is_there_unless_it_must_be_new() {
    let guest = guest();
    let (made, fh) = guest.create(ROOT, "new", libc::O_RDWR | libc::O_EXCL, 0o640).unwrap();
    guest.write(fh, 0, b"new").unwrap();
    assert_eq!(made.attr.mode, libc::S_IFREG | 0o640);
    let (again, fh) = guest.create(ROOT, "new", libc::O_RDONLY, 0o600).unwrap();
    assert_eq!((again.nodeid, again.attr.mode), (made.nodeid, made.attr.mode));
    assert_eq!(guest.read(fh, 0, 9).unwrap(), b"new");
    let new = guest.create(ROOT, "new", libc::O_RDWR | libc::O_EXCL, 0o600);
    assert_eq!(new.unwrap_err(), Errno::EXIST);
    guest.create(ROOT, "new", libc::O_WRONLY | libc::O_TRUNC, 0o600).unwrap();
    assert_eq!(guest.read(fh, 0, 9).unwrap(), b"");
    // The node was given three times, and each is taken back.
    guest.forget(made.nodeid, 2);
    guest.attributes(made.nodeid).unwrap();
    guest.forget(made.nodeid, 1);
    assert_eq!(guest.attributes(made.nodeid).unwrap_err(), Errno::STALE);
}

#[test]
fn modes_are_the_guests_whatever_this_processs_umask() {
    let guest = guest();
    let (file, _) = guest.create(ROOT, "shared", libc::O_RDWR, 0o666).unwrap();
    assert_eq!(guest.attributes(file.nodeid).unwrap().mode & 0o7777, 0o666);
    let mkdir = MkdirIn { mode: 0o1777, umask: 0 };
    let directory: EntryOut = parse(guest.ask(Opcode::Mkdir, ROOT, mkdir, &["all"]).unwrap());
    assert_eq!(directory.attr.mode & 0o1777, directory.attr.mode & 0o7777);
    assert_eq!(fs::metadata(guest.path("all")).unwrap().mode() & 0o7777, 0o1777);
    let mknod = MknodIn { mode: libc::S_IFIFO | 0o622, ..MknodIn::default() };
    guest.ask(Opcode::Mknod, ROOT, mknod, &["fifo"]).unwrap();
    assert_eq!(fs::symlink_metadata(guest.path("fifo")).unwrap().mode(), libc::S_IFIFO | 0o622);
}

#[test]
fn a_default_access_control_list_decides_instead() {
    let guest = guest();
    // Version 2; then of the owner, the group and others: tag, permissions, no ID (acl(5)).
    let entries = [[1_u16, 7], [4, 5], [0x20, 0]];
    let entries =
        entries.map(|entry| [entry.map(u16::to_le_bytes).concat(), vec![255; 4]].concat());
    let list = [2_u32.to_le_bytes().to_vec(), entries.concat()].concat();
    let (path, name) = (guest.path(""), "system.posix_acl_default");
    if rustix::fs::setxattr(path, name, &list, rustix::fs::XattrFlags::empty()).is_err() {
        // The file system below the tests has none.
        return;
    }
    let (file, _) = guest.create(ROOT, "new", libc::O_RDWR, 0o666).unwrap();
    assert_eq!(file.attr.mode & 0o777, 0o640);
    assert_eq!(guest.mkdir(ROOT, "below").unwrap().attr.mode & 0o777, 0o750);
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn what_is_made_belongs_to_the_guests_user_where_that_can_be() {
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut guest = guest();
    (guest.uid, guest.gid) = (1234, 5678);
    let expected = if is_root() { (1234, 5678) } else { own };
    // Only this process's user may write here; the guest's kernel has checked that.
    fs::set_permissions(guest.path(""), fs::Permissions::from_mode(0o700)).unwrap();
    let mknod = MknodIn { mode: libc::S_IFREG | 0o666, ..MknodIn::default() };
    guest.create(ROOT, "created", libc::O_RDWR, 0o666).unwrap();
    guest.mkdir(ROOT, "made").unwrap();
    guest.ask(Opcode::Mknod, ROOT, mknod, &["node"]).unwrap();
    guest.ask(Opcode::Symlink, ROOT, [0_u8; 0], &["link", "target"]).unwrap();
    for name in ["created", "made", "node", "link"] {
        let status = fs::symlink_metadata(guest.path(name)).unwrap();
        assert_eq!((status.uid(), status.gid()), expected, "{name}");
        assert_eq!(guest.find(name).unwrap().attr.uid, expected.0);
    }
    // This thread has its own IDs again.
    fs::write(guest.path("own"), "").unwrap();
    assert_eq!(fs::metadata(guest.path("own")).unwrap().uid(), own.0);
}

#[test]
fn a_directory_with_a_group_of_its_own_passes_it_on() {
    if !is_root() {
        return;
    }
    let mut guest = guest();
    let directory = guest.find("directory").unwrap().nodeid;
    std::os::unix::fs::chown(guest.path("directory"), None, Some(4321)).unwrap();
    fs::set_permissions(guest.path("directory"), fs::Permissions::from_mode(0o2775)).unwrap();
    (guest.uid, guest.gid) = (1234, 5678);
    guest.create(directory, "new", libc::O_RDWR, 0o644).unwrap();
    let below = guest.mkdir(directory, "below").unwrap();
    assert_eq!(below.attr.mode & libc::S_ISGID, libc::S_ISGID);
    let status = fs::metadata(guest.path("directory/new")).unwrap();
    assert_eq!((status.uid(), status.gid()), (1234, 4321));
}

#[test]
fn an_id_that_is_none_makes_nothing() {
    if !is_root() {
        return;
    }
    let mut guest = guest();
    guest.uid = u32::MAX;
    assert_eq!(guest.mkdir(ROOT, "new").unwrap_err(), Errno::PERM);
    guest.uid = 0;
    guest.mkdir(ROOT, "new").unwrap();
    assert_eq!(fs::metadata(guest.path("new")).unwrap().uid(), 0);
}

#[test]
fn set_user_id_bits_are_cleared_when_the_guest_asks_for_it() {
    let guest = guest();
    let (file, fh) = open(&guest);
    let set_bits = || {
        fs::set_permissions(guest.path("file"), fs::Permissions::from_mode(0o6755)).unwrap();
    };
    let bits = || guest.attributes(file).unwrap().mode & 0o7777;
    let kill = WriteIn { fh, size: 1, write_flags: WRITE_KILL_SUIDGID, ..WriteIn::default() };
    set_bits();
    guest.call(Opcode::Write, file, &[kill.as_bytes(), b"x"].concat()).unwrap();
    assert_eq!(bits(), 0o755);
    set_bits();
    guest.set(file, Valid::SIZE | Valid::KILL_SUIDGID, SetAttrIn::default()).unwrap();
    assert_eq!(bits(), 0o755);
    set_bits();
    let flags = (libc::O_WRONLY | libc::O_TRUNC) as u32;
    let truncate = OpenIn { flags, open_flags: OPEN_KILL_SUIDGID };
    guest.write(fh, 0, b"not empty").unwrap();
    set_bits();
    guest.ask(Opcode::Open, file, truncate, &[]).unwrap();
    assert_eq!(bits(), 0o755);
    if is_root() {
        // Root in the guest keeps them, as on the host.
        set_bits();
        guest.write(fh, 0, b"y").unwrap();
        assert_eq!(bits(), 0o6755);
    }
}

#[test]
fn attributes_are_set_and_shown() {
    let guest = guest();
    let (file, fh) = open(&guest);
    let times = Valid::ATIME | Valid::MTIME;
    let wanted = SetAttrIn {
        atime: 11,
        atimensec: 22,
        mtime: 33,
        mtimensec: 44,
        mode: libc::S_IFREG | 0o711,
        size: 3,
        fh,
        ..SetAttrIn::default()
    };
    let attr = guest.set(file, times | Valid::MODE | Valid::SIZE, wanted).unwrap();
    assert_eq!((attr.mode, attr.size), (libc::S_IFREG | 0o711, 3));
    assert_eq!((attr.atime, attr.atimensec, attr.mtime, attr.mtimensec), (11, 22, 33, 44));
    guest.set(file, Valid::SIZE | Valid::FH, SetAttrIn { size: 9, ..wanted }).unwrap();
    assert_eq!(guest.read(fh, 0, 99).unwrap(), b"fil\0\0\0\0\0\0");
    let now = guest.set(file, Valid::MTIME | Valid::MTIME_NOW, wanted).unwrap();
    assert!(now.mtime > 1_000_000_000);
    // A time that is none does not mean something else to the host.
    let odd = SetAttrIn { mtimensec: u32::MAX, ..wanted };
    assert_eq!(guest.set(file, Valid::MTIME, odd).unwrap().mtimensec, 999_999_999);
    let owner = Valid::UID | Valid::GID;
    let no_user = SetAttrIn { uid: u32::MAX, gid: 1, ..wanted };
    assert_eq!(guest.set(file, owner, no_user).unwrap_err(), Errno::INVAL);
    let chown = guest.set(file, owner, SetAttrIn { uid: 1234, gid: 5678, ..wanted });
    match is_root() {
        true => assert_eq!(chown.map(|attr| (attr.uid, attr.gid)).unwrap(), (1234, 5678)),
        false => assert_eq!(chown.unwrap_err(), Errno::PERM),
    }
}

#[test]
fn holes_are_made_and_found() {
    let guest = guest();
    let (file, fh) = open(&guest);
    guest.write(fh, 0, &pattern(3 << 20)[..MOST_DATA]).unwrap();
    guest.write(fh, 1 << 20, &pattern(MOST_DATA)).unwrap();
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let punch = FallocateIn { fh, offset: 1 << 19, length: 1 << 20, mode: mode as u32, padding: 0 };
    match guest.ask(Opcode::Fallocate, file, punch, &[]) {
        // The file system below the tests cannot.
        Err(Errno::OPNOTSUPP) => return,
        reply => reply.unwrap(),
    };
    let seek = |offset, whence: i32| {
        let lseek = LseekIn { fh, offset, whence: whence as u32, padding: 0 };
        Ok::<_, Errno>(parse::<LseekOut>(guest.ask(Opcode::Lseek, file, lseek, &[])?).offset)
    };
    assert_eq!(seek(0, libc::SEEK_HOLE).unwrap(), 1 << 19);
    assert_eq!(seek(1 << 19, libc::SEEK_DATA).unwrap(), 3 << 19);
    assert_eq!(seek(3 << 20, libc::SEEK_DATA).unwrap_err(), Errno::NXIO);
    assert_eq!(seek(u64::MAX, libc::SEEK_DATA).unwrap_err(), Errno::INVAL);
    assert_eq!(seek(0, libc::SEEK_END).unwrap_err(), Errno::INVAL);
    let grow = FallocateIn { mode: 0, offset: 5 << 20, length: 10, ..punch };
    guest.ask(Opcode::Fallocate, file, grow, &[]).unwrap();
    assert_eq!(guest.attributes(file).unwrap().size, (5 << 20) + 10);
    let collapse = FallocateIn { mode: libc::FALLOC_FL_COLLAPSE_RANGE as u32, ..punch };
    let collapsed = guest.ask(Opcode::Fallocate, file, collapse, &[]);
    assert_eq!(collapsed.unwrap_err(), Errno::OPNOTSUPP);
}

#[test]
fn a_range_is_copied_on_the_host() {
    let guest = guest();
    let (_, from) = open(&guest);
    let (copy, to) = guest.create(ROOT, "copy", libc::O_RDWR, 0o644).unwrap();
    let range = CopyFileRangeIn {
        fh_in: from,
        off_in: 1,
        nodeid_out: copy.nodeid,
        fh_out: to,
        off_out: 2,
        len: u64::MAX,
        flags: 0,
    };
    let reply = guest.ask(Opcode::CopyFileRange, ROOT, range, &[]).unwrap();
    assert_eq!(parse::<WriteOut>(reply).size, 3);
    assert_eq!(guest.read(to, 0, 99).unwrap(), b"\0\0ile");
    let odd = CopyFileRangeIn { flags: 1, ..range };
    assert_eq!(guest.ask(Opcode::CopyFileRange, ROOT, odd, &[]).unwrap_err(), Errno::INVAL);
}

#[test]
fn extended_attributes_of_users_are_kept_and_others_hidden() {
    let guest = guest();
    let file = guest.find("file").unwrap().nodeid;
    let set = |name: &str, value: &str, flags| {
        let set = SetXattrIn { size: value.len() as u32, flags };
        let arguments = [set.as_bytes(), name.as_bytes(), b"\0", value.as_bytes()].concat();
        guest.call(Opcode::SetXattr, file, &arguments).map(drop)
    };
    match set("user.name", "value", 0) {
        // The file system below the tests has none.
        Err(Errno::OPNOTSUPP) => return,
        reply => reply.unwrap(),
    }
    let get =
        |name, size| guest.ask(Opcode::GetXattr, file, GetXattrIn { size, padding: 0 }, &[name]);
    let list = |size| guest.ask(Opcode::ListXattr, file, GetXattrIn { size, padding: 0 }, &[]);
    assert_eq!(get("user.name", 5).unwrap(), b"value");
    assert_eq!(get("user.name", 4).unwrap_err(), Errno::RANGE);
    assert_eq!(parse::<GetXattrOut>(get("user.name", 0).unwrap()).size, 5);
    assert_eq!(get("user.none", 9).unwrap_err(), Errno::NODATA);
    assert_eq!(set("user.name", "x", libc::XATTR_CREATE as u32).unwrap_err(), Errno::EXIST);
    assert_eq!(set("user.name", "x", 1 << 9).unwrap_err(), Errno::INVAL);
    // The attribute of an overlay's layer on the host is the host's.
    let path = guest.path("file");
    let _ = rustix::fs::setxattr(&path, "trusted.x", b"", rustix::fs::XattrFlags::empty());
    for name in ["trusted.x", "system.posix_acl_access", "name", "", "useruser."] {
        assert_eq!(get(name, 9).unwrap_err(), Errno::OPNOTSUPP);
        assert_eq!(set(name, "x", 0).unwrap_err(), Errno::OPNOTSUPP);
    }
    assert_eq!(list(100).unwrap(), b"user.name\0");
    assert_eq!(parse::<GetXattrOut>(list(0).unwrap()).size, 10);
    guest.ask(Opcode::RemoveXattr, file, [0_u8; 0], &["user.name"]).unwrap();
    assert_eq!(list(100).unwrap(), b"");
    let long = SetXattrIn { size: u32::MAX, flags: 0 };
    let reply = guest.ask(Opcode::SetXattr, file, long, &["user.name", "x"]);
    assert_eq!(reply.unwrap_err(), Errno::INVAL);
}

#[test]
fn a_full_file_system_is_enospc() {
    // Whatever is written here does not fit.
    let full = std::path::Path::new("/dev/full");
    if !full.exists() {
        return;
    }
    let guest = guest();
    let file = fs::OpenOptions::new().write(true).open(full).unwrap();
    let permit = guest.descriptors.permit(crate::descriptors::Purpose::Required).unwrap();
    let descriptor = crate::descriptors::Descriptor::held(file.into(), permit);
    let fh = guest.server.handles.add(crate::handles::Handle {
        node: ROOT,
        descriptor,
        directory: None,
    });
    assert_eq!(guest.write(fh, 0, b"x").unwrap_err(), Errno::NOSPC);
}

#[test]
fn without_descriptors_open_is_enfile_and_closing_helps() {
    let guest = Guest::with_descriptors(Mode::ReadWrite, &["file"], Descriptors::at_most(2));
    let file = guest.find("file").unwrap().nodeid;
    let fh = guest.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(guest.open(file, libc::O_RDONLY).unwrap_err(), Errno::NFILE);
    assert_eq!(guest.open_directory(ROOT).unwrap_err(), Errno::NFILE);
    assert_eq!(guest.create(ROOT, "new", libc::O_RDWR, 0o644).unwrap_err(), Errno::NFILE);
    assert_eq!(guest.find("new").unwrap_err(), Errno::NOENT);
    assert_eq!(guest.read(fh, 0, 9).unwrap(), b"file");
    guest.close(fh).unwrap();
    let fh = guest.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(fh, 0, 9).unwrap(), b"file");
}
