//! How much memory the host has allocated for a test.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::{fs, thread};

use testvm::huge_pages::{HugePagePool, pages_in_use};
use vmm::memory::backing::{Backing, HugePageSize};

/// Bytes that the host holds of what `backing` is made of: this process's anonymous or shared memory,
/// what a file has of its file system, or all huge pages in use.
pub fn in_use(backing: &Backing) -> u64 {
    match backing {
        Backing::Anonymous => kib_of("/proc/self/status", "RssAnon:"),
        Backing::Memfd => kib_of("/proc/self/status", "RssShmem:"),
        Backing::File(path) => fs::metadata(path).unwrap().blocks() * 512,
        Backing::Hugetlb2M => in_pool(HugePageSize::Size2M),
        Backing::Hugetlb1G => in_pool(HugePageSize::Size1G),
    }
}

fn in_pool(size: HugePageSize) -> u64 {
    pages_in_use(size).unwrap() * size.bytes()
}

fn kib_of(file: &str, key: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    value.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// A pool with this many free pages, and no others in use. Where that is not possible, the test is skipped.
pub fn huge_pages(size: HugePageSize, free: u64) -> Option<HugePagePool> {
    if pages_in_use(size).is_ok_and(|pages| pages != 0) {
        skip(format_args!("another process uses huge pages of {size}"));
        return None;
    }
    HugePagePool::with_free(size, free).map_err(skip).ok()
}

/// Prints what a test skips and why, even if the test runner captures the output of passing tests.
/// scripts/test counts these lines.
pub fn skip(why: impl Display) {
    let test = thread::current().name().unwrap_or_default().to_owned();
    let mut past_the_runner = io::stderr();
    writeln!(past_the_runner, "skipped: {test}: {why}").unwrap();
}
