//! How far a directory has been listed.

use std::collections::VecDeque;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, RawDir, SeekFrom, seek};
use rustix::io::Errno;

/// How much is read from the host at once: at least its longest entry, and little, for what does not fit into
/// a reply waits in memory.
const READ_BYTES: usize = 1 << 10;

/// How far a directory has been listed.
#[derive(Debug, Default)]
pub struct Listing {
    /// Of the next entry.
    offset: u64,
    /// Read from the host, and not passed on yet.
    waiting: VecDeque<ListedEntry>,
}

/// An entry of a directory.
#[derive(Debug)]
pub struct ListedEntry {
    pub name: CString,
    pub ino: u64,
    pub kind: FileType,
    /// The offset of the one after it.
    pub next: u64,
}

impl Listing {
    /// Goes to an offset. Where the listing is there already, it does not seek: the host's 9p, for one, goes on
    /// after what it has read ahead, and would leave entries out.
    pub fn go_to(&mut self, directory: BorrowedFd<'_>, offset: u64) -> Result<(), Errno> {
        if self.offset != offset {
            seek(directory, SeekFrom::Start(offset))?;
            *self = Self { offset, waiting: VecDeque::new() };
        }
        Ok(())
    }

    /// The next entry; none at the end.
    pub fn next(&mut self, directory: BorrowedFd<'_>) -> Result<Option<&ListedEntry>, Errno> {
        if self.waiting.is_empty() {
            let mut buffer = [MaybeUninit::uninit(); READ_BYTES];
            let mut read = RawDir::new(directory, &mut buffer);
            while let Some(entry) = read.next() {
                let entry = entry?;
                self.waiting.push_back(ListedEntry {
                    name: entry.file_name().to_owned(),
                    ino: entry.ino(),
                    kind: entry.file_type(),
                    next: entry.next_entry_cookie(),
                });
                if read.is_buffer_empty() {
                    break;
                }
            }
        }
        Ok(self.waiting.front())
    }

    /// Leaves the next entry behind.
    pub fn pass(&mut self) {
        if let Some(entry) = self.waiting.pop_front() {
            self.offset = entry.next;
        }
    }
}
