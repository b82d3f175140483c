//! Which blocks of a virtio-mem region exist for devices: those that are plugged.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::dma::Reachability;
use devices::virtio::mem::{BlockRange, Region};

/// One bit a block, set while vCPUs and devices can reach it.
pub struct ReachableBlocks {
    region: Region,
    words: Vec<AtomicU64>,
    refused: AtomicU64,
}

impl ReachableBlocks {
    /// No block of `region` is reachable.
    pub fn none(region: Region) -> Self {
        let words = region.block_count().div_ceil(64);
        Self {
            region,
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            refused: AtomicU64::new(0),
        }
    }

    /// Makes `range` reachable.
    pub fn insert(&self, range: BlockRange) {
        for (word, mask) in range.words() {
            self.words[word].fetch_or(mask, Ordering::Release);
        }
    }

    /// Makes `range` unreachable.
    pub fn remove(&self, range: BlockRange) {
        for (word, mask) in range.words() {
            self.words[word].fetch_and(!mask, Ordering::Release);
        }
    }

    /// Whether a block is reachable.
    pub fn contains(&self, block: u64) -> bool {
        self.words[(block / 64) as usize].load(Ordering::Acquire) & 1 << (block % 64) != 0
    }

    /// The runs of reachable blocks in `blocks`.
    pub fn runs(&self, blocks: Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for block in blocks.filter(|block| self.contains(*block)) {
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        runs
    }

    /// How often a device was refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Reachability for ReachableBlocks {
    fn permits(&self, offset: u64, len: usize) -> bool {
        let block_size = self.region.block_size();
        let last = offset + (len as u64).saturating_sub(1);
        let permitted = (offset / block_size..=last / block_size)
            .all(|block| block < self.region.block_count() && self.contains(block));
        if !permitted {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        permitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x2_a_device_reaches_whole_ranges_of_plugged_blocks_only() {
        let region = Region::new(0, 256 * 0x1000, 0x1000, 0x1000).unwrap();
        let blocks = ReachableBlocks::none(region);
        blocks.insert(BlockRange::new(62..66).unwrap());
        assert!(blocks.permits(62 * 0x1000, 4 * 0x1000));
        assert!(!blocks.permits(62 * 0x1000 - 1, 2));
        assert!(!blocks.permits(66 * 0x1000 - 1, 2));
        blocks.remove(BlockRange::new(63..64).unwrap());
        assert!(!blocks.permits(62 * 0x1000, 0x1001));
        assert!(blocks.permits(64 * 0x1000, 0x2000));
        assert!(!blocks.permits(255 * 0x1000, 0x2000));
        assert_eq!(blocks.refused(), 4);
    }
}
