//! Random FUSE messages of a guest.
//!
//! Nothing outside of the shared directory may change, and after a reset the server must answer again.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use rustix::process::{Resource, Rlimit, setrlimit};
use shared_dir::{Buffers, Descriptors, Mode, SharedDirectory};

#[derive(Debug, Arbitrary)]
struct Input {
    is_writable: bool,
    descriptors: u8,
    messages: Vec<Message>,
}

#[derive(Debug, Arbitrary)]
struct Message {
    opcode: Opcode,
    node: Small,
    /// The first field of most arguments: a handle, or another node.
    first: Small,
    words: Vec<Word>,
    names: Vec<Name>,
    garbage: Vec<u8>,
    room: u16,
    /// Makes the header claim another length than the message has.
    wrong_length: Option<u32>,
}

/// An opcode, mostly one that exists.
#[derive(Debug)]
struct Opcode(u32);

/// A node or a handle, mostly one that may exist.
#[derive(Debug)]
struct Small(u64);

/// Flags, sizes, offsets and modes.
#[derive(Debug)]
struct Word(u32);

#[derive(Debug)]
struct Name(&'static str);

impl<'a> Arbitrary<'a> for Opcode {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(if u.ratio(1, 20)? { u.arbitrary()? } else { u.int_in_range(1..=52)? }))
    }
}

impl<'a> Arbitrary<'a> for Small {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(if u.ratio(1, 20)? { u.arbitrary()? } else { u.int_in_range(0..=12)? }))
    }
}

impl<'a> Arbitrary<'a> for Word {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(match u.int_in_range(0..=3)? {
            0 => u.arbitrary()?,
            1 => u.arbitrary::<u16>()?.into(),
            2 => 0,
            _ => 1 << u.int_in_range(0..=31)?,
        }))
    }
}

impl<'a> Arbitrary<'a> for Name {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let names = ["a", "b", "file", "link", "up", "fifo", "directory", "below", "user.x"];
        let bad = ["", ".", "..", "/", "../secret", "a/b", "/etc", "directory/.."];
        Ok(Self(if u.ratio(1, 6)? { u.choose(&bad)? } else { u.choose(&names)? }))
    }
}

impl Message {
    fn bytes(&self) -> Vec<u8> {
        let mut arguments = self.first.0.to_le_bytes().to_vec();
        // So that data often has the size that its header claims.
        arguments.extend(self.words.iter().take(20).flat_map(|Word(word)| word.to_le_bytes()));
        for Name(name) in &self.names {
            arguments.extend(name.as_bytes());
            arguments.push(0);
        }
        arguments.extend(&self.garbage);
        // LOOKUP, SYMLINK, UNLINK and RMDIR have names only.
        if matches!(self.opcode.0, 1 | 6 | 10 | 11) && !self.garbage.len().is_multiple_of(8) {
            arguments.drain(..8 + 4 * self.words.len().min(20));
        }
        let length = self.wrong_length.unwrap_or(40 + arguments.len() as u32);
        let mut bytes = [length, self.opcode.0, 1, 0].map(u32::to_le_bytes).concat();
        bytes.extend(self.node.0.to_le_bytes());
        bytes.extend([0; 16]);
        bytes.extend(arguments);
        bytes
    }
}

/// A directory that all inputs of this process use, one after the other: `share`, and a secret beside
/// it. Files stay small, so that the machine's memory suffices.
fn host() -> &'static PathBuf {
    static HOST: OnceLock<PathBuf> = OnceLock::new();
    HOST.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let host = base.join(format!("moat-fuzz-{}", std::process::id()));
        fs::create_dir_all(&host).expect("a directory to share");
        let most = Some(4 << 20);
        setrlimit(Resource::Fsize, Rlimit { current: most, maximum: most }).expect("a limit");
        host
    })
}

/// INIT as Linux 6.12 sends it.
fn init() -> Vec<u8> {
    [56_u32, 26, 1, 0, 0, 0, 0, 0, 0, 0, 7, 41, 1 << 17, u32::MAX].map(u32::to_le_bytes).concat()
}

fuzz_target!(|input: Input| {
    let host = host();
    let (share, secret) = (host.join("share"), host.join("secret"));
    let _ = fs::remove_dir_all(&share);
    fs::create_dir_all(share.join("directory/below")).expect("a directory to share");
    fs::write(share.join("file"), "content").expect("a file to share");
    fs::write(&secret, "secret").expect("a file that is not shared");
    for (name, target) in [("link", "file"), ("up", "../secret")] {
        std::os::unix::fs::symlink(target, share.join(name)).expect("a link to share");
    }
    let mode = if input.is_writable { Mode::ReadWrite } else { Mode::ReadOnly };
    let descriptors = Descriptors::at_most(input.descriptors.into());
    let server = SharedDirectory::open(&share, mode, descriptors.clone()).expect("a share");
    assert_eq!(server.handle(&Buffers::new(init(), 80)), 80);
    for message in &input.messages {
        let room = usize::from(message.room);
        let written = server.handle(&Buffers::new(message.bytes(), room));
        assert!(written <= room);
        assert!(descriptors.held() <= input.descriptors.into());
    }
    server.reset();
    assert_eq!(descriptors.held(), 0);
    assert_eq!(server.handle(&Buffers::new(init(), 80)), 80);
    assert_eq!(fs::read(&secret).expect("the file that is not shared"), b"secret");
    let beside = fs::read_dir(host).expect("the directory above").count();
    assert_eq!(beside, 2);
    if !input.is_writable {
        assert_eq!(fs::read(share.join("file")).expect("the file"), b"content");
        assert_eq!(fs::read_dir(&share).expect("the share").count(), 4);
    }
});
