//! Messages that are wrong, late, early or unknown.

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::descriptors::Descriptors;
use crate::message::{Access, Buffers, Message};
use crate::server::{Mode, OpenError, SharedDirectory};
use crate::test_guest::{Guest, number, parse};
use crate::wire::*;

fn guest() -> Guest {
    Guest::new(Mode::ReadWrite, &["file", "directory/"])
}

/// A guest that has not sent INIT yet.
fn new_guest() -> Guest {
    let guest = guest();
    guest.server.reset();
    guest
}

fn init(guest: &Guest, major: u32, minor: u32, flags: u32) -> Result<InitOut, Errno> {
    let init = InitIn { major, minor, max_readahead: 123 << 10, flags };
    Ok(parse(guest.ask(Opcode::Init, 0, init, &[])?))
}

#[test]
fn init_agrees_on_a_version_and_on_what_both_want() {
    let guest = new_guest();
    let offered = InitFlags::ASYNC_READ | InitFlags::MAX_PAGES | InitFlags::AUTO_INVAL_DATA;
    // FUSE_WRITEBACK_CACHE and FUSE_POSIX_LOCKS are not wanted.
    let out = init(&guest, 7, 32, offered.bits() | 1 << 16 | 1 << 1).unwrap();
    assert_eq!((out.major, out.minor, out.flags), (7, 32, offered.bits()));
    assert_eq!((out.max_readahead, out.max_write, out.max_pages), (123 << 10, 1 << 20, 256));
    assert_eq!(out.time_gran, 1);
}

#[test]
fn init_of_another_version_is_answered_as_the_protocol_wants() {
    let guest = new_guest();
    let newer = init(&guest, 8, 0, 0).unwrap();
    assert_eq!((newer.major, newer.minor), (MAJOR, MINOR));
    assert_eq!(init(&guest, 6, 99, 0).unwrap_err(), Errno::PROTO);
    assert_eq!(init(&guest, 7, 30, 0).unwrap_err(), Errno::PROTO);
    assert_eq!(init(&guest, 7, 45, u32::MAX).unwrap().minor, MINOR);
}

#[test]
fn init_comes_once_and_first() {
    let guest = new_guest();
    assert_eq!(guest.attributes(ROOT).unwrap_err(), Errno::IO);
    init(&guest, 7, 38, 0).unwrap();
    guest.attributes(ROOT).unwrap();
    assert_eq!(init(&guest, 7, 38, 0).unwrap_err(), Errno::IO);
}

#[test]
fn destroy_ends_it_and_init_begins_anew() {
    let guest = guest();
    let file = guest.find("file").unwrap().nodeid;
    let fh = guest.open(file, libc::O_RDONLY).unwrap();
    guest.call(Opcode::Destroy, 0, &[]).unwrap();
    assert_eq!(guest.descriptors.held(), 0);
    assert_eq!(guest.attributes(ROOT).unwrap_err(), Errno::IO);
    init(&guest, 7, 38, 0).unwrap();
    assert_eq!(guest.attributes(file).unwrap_err(), Errno::STALE);
    assert_eq!(guest.read(fh, 0, 1).unwrap_err(), Errno::BADF);
    assert_ne!(guest.find("file").unwrap().nodeid, file);
}

#[test]
fn what_is_not_known_is_enosys() {
    let guest = guest();
    // FUSE_FLUSH, FUSE_ACCESS, FUSE_IOCTL, FUSE_SETLK and none.
    for opcode in [25, 34, 39, 32, 0, 12345, u32::MAX] {
        let reply = guest.send(guest.header(opcode, ROOT, 64), &[0; 64], 1000);
        assert_eq!(reply.unwrap_err(), Errno::NOSYS);
    }
}

