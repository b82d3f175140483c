//! Host memory of every backing: its contents, and that it is returned to the host.

use std::fs;

use tempfile::TempDir;
use vm_memory::Bytes;

use super::*;

const MIB: u64 = 1 << 20;
const HUGE_PAGES: Backing = Backing::Hugetlb2M;

fn map(size: u64, config: impl Into<HostMemoryConfig>) -> Result<HostMemory, MemoryError> {
    HostMemory::map(GuestAddress(1 << 30), size, &config.into(), &mut KeptFile::default())
}

/// Free pages of 2 MiB of this host's pool.
fn free_huge_pages() -> u64 {
    let free = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    fs::read_to_string(free).map_or(0, |free| free.trim().parse().unwrap())
}

/// All backings that this host has memory for.
fn backings(directory: &TempDir) -> Vec<Backing> {
    let mut backings =
        vec![Backing::Anonymous, Backing::Memfd, Backing::File(directory.path().join("memory"))];
    if free_huge_pages() >= 4 {
        backings.push(HUGE_PAGES);
    }
    backings
}

/// Bytes that the host has allocated for `memory`: for a shared mapping, in its file (mincore(2)).
fn held(memory: &HostMemory) -> u64 {
    let mut pages = vec![0_u8; (memory.size() / 4096) as usize];
    let (start, length) = (memory.host_address(0) as *mut libc::c_void, memory.size() as usize);
    // SAFETY: the vector has a byte for each page of the mapping.
    let result = unsafe { libc::mincore(start, length, pages.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    pages.iter().filter(|page| **page & 1 == 1).count() as u64 * 4096
}

fn fill(memory: &HostMemory) {
    let bytes = memory.mapping();
    for offset in (0..memory.size()).step_by(4096) {
        bytes.write_obj(0xdead_beef_u32, MemoryRegionAddress(offset)).unwrap();
    }
}

fn first_words<const PAGES: usize>(memory: &HostMemory, page_size: u64) -> [u32; PAGES] {
    let word = |page| memory.mapping().read_obj(MemoryRegionAddress(page as u64 * page_size));
    std::array::from_fn(|page| word(page).unwrap())
}

#[test]
fn ranges_are_in_one_file_one_after_the_other() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("memory");
    let ranges = [(GuestAddress(0), 2 * MIB), (GuestAddress(1 << 32), MIB)];
    let config = HostMemoryConfig::from(Backing::File(path.clone()));
    let memory = HostMemory::map_ranges(&ranges, &config, &mut KeptFile::default()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 3 * MIB);
    memory.iter().for_each(fill);
    let word = |offset: u64| fs::read(&path).unwrap()[offset as usize];
    assert_eq!([0, 2 * MIB, 3 * MIB - 4096].map(word), [0xef; 3]);
    memory[1].discard(0..4096).unwrap();
    assert_eq!([0, 2 * MIB, 3 * MIB - 4096].map(word), [0xef, 0, 0xef]);
}

#[test]
fn x4_discarded_memory_is_returned_and_its_neighbours_keep_their_contents() {
    let directory = TempDir::new().unwrap();
    for backing in backings(&directory) {
        let page = backing.page_size();
        let small = HostMemoryConfig { huge_pages: false, ..backing.clone().into() };
        let memory = map(4 * page, small).unwrap();
        assert_eq!(held(&memory), 0, "{backing:?}");
        fill(&memory);
        assert_eq!(held(&memory), 4 * page, "{backing:?}");
        memory.discard(page..3 * page).unwrap();
        assert_eq!(held(&memory), 2 * page, "{backing:?}");
        assert_eq!(first_words(&memory, page), [0xdead_beef, 0, 0, 0xdead_beef], "{backing:?}");
    }
}

#[test]
fn x4_control_madvise_frees_nothing_of_a_file() {
    let directory = TempDir::new().unwrap();
    for backing in [Backing::Memfd, Backing::File(directory.path().join("memory"))] {
        let memory = map(4 * 4096, backing).unwrap();
        fill(&memory);
        memory.advise(0..memory.size(), libc::MADV_DONTNEED).unwrap();
        assert_eq!(held(&memory), 4 * 4096);
        assert_eq!(first_words(&memory, 4096), [0xdead_beef; 4]);
    }
}

#[test]
fn p7_preallocated_memory_is_allocated_before_its_first_access() {
    // Enough for several threads.
    const SIZE: u64 = 130 * MIB;
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let config = HostMemoryConfig { prealloc: true, ..backing.clone().into() };
        let memory = map(SIZE + 4 * MIB, config).unwrap();
        assert_eq!(held(&memory), 0, "{backing:?}");
        memory.populate(2 * MIB..2 * MIB + SIZE).unwrap();
        assert_eq!(held(&memory), SIZE, "{backing:?}");
        // Control.
        let memory = map(SIZE, backing.clone()).unwrap();
        memory.populate(0..SIZE).unwrap();
        assert_eq!(held(&memory), 0, "{backing:?}");
    }
}

