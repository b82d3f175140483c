//! Host memory that backs guest memory: mapping it, populating it, and returning it to the host.

use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use log::error;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, MmapRegion,
};

use super::backing::{Backing, KeptFile, MemoryFile};
use super::{MemoryError, numa};
use crate::sync::Cancellation;
use crate::threads::{self, Role};

/// How guest memory is allocated from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HostMemoryConfig {
    /// What the memory is made of.
    pub backing: Backing,
    /// Ask the host for transparent huge pages, or for none, where a backing can have them.
    pub huge_pages: bool,
    /// Allocate memory in advance, not when it is first accessed.
    pub prealloc: bool,
    /// The NUMA node of the host that the memory is allocated on; any node if none is given.
    pub host_node: Option<u16>,
}

impl Default for HostMemoryConfig {
    fn default() -> Self {
        Self { backing: Backing::default(), huge_pages: true, prealloc: false, host_node: None }
    }
}

impl HostMemoryConfig {
    /// Whether memory is allocated before it is first accessed. Pages of a pool always are.
    pub fn is_preallocated(&self) -> bool {
        self.prealloc || self.backing.page_size() > Backing::Anonymous.page_size()
    }
}

impl From<Backing> for HostMemoryConfig {
    fn from(backing: Backing) -> Self {
        Self { backing, ..Self::default() }
    }
}

/// The size of the mappings that KVM prefers. When a memory slot is removed, KVM drops all its mappings of
/// the guest, and with small pages it would take many thousand faults to restore them.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes that are populated at a time. Between two pieces the work can be cancelled.
const PIECE: u64 = 64 << 20;
/// Bytes that are discarded at a time: more, since discarding is faster.
const DISCARDED_PIECE: u64 = 1 << 30;
/// How many threads may populate memory.
const POPULATING_THREADS: u64 = 8;

/// A mapping of host memory for a range of guest addresses. Memory is allocated on first access, or by
/// [`HostMemory::populate`].
#[derive(Clone)]
pub struct HostMemory {
    mapping: Arc<GuestRegionMmap>,
    file: Option<Arc<MemoryFile>>,
    page_size: u64,
    prealloc: bool,
    work: HostWork,
}

/// Cancellation and progress of work that may take the host long.
#[derive(Debug, Clone, Default)]
pub struct HostWork {
    /// Cancels the work.
    pub cancellation: Cancellation,
    /// Bytes populated so far.
    pub populated: Arc<AtomicU64>,
}

impl HostMemory {
    /// Maps `size` bytes for the guest address `start`, from `file` if the backing has a file.
    pub fn map(
        start: GuestAddress,
        size: u64,
        config: &HostMemoryConfig,
        file: &mut KeptFile,
    ) -> Result<Self, MemoryError> {
        Ok(Self::map_ranges(&[(start, size)], config, file)?.remove(0))
    }

    /// Maps ranges of guest addresses, each (start, size). In a file they follow one another.
    pub fn map_ranges(
        ranges: &[(GuestAddress, u64)],
        config: &HostMemoryConfig,
        file: &mut KeptFile,
    ) -> Result<Vec<Self>, MemoryError> {
        let page_size = config.backing.page_size();
        let sizes = ranges.iter().map(|(_, size)| *size);
        if let Some(size) = sizes.clone().find(|size| !size.is_multiple_of(page_size)) {
            return Err(MemoryError::NotPages { size, page_size });
        }
        let file = file.open(&config.backing, sizes.sum())?;
        let mut next = 0;
        let map = |&(start, size): &(GuestAddress, u64)| {
            let offset = next;
            next += size;
            Self::map_piece(start, size, config, file.clone(), offset)
        };
        ranges.iter().map(map).collect()
    }