#[test]
fn a_length_that_is_not_the_messages_is_einval() {
    let guest = guest();
    let header = guest.header(number(Opcode::GetAttr), ROOT, 16);
    for len in [0, 39, 57, 1 << 20, u32::MAX] {
        let reply = guest.send(InHeader { len, ..header }, &[0; 16], 1000);
        assert_eq!(reply.unwrap_err(), Errno::INVAL, "{len}");
    }
}

#[test]
fn arguments_that_are_too_short_are_einval() {
    let guest = guest();
    for opcode in (0..60).filter_map(|opcode| Opcode::try_from(opcode).ok()) {
        use Opcode::*;
        if !matches!(opcode, Destroy | Statfs | ReadLink | Init) && !opcode.is_one_way() {
            assert_eq!(guest.call(opcode, ROOT, &[1; 3]).unwrap_err(), Errno::INVAL, "{opcode:?}");
        }
    }
}

#[test]
fn arguments_of_no_sensible_length_are_not_read() {
    let guest = guest();
    let long = vec![b'x'; MOST_ARGUMENTS + 1];
    assert_eq!(guest.call(Opcode::Lookup, ROOT, &long).unwrap_err(), Errno::TOOBIG);
}

#[test]
fn a_message_without_a_header_has_no_reply() {
    let guest = guest();
    for length in [0, 1, 39] {
        assert_eq!(guest.server.handle(&Buffers::new(vec![1; length], 1000)), 0);
    }
}

#[test]
fn a_reply_without_room_is_an_error_or_none() {
    let guest = guest();
    let header = guest.header(number(Opcode::GetAttr), ROOT, 16);
    assert_eq!(guest.send(header, &[0; 16], 16 + 103).unwrap_err(), Errno::IO);
    let request = [header.as_bytes(), &[0; 16]].concat();
    assert_eq!(guest.server.handle(&Buffers::new(request, 15)), 0);
}

#[test]
fn a_read_gives_no_more_than_there_is_room_for() {
    let guest = guest();
    let fh = guest.open(guest.find("file").unwrap().nodeid, libc::O_RDONLY).unwrap();
    let read = ReadIn { fh, size: u32::MAX, ..ReadIn::default() };
    let header = guest.header(number(Opcode::Read), ROOT, size_of::<ReadIn>());
    assert_eq!(guest.send(header, read.as_bytes(), 16 + 2).unwrap(), b"fi");
    assert_eq!(guest.send(header, read.as_bytes(), 1000).unwrap(), b"file");
}

#[test]
fn a_write_that_claims_more_than_it_has_writes_nothing() {
    let guest = guest();
    let fh = guest.open(guest.find("file").unwrap().nodeid, libc::O_RDWR).unwrap();
    for size in [5, MOST_DATA as u32 + 1, u32::MAX] {
        let write = WriteIn { fh, size, ..WriteIn::default() };
        let arguments = [write.as_bytes(), b"four"].concat();
        assert_eq!(guest.call(Opcode::Write, ROOT, &arguments).unwrap_err(), Errno::INVAL);
    }
    assert_eq!(std::fs::read(guest.path("file")).unwrap(), b"file");
}

#[test]
fn nodes_and_handles_that_are_not_the_guests_are_errors() {
    let guest = guest();
    for node in [0, 2, 99, u64::MAX] {
        assert_eq!(guest.attributes(node).unwrap_err(), Errno::STALE);
        assert_eq!(guest.lookup(node, "file").unwrap_err(), Errno::STALE);
        guest.forget(node, 1);
    }
    let directory = guest.open_directory(ROOT).unwrap();
    for fh in [0, 99, u64::MAX, directory] {
        assert_eq!(guest.read(fh, 0, 1).unwrap_err(), Errno::BADF);
        assert_eq!(guest.write(fh, 0, b"x").unwrap_err(), Errno::BADF);
    }
    guest.close(directory).unwrap();
    assert_eq!(guest.close(directory).unwrap_err(), Errno::BADF);
}

