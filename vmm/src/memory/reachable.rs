//! Which blocks of a virtio-mem region devices may access: those that are plugged and not being unplugged.
//!
//! This is not the device's `BlockMap`, which is the state that the driver sees, and changes after a request
//! has been carried out. This is what may be accessed, and changes during a request: a block that is being
//! unplugged becomes unreachable before its memory is freed, but stays plugged until the driver gets its
//! answer, which may be that it stays plugged. With `--enforce off` every block is reachable, whatever is
//! plugged. This is also read on each DMA without a lock, while a block's bit and its memory slot must change
//! together ([`Windows`](super::windows)). Between two requests, in strict mode, both are the same.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::dma::{DmaOrigin, Reachability};
use devices::virtio::mem::{BlockRange, Region};

use crate::violations::refusals::{Refusals, RefusedDevice};

/// One bit a block, set while vCPUs and devices can reach it.
pub struct ReachableBlocks {
    region: Region,
    words: Vec<AtomicU64>,
    refused: AtomicU64,
    refusals: Refusals,
}

impl ReachableBlocks {
    /// No block of `region` is reachable. Refused accesses of devices are recorded in `refusals`.
    pub fn none(region: Region, refusals: Refusals) -> Self {
        let words = region.block_count().div_ceil(64);
        Self {
            region,
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            refused: AtomicU64::new(0),
            refusals,
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

    /// How many accesses of devices were refused.
    pub fn refusal_count(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Which devices were refused, latest last.
    pub fn refused_devices(&self) -> Vec<RefusedDevice> {
        self.refusals.devices()
    }
}

impl Reachability for ReachableBlocks {
    fn permits(&self, offset: u64, len: usize) -> bool {
        let block_size = self.region.block_size();
        let last = offset + (len as u64).saturating_sub(1);
        (offset / block_size..=last / block_size)
            .all(|block| block < self.region.block_count() && self.contains(block))
    }

    fn refused(&self, origin: DmaOrigin<'_>, offset: u64, len: usize) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let address = self.region.address() + offset;
        let block = offset / self.region.block_size();
        self.refusals.record(origin, address, len as u64, block);
    }
}

#[cfg(test)]
mod tests {
    use devices::dma::ChainId;

    use super::*;
    use crate::violations::refusals::Chain;

    #[test]
    fn x2_a_device_reaches_whole_ranges_of_plugged_blocks_only() {
        let region = Region::new(0, 256 * 0x1000, 0x1000, 0x1000).unwrap();
        let blocks = ReachableBlocks::none(region, Refusals::default());
        blocks.insert(BlockRange::new(62..66).unwrap());
        assert!(blocks.permits(62 * 0x1000, 4 * 0x1000));
        assert!(!blocks.permits(62 * 0x1000 - 1, 2));
        assert!(!blocks.permits(66 * 0x1000 - 1, 2));
        blocks.remove(BlockRange::new(63..64).unwrap());
        assert!(!blocks.permits(62 * 0x1000, 0x1001));
        assert!(blocks.permits(64 * 0x1000, 0x2000));
        assert!(!blocks.permits(255 * 0x1000, 0x2000));
    }

    #[test]
    fn a_refused_device_is_kept_with_a_count() {
        let region = Region::new(0x10_0000, 16 * 0x1000, 0x1000, 0x1000).unwrap();
        let blocks = ReachableBlocks::none(region, Refusals::default());
        let chain = Some(ChainId { queue: 1, head: 7 });
        for (device, requester, chain, offset) in [
            ("rng0", 0x10, None, 0x2008),
            ("mem0", 0x1_0000, None, 0x3000),
            ("rng0", 0x10, chain, 0x4010),
        ] {
            blocks.refused(DmaOrigin { device, requester, chain }, offset, 16);
        }
        assert_eq!(blocks.refusal_count(), 3);
        let devices: Vec<_> = blocks
            .refused_devices()
            .into_iter()
            .map(|device| (device.device, device.count, device.chain, device.address, device.block))
            .collect();
        let first = ("mem0".to_owned(), 1, None, 0x10_3000, 3);
        let chain = Some(Chain { queue: 1, descriptor: 7 });
        assert_eq!(devices, [first, ("rng0".to_owned(), 2, chain, 0x10_4010, 4)]);
    }
}