#[test]
fn p7_if_huge_pages_run_out_none_stays_allocated() {
    let free = free_huge_pages();
    let memory = map((free + 1) * 2 * MIB, HUGE_PAGES).unwrap();
    let error = memory.populate(0..memory.size()).unwrap_err();
    assert!(error.to_string().contains("nothing is left"), "{error}");
    assert_eq!((held(&memory), free_huge_pages()), (0, free));
}

#[test]
fn memory_is_aligned_to_huge_pages() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        // As large as a machine's RAM: an allocator leaves gaps of less than 64 MiB, and one that
        // is hardly larger than the mapping would be taken instead of the hole.
        let is_aligned = |_| {
            let memory = map(512 * MIB, backing.clone()).unwrap();
            memory.host_address(0).is_multiple_of(2 << 20)
        };
        // A mapping of another test's thread may take the hole, so try again.
        assert!((0..10).any(is_aligned), "{backing:?}");
    }
}

/// The lines of a file of /proc/self about a mapping: the one that starts with its address, and those
/// after it.
fn lines_about<'a>(maps: &'a str, memory: &HostMemory) -> impl Iterator<Item = &'a str> + use<'a> {
    let address = format!("{:x}", memory.host_address(0));
    maps.lines().skip_while(move |line| !line.starts_with(&address))
}

#[test]
fn transparent_huge_pages_are_enabled_or_disabled() {
    for (huge_pages, flag, other) in [(true, "hg", "nh"), (false, "nh", "hg")] {
        let config = HostMemoryConfig { huge_pages, ..Backing::Anonymous.into() };
        let memory = map(4 * MIB, config).unwrap();
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let flags =
            lines_about(&maps, &memory).find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        let has = |flag| flags.split(' ').any(|other| other == flag);
        assert!(has(flag) && !has(other), "{flags}");
    }
}

#[test]
fn memory_comes_from_the_node_it_is_bound_to() {
    let directory = TempDir::new().unwrap();
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let config = HostMemoryConfig { host_node: Some(0), ..backing.into() };
        let memory = map(4 * MIB, config).unwrap();
        let maps = fs::read_to_string("/proc/self/numa_maps").unwrap();
        let policy = lines_about(&maps, &memory).next().unwrap();
        assert!(policy.split(' ').any(|word| word == "bind:0"), "{policy}");
    }
    let of_node = |node, backing: Backing| {
        let config = HostMemoryConfig { host_node: Some(node), ..backing.into() };
        map(4 * MIB, config).map(|_| ()).unwrap_err().to_string()
    };
    let message = of_node(60_000, Backing::Anonymous);
    assert!(message.contains("60000") && message.contains("with memory: 0"), "{message}");
    let file = Backing::File(directory.path().join("memory"));
    if !file.obeys_memory_policy() {
        let message = of_node(0, file);
        assert!(message.contains("file on disk"), "{message}");
    }
}