#[test]
fn a_batch_of_forgets_is_taken_as_far_as_it_goes() {
    let guest = guest();
    let (file, directory) = (guest.find("file").unwrap(), guest.find("directory").unwrap());
    let one = |nodeid| ForgetOne { nodeid, nlookup: 1 };
    let count = BatchForgetIn { count: u32::MAX, dummy: 0 };
    let nodes = [one(file.nodeid), one(directory.nodeid)];
    guest.one_way(Opcode::BatchForget, 0, &[count.as_bytes(), nodes.as_bytes()].concat());
    assert_eq!(guest.server.inodes.len(), 1);
    assert_eq!(guest.descriptors.held(), 0);
}

/// A message in memory that goes away after so many accesses.
struct Vanishing {
    message: Buffers,
    accesses: std::cell::Cell<usize>,
}

impl Vanishing {
    fn access(&self) -> std::io::Result<()> {
        let left = self.accesses.get().checked_sub(1).ok_or(std::io::ErrorKind::Other)?;
        self.accesses.set(left);
        Ok(())
    }
}

impl Message for Vanishing {
    fn request_length(&self) -> usize {
        self.message.request_length()
    }

    fn reply_room(&self) -> usize {
        self.message.reply_room()
    }

    fn with_request(
        &self,
        range: std::ops::Range<usize>,
        access: &mut Access<'_>,
    ) -> std::io::Result<usize> {
        self.access()?;
        self.message.with_request(range, access)
    }

    fn with_reply(
        &self,
        range: std::ops::Range<usize>,
        access: &mut Access<'_>,
    ) -> std::io::Result<usize> {
        self.access()?;
        self.message.with_reply(range, access)
    }
}

#[test]
fn memory_that_goes_away_is_an_error_or_no_reply() {
    let guest = guest();
    let fh = guest.open(guest.find("file").unwrap().nodeid, libc::O_RDONLY).unwrap();
    let read = ReadIn { fh, size: 4, ..ReadIn::default() };
    let header = guest.header(number(Opcode::Read), ROOT, size_of::<ReadIn>());
    let request = [header.as_bytes(), read.as_bytes()].concat();
    let written = [0, 1, 2, 3, 4].map(|accesses| {
        let message = Buffers::new(request.clone(), 100);
        let accesses = accesses.into();
        let message = Vanishing { message, accesses };
        guest.server.handle(&message)
    });
    assert_eq!(written, [0, 0, 0, 0, 20]);
    // Only the data's place is gone: an error.
    let message = Buffers::new(request, 100);
    struct NoData(Buffers);
    impl Message for NoData {
        fn request_length(&self) -> usize {
            self.0.request_length()
        }
        fn reply_room(&self) -> usize {
            self.0.reply_room()
        }
        fn with_request(
            &self,
            range: std::ops::Range<usize>,
            access: &mut Access<'_>,
        ) -> std::io::Result<usize> {
            self.0.with_request(range, access)
        }
        fn with_reply(
            &self,
            range: std::ops::Range<usize>,
            access: &mut Access<'_>,
        ) -> std::io::Result<usize> {
            if range.start > 0 {
                return Err(std::io::ErrorKind::Other.into());
            }
            self.0.with_reply(range, access)
        }
    }
    let message = NoData(message);
    assert_eq!(guest.server.handle(&message), 16);
    let reply = message.0.into_reply();
    let (out, _) = OutHeader::read_from_prefix(&reply).unwrap();
    assert_eq!(out.error, -libc::EIO);
}

#[test]
fn only_directories_of_files_are_shared() {
    let host = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| {
        SharedDirectory::open(path, Mode::ReadOnly, Descriptors::at_most(9)).err()
    };
    let file = host.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(open(host.path()).is_none());
    assert!(matches!(open(&file), Some(OpenError::Open { .. })));
    assert!(matches!(open(&host.path().join("none")), Some(OpenError::Open { .. })));
    assert!(matches!(open("/proc".as_ref()), Some(OpenError::KernelInterface(_))));
}
