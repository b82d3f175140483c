//! The host's pools of huge pages, for tests and benchmarks: Linux's
//! Documentation/admin-guide/mm/hugetlbpage.rst.

use std::{fs, io, path::PathBuf};

use vmm::memory::backing::HugePageSize;

/// Why a pool of huge pages cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The kernel has none of this size.
    #[error("this host has no huge pages of {0}")]
    Unsupported(HugePageSize),
    /// Changing its size takes root.
    #[error("no pool of huge pages of {0} can be made: {1}")]
    Resize(HugePageSize, #[source] io::Error),
    /// Memory is scarce or fragmented.
    #[error("this host does not give {1} huge pages of {0}")]
    TooFew(HugePageSize, u64),
}

/// A pool of huge pages of which some are free, for as long as this lives.
pub struct HugePagePool {
    size: HugePageSize,
    before: u64,
}

impl HugePagePool {
    /// Makes `pages` of them free, no more and no less, besides those in use.
    pub fn with_free(size: HugePageSize, pages: u64) -> Result<Self, PoolError> {
        let unsupported = |_| PoolError::Unsupported(size);
        let before = read(size, "nr_hugepages").map_err(unsupported)?;
        let in_use = pages_in_use(size).map_err(unsupported)?;
        let pool = Self { size, before };
        pool.resize(in_use + pages).map_err(|error| PoolError::Resize(size, error))?;
        match read(size, "free_hugepages") {
            Ok(free) if free == pages => Ok(pool),
            _ => Err(PoolError::TooFew(size, pages)),
        }
    }

    fn resize(&self, pages: u64) -> io::Result<()> {
        fs::write(directory(self.size).join("nr_hugepages"), pages.to_string())
    }
}

impl Drop for HugePagePool {
    fn drop(&mut self) {
        // Fails where it could not be changed before either.
        let _ = self.resize(self.before);
    }
}

/// How many pages of this size are in use on this host, by any process.
pub fn pages_in_use(size: HugePageSize) -> io::Result<u64> {
    Ok(read(size, "nr_hugepages")? - read(size, "free_hugepages")?)
}

fn directory(size: HugePageSize) -> PathBuf {
    format!("/sys/kernel/mm/hugepages/hugepages-{}kB", size.bytes() / 1024).into()
}

fn read(size: HugePageSize, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(directory(size).join(name))?;
    text.trim().parse().map_err(io::Error::other)
}
