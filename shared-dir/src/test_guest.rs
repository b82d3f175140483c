//! A guest that uses a shared directory of the test's.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use tempfile::TempDir;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::descriptors::Descriptors;
use crate::message::Buffers;
use crate::server::{Mode, SharedDirectory};
use crate::wire::*;

pub struct Guest {
    /// Holds the shared directory, `share`, and what is outside of it.
    pub host: TempDir,
    pub server: SharedDirectory,
    pub descriptors: Descriptors,
    /// Who asks.
    pub uid: u32,
    pub gid: u32,
}

/// What a directory lists: names, types and node IDs.
pub type Listing = Vec<(String, u32, u64)>;

impl Guest {
    /// Of a share with these files in it, which contain their own names. Names that end in `/` are
    /// directories.
    pub fn new(mode: Mode, files: &[&str]) -> Self {
        Self::with_descriptors(mode, files, Descriptors::at_most(1000))
    }

    pub fn with_descriptors(mode: Mode, files: &[&str], descriptors: Descriptors) -> Self {
        let host = tempfile::tempdir().unwrap();
        let share = host.path().join("share");
        std::fs::create_dir(&share).unwrap();
        for file in files {
            match file.strip_suffix('/') {
                Some(directory) => std::fs::create_dir_all(share.join(directory)).unwrap(),
                None => std::fs::write(share.join(file), file).unwrap(),
            }
        }
        let server = SharedDirectory::open(&share, mode, descriptors.clone()).unwrap();
        let guest = Self { host, server, descriptors, uid: 0, gid: 0 };
        let init = InitIn { major: 7, minor: 38, max_readahead: 1 << 17, flags: u32::MAX };
        guest.call(Opcode::Init, 0, init.as_bytes()).unwrap();
        guest
    }

    /// A path in the share, on the host.
    pub fn path(&self, path: &str) -> PathBuf {
        self.host.path().join("share").join(path)
    }

    pub fn outside(&self) -> &Path {
        self.host.path()
    }

    /// Sends a message as it is. Gives the reply without its header.
    pub fn send(&self, header: InHeader, arguments: &[u8], room: usize) -> Result<Vec<u8>, Errno> {
        let request = [header.as_bytes(), arguments].concat();
        let message = Buffers::new(request, room);
        let written = self.server.handle(&message);
        let reply = message.into_reply();
        let (out, data) = OutHeader::read_from_prefix(&reply[..written]).expect("a reply");
        assert_eq!((out.len as usize, out.unique), (written, header.unique));
        match out.error {
            0 => Ok(data.to_vec()),
            error => Err(Errno::from_raw_os_error(-error)),
        }
    }

    pub fn header(&self, opcode: u32, nodeid: u64, arguments: usize) -> InHeader {
        let (uid, gid) = (self.uid, self.gid);
        let len = (size_of::<InHeader>() + arguments) as u32;
        InHeader { len, opcode, unique: 77, nodeid, uid, gid, ..InHeader::default() }
    }

    pub fn call(&self, opcode: Opcode, node: u64, arguments: &[u8]) -> Result<Vec<u8>, Errno> {
        self.send(self.header(number(opcode), node, arguments.len()), arguments, 1 << 20)
    }

    /// Sends a structure and strings.
    pub fn ask(
        &self,
        opcode: Opcode,
        node: u64,
        structure: impl IntoBytes + Immutable,
        strings: &[&str],
    ) -> Result<Vec<u8>, Errno> {
        let mut arguments = structure.as_bytes().to_vec();
        for string in strings {
            arguments.extend(CString::new(*string).unwrap().as_bytes_with_nul());
        }
        self.call(opcode, node, &arguments)
    }

    pub fn one_way(&self, opcode: Opcode, node: u64, arguments: &[u8]) {
        let header = self.header(number(opcode), node, arguments.len());
        let message = Buffers::new([header.as_bytes(), arguments].concat(), 0);
        assert_eq!(self.server.handle(&message), 0);
    }

    /// Looks a path up, name by name.
    pub fn find(&self, path: &str) -> Result<EntryOut, Errno> {
        let mut found = EntryOut { nodeid: ROOT, ..EntryOut::default() };
        for name in path.split('/') {
            found = self.lookup(found.nodeid, name)?;
        }
        Ok(found)
    }

    /// ENOENT also where the reply is that there is nothing.
    pub fn lookup(&self, parent: u64, name: &str) -> Result<EntryOut, Errno> {
        let entry: EntryOut = parse(self.ask(Opcode::Lookup, parent, [0_u8; 0], &[name])?);
        if entry.nodeid == 0 { Err(Errno::NOENT) } else { Ok(entry) }
    }

    pub fn attributes(&self, node: u64) -> Result<Attr, Errno> {
        let reply = self.ask(Opcode::GetAttr, node, GetAttrIn::default(), &[])?;
        Ok(parse::<AttrOut>(reply).attr)
    }

