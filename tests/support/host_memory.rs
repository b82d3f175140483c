//! Memory of the host, as the host counts it.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::{fs, thread};

use vmm::memory::backing::{Backing, HugePageSize};

/// Bytes that the host holds of what `backing` is made of: this process's anonymous or shared memory,
/// what a file has of its file system, or all huge pages in use.
pub fn in_use(backing: &Backing) -> u64 {
    match backing {
        Backing::Anonymous => kib_of("/proc/self/status", "RssAnon:"),
        Backing::Memfd => kib_of("/proc/self/status", "RssShmem:"),
        Backing::File(path) => fs::metadata(path).unwrap().blocks() * 512,
        Backing::Hugetlb(size) => count_in_use(*size) * size.bytes(),
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

fn count_in_use(size: HugePageSize) -> u64 {
    let count = |what| read_number(directory(size).join(what)).unwrap();
    count("nr_hugepages") - count("free_hugepages")
}

fn read_number(path: PathBuf) -> io::Result<u64> {
    fs::read_to_string(path).map(|text| text.trim().parse().unwrap())
}

/// A pool of huge pages of which some are free, for as long as this lives.
pub struct HugePagePool {
    size: HugePageSize,
    before: u64,
}

impl HugePagePool {
    /// Makes `pages` of them free, no more and no less. Where that cannot be had, whatever needs it is
    /// skipped.
    pub fn with_free(size: HugePageSize, pages: u64) -> Option<Self> {
        let nodes = directory(size);
        let Ok(before) = read_number(nodes.join("nr_hugepages")) else {
            skip(format_args!("this host has no huge pages of {size}"));
            return None;
        };
        if count_in_use(size) != 0 {
            skip(format_args!("somebody uses huge pages of {size}"));
            return None;
        }
        let pool = Self { size, before };
        if let Err(error) = pool.resize(pages) {
            skip(format_args!("no pool of huge pages of {size} can be made: {error}"));
            return None;
        }
        if read_number(nodes.join("free_hugepages")).unwrap() != pages {
            skip(format_args!("this host does not give {pages} huge pages of {size}"));
            return None;
        }
        Some(pool)
    }

    fn resize(&self, pages: u64) -> io::Result<()> {
        fs::write(directory(self.size).join("nr_hugepages"), pages.to_string())
    }
}

/// Says, past a runner that keeps what passing tests print, what a test does without. scripts/test
/// counts these lines.
fn skip(why: impl Display) {
    let test = thread::current().name().unwrap_or_default().to_owned();
    let mut past_the_runner = io::stderr();
    writeln!(past_the_runner, "skipped: {test}: {why}").unwrap();
}

impl Drop for HugePagePool {
    fn drop(&mut self) {
        // It was possible before.
        let _ = self.resize(self.before);
    }
}
