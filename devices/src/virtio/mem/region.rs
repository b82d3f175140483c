//! The device-managed region: where it lies, and how addresses become blocks.

use std::ops::Range;

use thiserror::Error;

use super::wire::RequestedRange;

/// Number of a block, counted from the start of the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockIndex(pub u64);

/// A run of blocks inside a region. Never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRange {
    first: u64,
    count: u64,
}

impl BlockRange {
    /// The blocks `first..end`; none if that is empty.
    pub fn new(range: Range<u64>) -> Option<Self> {
        let count = range.end.checked_sub(range.start)?;
        (count > 0).then_some(Self { first: range.start, count })
    }

    /// The first block.
    pub fn first(self) -> BlockIndex {
        BlockIndex(self.first)
    }

    /// How many blocks.
    pub fn count(self) -> u64 {
        self.count
    }

    /// The block numbers, as a half-open range.
    pub fn indices(self) -> Range<u64> {
        self.first..self.first + self.count
    }

    /// Where the blocks are in a map of one bit a block: the words, each with the bits in it.
    pub fn words(self) -> impl Iterator<Item = (usize, u64)> {
        const BITS: u64 = u64::BITS as u64;
        let Range { start, end } = self.indices();
        (start / BITS..end.div_ceil(BITS)).map(move |word| {
            let first_bit = word * BITS;
            let from = start.max(first_bit) - first_bit;
            let to = end.min(first_bit + BITS) - first_bit;
            (word as usize, (u64::MAX >> (BITS - (to - from))) << from)
        })
    }
}

/// Why a region is invalid.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RegionError {
    /// C1.
    #[error(
        "block size {block_size:#x} must be a power of two of at least {minimum:#x}, the page size of its backing"
    )]
    BlockSize {
        /// Bytes asked for.
        block_size: u64,
        /// The smallest valid size, in bytes.
        minimum: u64,
    },
    /// C2.
    #[error("region address {address:#x} must be a multiple of the block size {block_size:#x}")]
    Address {
        /// First address asked for.
        address: u64,
        /// Bytes in a block.
        block_size: u64,
    },
    /// C2.
    #[error(
        "region size {size:#x} must be a multiple of the block size {block_size:#x}, and not zero"
    )]
    Size {
        /// Bytes asked for.
        size: u64,
        /// Bytes in a block.
        block_size: u64,
    },
    /// The region does not end below 2^64.
    #[error("region {address:#x}+{size:#x} runs past the end of the address space")]
    Wraps {
        /// First address asked for.
        address: u64,
        /// Bytes asked for.
        size: u64,
    },
}

/// Where a device's memory lies. Never changes (C3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    address: u64,
    block_size: u64,
    block_count: u64,
}

impl Region {
    /// A region of `size` bytes at `address`. `minimum_block_size` is the page size of its
    /// backing.
    pub fn new(
        address: u64,
        size: u64,
        block_size: u64,
        minimum_block_size: u64,
    ) -> Result<Self, RegionError> {
        if !block_size.is_power_of_two() || block_size < minimum_block_size {
            return Err(RegionError::BlockSize { block_size, minimum: minimum_block_size });
        }
        if !address.is_multiple_of(block_size) {
            return Err(RegionError::Address { address, block_size });
        }
        if size == 0 || !size.is_multiple_of(block_size) {
            return Err(RegionError::Size { size, block_size });
        }
        if address.checked_add(size).is_none() {
            return Err(RegionError::Wraps { address, size });
        }
        Ok(Self { address, block_size, block_count: size / block_size })
    }

    /// First guest address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes in a block.
    pub fn block_size(&self) -> u64 {
        self.block_size
    }

    /// Number of blocks.
    pub fn block_count(&self) -> u64 {
        self.block_count
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.block_count * self.block_size
    }

    /// All blocks.
    pub fn blocks(&self) -> BlockRange {
        BlockRange { first: 0, count: self.block_count }
    }

    /// The block that a guest address lies in.
    pub fn block_at(&self, address: u64) -> Option<BlockIndex> {
        let block = address.checked_sub(self.address)? / self.block_size;
        (block < self.block_count).then_some(BlockIndex(block))
    }

    /// The bytes of `range`, counted from the start of the region.
    pub fn byte_offsets(&self, range: BlockRange) -> Range<u64> {
        let Range { start, end } = range.indices();
        start * self.block_size..end * self.block_size
    }

    /// The blocks that a request names, if they are whole blocks, at least one, within the first
    /// `usable_blocks` (rows P1 to P4, U1 to U4, S1 to S4).
    pub fn resolve(&self, requested: RequestedRange, usable_blocks: u64) -> Option<BlockRange> {
        let offset = requested.address.checked_sub(self.address)?;
        if !offset.is_multiple_of(self.block_size) {
            return None;
        }
        let first = offset / self.block_size;
        let range = BlockRange::new(first..first.checked_add(requested.block_count.into())?)?;
        (range.indices().end <= usable_blocks).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn c1_c2_regions_are_whole_aligned_blocks() {
        use RegionError as E;
        let new = |address, size, block_size| Region::new(address, size, block_size, 4096);
        assert_eq!(
            new(0, 8 * MIB, 3 * MIB),
            Err(E::BlockSize { block_size: 3 * MIB, minimum: 4096 })
        );
        assert_eq!(new(0, 8 * MIB, 2048), Err(E::BlockSize { block_size: 2048, minimum: 4096 }));
        assert_eq!(new(0, 8 * MIB, 0), Err(E::BlockSize { block_size: 0, minimum: 4096 }));
        assert_eq!(
            new(MIB, 8 * MIB, 2 * MIB),
            Err(E::Address { address: MIB, block_size: 2 * MIB })
        );
        assert_eq!(new(0, 7 * MIB, 2 * MIB), Err(E::Size { size: 7 * MIB, block_size: 2 * MIB }));
        assert_eq!(new(0, 0, 2 * MIB), Err(E::Size { size: 0, block_size: 2 * MIB }));
        let last = u64::MAX - 2 * MIB + 1;
        assert_eq!(new(last, 2 * MIB, 2 * MIB), Err(E::Wraps { address: last, size: 2 * MIB }));
        assert_eq!(new(4 * MIB, 8 * MIB, 2 * MIB).unwrap().block_count(), 4);
    }

    #[test]
    fn addresses_become_blocks() {
        let region = Region::new(4 * MIB, 8 * MIB, 2 * MIB, 4096).unwrap();
        assert_eq!(region.block_at(4 * MIB - 1), None);
        assert_eq!(region.block_at(4 * MIB), Some(BlockIndex(0)));
        assert_eq!(region.block_at(12 * MIB - 1), Some(BlockIndex(3)));
        assert_eq!(region.block_at(12 * MIB), None);
    }
}