    pub fn set(&self, node: u64, valid: Valid, wanted: SetAttrIn) -> Result<Attr, Errno> {
        let wanted = SetAttrIn { valid: valid.bits(), ..wanted };
        Ok(parse::<AttrOut>(self.ask(Opcode::SetAttr, node, wanted, &[])?).attr)
    }

    pub fn open(&self, node: u64, flags: i32) -> Result<u64, Errno> {
        let open = OpenIn { flags: flags as u32, open_flags: 0 };
        Ok(parse::<OpenOut>(self.ask(Opcode::Open, node, open, &[])?).fh)
    }

    pub fn create(
        &self,
        parent: u64,
        name: &str,
        flags: i32,
        mode: u32,
    ) -> Result<(EntryOut, u64), Errno> {
        let create = CreateIn { flags: flags as u32, mode, ..CreateIn::default() };
        let reply = self.ask(Opcode::Create, parent, create, &[name])?;
        let (entry, open) = EntryOut::read_from_prefix(&reply).unwrap();
        Ok((entry, parse::<OpenOut>(open.to_vec()).fh))
    }

    pub fn mkdir(&self, parent: u64, name: &str) -> Result<EntryOut, Errno> {
        Ok(parse(self.ask(Opcode::Mkdir, parent, MkdirIn { mode: 0o755, umask: 0o22 }, &[name])?))
    }

    pub fn read(&self, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        self.ask(Opcode::Read, ROOT, ReadIn { fh, offset, size, ..ReadIn::default() }, &[])
    }

    pub fn write(&self, fh: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let size = data.len() as u32;
        let write = WriteIn { fh, offset, size, ..WriteIn::default() };
        let reply = self.call(Opcode::Write, ROOT, &[write.as_bytes(), data].concat())?;
        Ok(parse::<WriteOut>(reply).size)
    }

    pub fn close(&self, fh: u64) -> Result<(), Errno> {
        let release = ReleaseIn { fh, ..ReleaseIn::default() };
        self.ask(Opcode::Release, ROOT, release, &[]).map(drop)
    }

    pub fn unlink(&self, parent: u64, name: &str) -> Result<(), Errno> {
        self.ask(Opcode::Unlink, parent, [0_u8; 0], &[name]).map(drop)
    }

    pub fn rename(&self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<(), Errno> {
        let rename = Rename2In { newdir: to.0, flags, padding: 0 };
        self.ask(Opcode::Rename2, from.0, rename, &[from.1, to.1]).map(drop)
    }

    pub fn forget(&self, node: u64, nlookup: u64) {
        self.one_way(Opcode::Forget, node, ForgetIn { nlookup }.as_bytes());
    }

    pub fn open_directory(&self, node: u64) -> Result<u64, Errno> {
        Ok(parse::<OpenOut>(self.ask(Opcode::OpenDir, node, OpenIn::default(), &[])?).fh)
    }

    /// Lists a directory in replies of `size` bytes.
    pub fn list(&self, node: u64, size: u32, plus: bool) -> Result<Listing, Errno> {
        let fh = self.open_directory(node)?;
        let opcode = if plus { Opcode::ReadDirPlus } else { Opcode::ReadDir };
        let (mut listing, mut offset) = (Vec::new(), 0);
        loop {
            let read = ReadIn { fh, offset, size, ..ReadIn::default() };
            let reply = self.ask(opcode, node, read, &[])?;
            assert!(reply.len() <= size as usize);
            let mut rest = &reply[..];
            if rest.is_empty() {
                break;
            }
            while !rest.is_empty() {
                let mut entry = EntryOut::default();
                if plus {
                    (entry, rest) = EntryOut::read_from_prefix(rest).unwrap();
                }
                let (dirent, name) = Dirent::read_from_prefix(rest).unwrap();
                let length = dirent.namelen as usize;
                let text = String::from_utf8(name[..length].to_vec()).unwrap();
                listing.push((text, dirent.kind, entry.nodeid));
                offset = dirent.off;
                rest = &rest[(size_of::<Dirent>() + length).next_multiple_of(8)..];
            }
        }
        self.ask(Opcode::ReleaseDir, node, ReleaseIn { fh, ..ReleaseIn::default() }, &[])?;
        listing.sort();
        Ok(listing)
    }
}

/// The number of an opcode.
pub fn number(opcode: Opcode) -> u32 {
    (0..100).find(|number| Opcode::try_from(*number) == Ok(opcode)).unwrap()
}

/// A reply that is one structure.
pub fn parse<T: FromBytes + KnownLayout + Immutable>(reply: Vec<u8>) -> T {
    T::read_from_bytes(&reply).expect("a reply of the structure's size")
}
