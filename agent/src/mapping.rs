//! The mappings of a worker.
//!
//! Their memory is only accessed by the functions of this module: no Rust reference ever points into
//! it, and it may stop being accessible at any time.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use agent_protocol::{Failure, PatternReport, Protection, Sharing, Width};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::access;

/// A range of addresses that mmap(2) gave.
pub struct Mapping {
    address: u64,
    length: u64,
}

/// A place in a mapping that may be accessed with a certain width.
#[derive(Clone, Copy)]
pub struct Cell {
    address: u64,
    width: Width,
}

impl Mapping {
    /// Maps a part of a file, or anonymous memory.
    pub fn new(
        file: Option<BorrowedFd<'_>>,
        offset: u64,
        length: u64,
        protection: Protection,
        sharing: Sharing,
    ) -> io::Result<Self> {
        let protection = match protection {
            Protection::Read => ProtFlags::READ,
            Protection::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        let flags = match sharing {
            Sharing::Shared => MapFlags::SHARED,
            Sharing::Private => MapFlags::PRIVATE,
        };
        let size = usize::try_from(length).map_err(|_| rustix::io::Errno::NOMEM)?;
        let address = match file {
            // SAFETY: the kernel chooses an address that is free.
            Some(file) => unsafe { mmap(ptr::null_mut(), size, protection, flags, file, offset) },
            // SAFETY: as above.
            None => unsafe { mmap_anonymous(ptr::null_mut(), size, protection, flags) },
        }?;
        Ok(Self { address: address as u64, length })
    }

    /// Where it is.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// munmap(2).
    pub fn unmap(self) -> io::Result<()> {
        // SAFETY: the range is a mapping of ours, into which no reference points.
        unsafe { munmap(self.address as *mut _, self.length as usize) }.map_err(io::Error::from)
    }

    /// A place in it.
    pub fn cell(&self, offset: u64, width: Width) -> Result<Cell, Failure> {
        self.range(offset, width.bytes()).map(|address| Cell { address, width })
    }

    /// pread(2) into it. Not with a slice: the memory may be inaccessible, which the kernel
    /// then reports.
    pub fn read_from(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        at: u64,
        length: u32,
    ) -> Result<u64, Failure> {
        let address = self.range(at, length.into())?;
        // SAFETY: the range is inside a mapping of ours, into which no reference points.
        let count = unsafe {
            libc::pread(file.as_raw_fd(), address as *mut _, length as usize, offset as i64)
        };
        u64::try_from(count).map_err(|_| io::Error::last_os_error().into())
    }

    /// Writes a pattern in which every word differs, and which differs from seed to seed.
    pub fn fill(&self, seed: u64) {
        for word in self.words() {
            word.store(pattern(word.address, seed));
        }
    }

    /// Looks for words that no longer hold the pattern.
    pub fn verify(&self, seed: u64) -> PatternReport {
        let mut report = PatternReport { wrong_words: 0, first_wrong: None };
        for word in self.words() {
            if word.load() != pattern(word.address, seed) {
                report.wrong_words += 1;
                report.first_wrong.get_or_insert(word.address);
            }
        }
        report
    }

    fn words(&self) -> impl Iterator<Item = Cell> {
        let words = self.length / Width::Quad.bytes();
        let address = self.address;
        (0..words).map(move |word| Cell { address: address + word * 8, width: Width::Quad })
    }

    fn range(&self, offset: u64, length: u64) -> Result<u64, Failure> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok(self.address + offset),
            _ => Err(Failure::Refused(format!(
                "{length} bytes at {offset:#x} are not inside the mapping of {:#x} bytes",
                self.length
            ))),
        }
    }
}

impl Cell {
    /// One load.
    pub fn load(self) -> u64 {
        // SAFETY: cells are only made for places in mappings, into which no reference points.
        unsafe { access::load(self.address, self.width) }
    }

    /// One store.
    pub fn store(self, value: u64) {
        // SAFETY: as above.
        unsafe { access::store(self.address, self.width, value) }
    }
}

/// An odd factor, so that different addresses never give the same word.
fn pattern(address: u64, seed: u64) -> u64 {
    (address ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anonymous(length: u64) -> Mapping {
        Mapping::new(None, 0, length, Protection::ReadWrite, Sharing::Private).unwrap()
    }

    #[test]
    fn every_width_moves_its_own_bytes_only() {
        let mapping = anonymous(4096);
        let cell = |offset, width| mapping.cell(offset, width).unwrap();
        cell(0, Width::Quad).store(0x8877_6655_4433_2211);
        assert_eq!(cell(0, Width::Byte).load(), 0x11);
        assert_eq!(cell(2, Width::Word).load(), 0x4433);
        assert_eq!(cell(4, Width::Long).load(), 0x8877_6655);
        cell(1, Width::Byte).store(u64::MAX);
        cell(4, Width::Word).store(0xdead_beef);
        assert_eq!(cell(0, Width::Quad).load(), 0x8877_beef_4433_ff11);
        mapping.unmap().unwrap();
    }

    #[test]
    fn places_outside_are_refused() {
        let mapping = anonymous(4096);
        assert!(mapping.cell(4092, Width::Long).is_ok());
        assert!(mapping.cell(4093, Width::Long).is_err());
        assert!(mapping.cell(u64::MAX, Width::Byte).is_err());
        mapping.unmap().unwrap();
    }

    #[test]
    fn verification_finds_what_changed() {
        let mapping = anonymous(1 << 16);
        mapping.fill(7);
        assert_eq!(mapping.verify(7), PatternReport { wrong_words: 0, first_wrong: None });
        mapping.cell(4096, Width::Byte).unwrap().store(!pattern(mapping.address() + 4096, 7));
        let first_wrong = Some(mapping.address() + 4096);
        assert_eq!(mapping.verify(7), PatternReport { wrong_words: 1, first_wrong });
        assert_eq!(mapping.verify(8).wrong_words, (1 << 16) / 8);
        mapping.unmap().unwrap();
    }
}
