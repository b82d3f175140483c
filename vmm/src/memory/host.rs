//! Host memory that stands behind guest memory, and giving it back.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, MmapRegion,
};

use super::MemoryError;

/// What a piece of guest memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// Private anonymous memory.
    #[default]
    Anonymous,
    /// A memfd, which other processes can be given.
    Memfd,
}

impl Backing {
    /// Bytes in a page of this backing: the least that can be given back.
    pub fn page_size(self) -> u64 {
        4096
    }
}

/// What KVM maps with one entry where it can. Each time a memory slot goes, it forgets all that it
/// has mapped, so a guest of small pages would take many thousand faults to come back.
const HUGE_PAGE: usize = 2 << 20;

/// A mapping of host memory for a range of guest addresses. Nothing is populated until touched.
///
/// It is huge pages where the host has them.
#[derive(Clone)]
pub struct HostMemory {
    mapping: Arc<GuestRegionMmap>,
    memfd: Option<Arc<File>>,
}

impl HostMemory {
    /// Maps `size` bytes for the guest address `start`.
    pub fn map(start: GuestAddress, size: u64, backing: Backing) -> Result<Self, MemoryError> {
        let map_error =
            |source: MmapRegionError| MemoryError::Map { size, source: io::Error::other(source) };
        let length = usize::try_from(size).map_err(|_| MemoryError::TooLarge { size })?;
        let memfd = match backing {
            Backing::Anonymous => None,
            Backing::Memfd => {
                Some(Arc::new(memfd(size).map_err(|source| MemoryError::Map { size, source })?))
            }
        };
        // NORESERVE: a region is as large as the guest might ever want, not as it is.
        let (file, flags) = match &memfd {
            None => (None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
            Some(file) => (Some(FileOffset::from_arc(Arc::clone(file), 0)), libc::MAP_SHARED),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fences = Fences::around_aligned_hole(length);
        let region = MmapRegion::build(file, length, protection, flags | libc::MAP_NORESERVE)
            .map_err(map_error)?;
        drop(fences);
        // SAFETY: the range is a mapping of our own, and the advice changes nothing in it. A host
        // that has no huge pages refuses it, which is as good.
        unsafe { libc::madvise(region.as_ptr().cast(), length, libc::MADV_HUGEPAGE) };
        let mapping = GuestRegionMmap::new(region, start).ok_or(MemoryError::TooLarge { size })?;
        Ok(Self { mapping: Arc::new(mapping), memfd })
    }

    /// The mapping, for those who read and write guest memory.
    pub fn mapping(&self) -> Arc<GuestRegionMmap> {
        Arc::clone(&self.mapping)
    }

    /// First guest address.
    pub fn start(&self) -> GuestAddress {
        self.mapping.start_addr()
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.mapping.len()
    }

    /// Host address of the byte at `offset`, which must lie inside.
    pub fn host_address(&self, offset: u64) -> u64 {
        let start = self.mapping.get_host_address(MemoryRegionAddress(0));
        start.expect("offset 0 lies inside any mapping") as u64 + offset
    }

    /// Has every access to `offsets` fail, whoever makes it. Whole pages of the backing.
    pub fn forbid(&self, offsets: Range<u64>) -> io::Result<()> {
        self.protect(offsets, libc::PROT_NONE)
    }

    /// Undoes [`Self::forbid`].
    pub fn permit(&self, offsets: Range<u64>) -> io::Result<()> {
        self.protect(offsets, libc::PROT_READ | libc::PROT_WRITE)
    }

    fn protect(&self, offsets: Range<u64>, protection: libc::c_int) -> io::Result<()> {
        assert!(offsets.end <= self.size(), "protecting beyond the mapping");
        let start = self.host_address(offsets.start) as *mut libc::c_void;
        let length = (offsets.end - offsets.start) as usize;
        // SAFETY: the range lies inside our own mapping (checked above), which holds guest memory only.
        // Whoever accesses it asks first whether it is there; one who did not would end this process.
        let result = unsafe { libc::mprotect(start, length, protection) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Gives the memory of `offsets` back to the host; it reads as zeros from then on.
    pub fn discard(&self, offsets: Range<u64>) -> io::Result<()> {
        assert!(offsets.end <= self.size(), "discarding beyond the mapping");
        let length = offsets.end - offsets.start;
        let result = match &self.memfd {
            Some(memfd) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                // SAFETY: a plain system call on a file that lives as long as `self`.
                unsafe {
                    libc::fallocate(memfd.as_raw_fd(), mode, offsets.start as i64, length as i64)
                }
            }
            None => {
                let start = self.host_address(offsets.start) as *mut libc::c_void;
                // SAFETY: the range lies inside our own mapping (checked above), which holds guest
                // memory only: no Rust object lives there, so its turning to zeros breaks nothing.
                unsafe { libc::madvise(start, length as usize, libc::MADV_DONTNEED) }
            }
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Reserved address space on both sides of a hole, into which the next mapping of the hole's size
/// falls: Linux takes the highest gap that is large enough.
///
/// [`MmapRegion`] cannot be told an address, and Linux aligns to huge pages by itself only since
/// 6.7. Where a mapping lands elsewhere all the same, as a small one may, it is slower, and nothing
/// worse.
struct Fences([Range<usize>; 2]);

impl Fences {
    /// None where there are no huge pages in `length`, or no room.
    fn around_aligned_hole(length: usize) -> Option<Self> {
        if !length.is_multiple_of(HUGE_PAGE) {
            return None;
        }
        let reserved = length.checked_add(HUGE_PAGE)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, where the kernel chooses, disturbs none that exists.
        let start = unsafe { libc::mmap(ptr::null_mut(), reserved, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let start = start as usize;
        let hole = start.next_multiple_of(HUGE_PAGE)..start.next_multiple_of(HUGE_PAGE) + length;
        let fences = Self([start..hole.start, hole.end..start + reserved]);
        // SAFETY: a part of our own reservation, in which nothing can be.
        unsafe { unmap(&hole) };
        Some(fences)
    }
}

impl Drop for Fences {
    fn drop(&mut self) {
        for fence in self.0.iter().filter(|fence| !fence.is_empty()) {
            // SAFETY: a part of our own reservation, in which nothing can be.
            unsafe { unmap(fence) };
        }
    }
}

/// # Safety
///
/// The range is whole pages of the caller's own, and nothing refers to what is in it.
unsafe fn unmap(range: &Range<usize>) {
    // SAFETY: as the caller promises.
    let result = unsafe { libc::munmap(range.start as *mut libc::c_void, range.len()) };
    debug_assert_eq!(result, 0, "munmap of {range:x?}: {}", io::Error::last_os_error());
}

fn memfd(size: u64) -> io::Result<File> {
    use std::os::fd::FromRawFd;
    // SAFETY: the name is a C string; the call touches no memory of ours.
    let fd = unsafe { libc::memfd_create(c"moat-guest-memory".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryRegion};

    #[test]
    fn x4_discarded_memory_reads_as_zeros_and_its_neighbours_keep_their_contents() {
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let memory = HostMemory::map(GuestAddress(0x10_0000), 0x4000, backing).unwrap();
            let mapping = memory.mapping();
            let bytes = mapping.as_volatile_slice().unwrap();
            for page in 0..4 {
                bytes.write_obj(0xdead_beef_u32, page * 0x1000).unwrap();
            }
            memory.discard(0x1000..0x3000).unwrap();
            let read = |page: usize| bytes.read_obj::<u32>(page * 0x1000).unwrap();
            assert_eq!([0, 1, 2, 3].map(read), [0xdead_beef, 0, 0, 0xdead_beef]);
        }
    }

    #[test]
    fn memory_of_huge_pages_lies_where_huge_pages_can() {
        for backing in [Backing::Anonymous, Backing::Memfd] {
            // As large as a machine's RAM: an allocator leaves gaps of less than 64 MiB, and one that
            // is hardly larger than the mapping would be taken instead of the hole.
            let is_aligned = |_| {
                let memory = HostMemory::map(GuestAddress(0), 512 << 20, backing).unwrap();
                memory.host_address(0).is_multiple_of(2 << 20)
            };
            // Another test's thread may be faster once.
            assert!((0..10).any(is_aligned), "{backing:?}");
        }
    }
}