    /// Maps one range, from `offset` on in `file` if there is a file.
    fn map_piece(
        start: GuestAddress,
        size: u64,
        config: &HostMemoryConfig,
        file: Option<Arc<MemoryFile>>,
        offset: u64,
    ) -> Result<Self, MemoryError> {
        let map_error =
            |source: MmapRegionError| MemoryError::Map { size, source: io::Error::other(source) };
        let length = usize::try_from(size).map_err(|_| MemoryError::TooLarge { size })?;
        let page_size = config.backing.page_size();
        // NORESERVE: a region is as large as the guest may ever need, not as large as what is plugged.
        let (place, flags) = match &file {
            None => (None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
            Some(file) => (Some(FileOffset::from_arc(file.file(), offset)), libc::MAP_SHARED),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fences = Fences::around_aligned_hole(length);
        let region = MmapRegion::build(place, length, protection, flags | libc::MAP_NORESERVE)
            .map_err(map_error)?;
        drop(fences);
        let mapping = GuestRegionMmap::new(region, start).ok_or(MemoryError::TooLarge { size })?;
        let memory = Self {
            mapping: Arc::new(mapping),
            file,
            page_size,
            prealloc: config.is_preallocated(),
            work: HostWork::default(),
        };
        // Core dumps of this process leave out guest memory. A kernel without core dumps refuses the advice.
        let _ = memory.advise(0..size, libc::MADV_DONTDUMP);
        let advice = if config.huge_pages { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // A kernel without transparent huge pages refuses the advice, as does a mapping of pool pages.
        let _ = memory.advise(0..size, advice);
        if let Some(node) = config.host_node {
            memory.bind_to_node(node, &config.backing)?;
        }
        if memory.prealloc {
            // An empty range only tests whether the host supports the advice.
            memory.advise(0..0, libc::MADV_POPULATE_WRITE).map_err(MemoryError::Prealloc)?;
        }
        Ok(memory)
    }

    fn bind_to_node(&self, node: u16, backing: &Backing) -> Result<(), MemoryError> {
        if !backing.obeys_memory_policy() {
            return Err(MemoryError::NodeOfFile { node });
        }
        numa::bind(self.host_address(0), self.size(), node)
            .map_err(|source| MemoryError::Node { node, source })
    }

    /// The same memory, with cancellation and progress of [`Self::populate`] and [`Self::discard`] by `work`.
    pub fn with_work(self, work: HostWork) -> Self {
        Self { work, ..self }
    }

    /// The mapping, to read and write guest memory.
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

    /// Makes `offsets`, whole pages of the backing, inaccessible to guests, devices and this process.
    pub fn forbid(&self, offsets: Range<u64>) -> io::Result<()> {
        self.protect(offsets, libc::PROT_NONE)
    }

    /// Undoes [`Self::forbid`].
    pub fn permit(&self, offsets: Range<u64>) -> io::Result<()> {
        self.protect(offsets, libc::PROT_READ | libc::PROT_WRITE)
    }

    fn protect(&self, offsets: Range<u64>, protection: libc::c_int) -> io::Result<()> {
        let (start, length) = self.place(offsets);
        // SAFETY: the range lies inside our own mapping (`place`), which holds guest memory only.
        // Code that accesses guest memory checks first whether it is reachable; if it did not, it would
        // get SIGSEGV, which is sound.
        let result = unsafe { libc::mprotect(start, length, protection) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Allocates the memory of `offsets` now, if it is preallocated. On an error none of it stays allocated.
    pub fn populate(&self, offsets: Range<u64>) -> io::Result<()> {
        if !self.prealloc {
            return Ok(());
        }
        self.populate_in_pieces(&offsets).map_err(|error| {
            if let Err(error) = self.discard(offsets) {
                error!("cannot return memory to the host: {error}");
            }
            match error.raw_os_error() {
                // An access would have caused SIGBUS.
                Some(libc::EFAULT) => {
                    io::Error::other("nothing is left of this backing on the host")
                }
                _ => error,
            }
        })
    }

    fn populate_in_pieces(&self, offsets: &Range<u64>) -> io::Result<()> {
        let processors = thread::available_parallelism().map_or(1, NonZero::get) as u64;
        let threads = processors.min(POPULATING_THREADS);
        let share = (offsets.end - offsets.start).div_ceil(threads);
        let mut shares = self.pieces(offsets.clone(), share.max(PIECE));
        let populate = |share: Range<u64>| {
            self.pieces(share, PIECE).try_for_each(|piece| {
                self.work.cancellation.check()?;
                let bytes = piece.end - piece.start;
                self.advise(piece, libc::MADV_POPULATE_WRITE)?;
                self.work.populated.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            })
        };
        let first = shares.next();
        thread::scope(|scope| {
            let others = shares
                .map(|share| threads::spawn_scoped(scope, Role::Populate, move || populate(share)));
            let others = others.collect::<io::Result<Vec<_>>>()?;
            first.map_or(Ok(()), populate)?;
            others
                .into_iter()
                .try_for_each(|thread| thread.join().expect("populating does not panic"))
        })
    }

    /// Splits `offsets` into pieces of at least `size` bytes, whole pages except for the last.
    fn pieces(&self, offsets: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        let size = size.next_multiple_of(self.page_size);
        let starts = (offsets.start..offsets.end).step_by(size as usize);
        starts.map(move |start| start..offsets.end.min(start.saturating_add(size)))
    }

    /// Returns the memory of `offsets` to the host; it reads as zeros from then on. Does nothing once the
    /// machine ends, since all its memory is freed soon.
    pub fn discard(&self, offsets: Range<u64>) -> io::Result<()> {
        assert!(offsets.end <= self.size(), "discarding beyond the mapping");
        self.pieces(offsets, DISCARDED_PIECE)
            .take_while(|_| self.work.cancellation.check().is_ok())
            .try_for_each(|piece| self.discard_piece(piece))
    }

    fn discard_piece(&self, offsets: Range<u64>) -> io::Result<()> {
        match &self.file {
            Some(file) => {
                let start = self.mapping.file_offset().map_or(0, FileOffset::start);
                file.punch_hole(start + offsets.start..start + offsets.end)
            }
            None => self.advise(offsets, libc::MADV_DONTNEED),
        }
    }

    /// The host address and length of `offsets`, which must lie inside.
    fn place(&self, offsets: Range<u64>) -> (*mut libc::c_void, usize) {
        assert!(offsets.end <= self.size(), "beyond the mapping");
        let start = self.host_address(offsets.start) as *mut libc::c_void;
        (start, (offsets.end - offsets.start) as usize)
    }

    fn advise(&self, offsets: Range<u64>, advice: libc::c_int) -> io::Result<()> {
        let (start, length) = self.place(offsets);
        // SAFETY: the range lies inside our own mapping (`place`), which holds guest memory
        // only: no Rust object lives there, so even its turning to zeros breaks nothing.
        let result = unsafe { libc::madvise(start, length, advice) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Reserved address space on both sides of a hole that is aligned to huge pages. The next mapping of the
/// hole's size goes there, since Linux takes the highest gap that is large enough.
///
/// [`MmapRegion`] cannot map at a given address, and Linux aligns mappings to huge pages by itself only since
/// 6.7. If a mapping is placed elsewhere nevertheless, as a small one may be, it is only slower.
struct Fences([Range<usize>; 2]);

impl Fences {
    /// None if `length` is not a multiple of huge pages, or the address space is full.
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

#[cfg(test)]
#[path = "host_test.rs"]
mod tests;
