//! Memory of the host, as the host counts it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use vmm::memory::backing::{Backing, HugePageSize};

/// Bytes that the host holds of what `backing` is made of: this process's anonymous memory, all
/// shared memory, what a file has of its file system, or all huge pages in use.
pub fn in_use(backing: &Backing) -> u64 {
    match backing {
        Backing::Anonymous => kib_of("/proc/self/status", "RssAnon:"),
        Backing::Memfd => kib_of("/proc/meminfo", "Shmem:"),
        Backing::File(path) => fs::metadata(path).unwrap().blocks() * 512,
        Backing::Hugetlb(size) => {
            let count = |what| read_number(directory(*size).join(what));
            (count("nr_hugepages") - count("free_hugepages")) * size.bytes()
        }
    }
}

fn kib_of(file: &str, key: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    value.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

fn directory(size: HugePageSize) -> PathBuf {
    format!("/sys/kernel/mm/hugepages/hugepages-{}kB", size.bytes() / 1024).into()
}

fn read_number(path: PathBuf) -> u64 {
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().parse().unwrap()
}

/// A pool of huge pages of which some are free, for as long as this lives.
pub struct HugePagePool {
    size: HugePageSize,
    before: u64,
}

impl HugePagePool {
    /// Makes `pages` of them free, no more and no less. That takes root.
    pub fn with_free(size: HugePageSize, pages: u64) -> Self {
        let count = |what| read_number(directory(size).join(what));
        let before = count("nr_hugepages");
        let pool = Self { size, before };
        pool.resize(before - count("free_hugepages") + pages);
        assert_eq!(count("free_hugepages"), pages, "this host gives fewer huge pages of {size}");
        pool
    }

    fn resize(&self, pages: u64) {
        let path = directory(self.size).join("nr_hugepages");
        fs::write(&path, pages.to_string()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

impl Drop for HugePagePool {
    fn drop(&mut self) {
        self.resize(self.before);
    }
}
