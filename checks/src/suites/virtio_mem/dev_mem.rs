//! /dev/mem in a guest, and the parts of a region that it is asked for.

use std::ops::Range;

use testvm::{
    PAGE,
    guest::{File, Guest, GuestError, Mapping, OpenFlags, Process, Protection, Sharing},
};

/// /dev/mem, opened for reading and writing.
pub struct DevMem {
    /// Who has it open.
    pub process: Process,
    file: File,
}

impl DevMem {
    /// Opens it in a process of its own.
    pub fn open(guest: &Guest) -> Result<Self, GuestError> {
        let process = guest.spawn()?;
        let file = process.open("/dev/mem", OpenFlags::RDWR)?;
        Ok(Self { process, file })
    }

    /// Maps a page.
    pub fn map(&self, address: u64) -> Result<Mapping, GuestError> {
        self.map_pages(address, 1)
    }

    /// Maps pages.
    pub fn map_pages(&self, address: u64, pages: u64) -> Result<Mapping, GuestError> {
        self.file.mmap(address, pages * PAGE, Protection::ReadWrite, Sharing::Shared)
    }

    /// Maps a page, whose copy is the process's own once it has written to it.
    pub fn map_private(&self, address: u64) -> Result<Mapping, GuestError> {
        self.file.mmap(address, PAGE, Protection::ReadWrite, Sharing::Private)
    }

    /// pread(2).
    pub fn read(&self, address: u64) -> Result<Vec<u8>, GuestError> {
        self.file.read_at(address, 8)
    }

    /// pwrite(2).
    pub fn write(&self, address: u64) -> Result<(), GuestError> {
        self.file.write_at(address, &[0; 8]).map(drop)
    }
}

/// The region's first page: plugged, where anything is.
pub fn first_page(region: &Range<u64>) -> u64 {
    region.start
}

/// A page in the middle of the region, in memory that no scenario has plugged.
pub fn middle_page(region: &Range<u64>) -> u64 {
    region.start.midpoint(region.end)
}

/// The region's last page, which no scenario has plugged either.
pub fn last_page(region: &Range<u64>) -> u64 {
    region.end - PAGE
}

/// The page before the region.
pub fn page_below(region: &Range<u64>) -> u64 {
    region.start - PAGE
}

/// The page behind the region.
pub fn page_above(region: &Range<u64>) -> u64 {
    region.end
}
