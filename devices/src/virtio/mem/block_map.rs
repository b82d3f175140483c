//! Which blocks are plugged. This state is kept nowhere else.

use super::region::BlockRange;
use super::wire::BlockRangeState;

/// One bit a block, set where it is plugged, and their number.
///
/// The cost of an operation depends on its range only, not on the size of the region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockMap {
    words: Vec<u64>,
    plugged: u64,
}

impl BlockMap {
    /// A map of `block_count` unplugged blocks.
    pub fn new(block_count: u64) -> Self {
        Self { words: vec![0; block_count.div_ceil(u64::BITS.into()) as usize], plugged: 0 }
    }

    /// Number of plugged blocks.
    pub fn plugged(&self) -> u64 {
        self.plugged
    }

    /// The state of `range`, which must lie inside the map.
    pub fn state(&self, range: BlockRange) -> BlockRangeState {
        let mut any_plugged = false;
        let mut any_unplugged = false;
        for (word, mask) in range.words() {
            any_plugged |= self.words[word] & mask != 0;
            any_unplugged |= !self.words[word] & mask != 0;
        }
        match (any_plugged, any_unplugged) {
            (true, true) => BlockRangeState::Mixed,
            (true, false) => BlockRangeState::Plugged,
            (false, _) => BlockRangeState::Unplugged,
        }
    }

    /// Marks every block of `range` as plugged.
    pub fn plug(&mut self, range: BlockRange) {
        for (word, mask) in range.words() {
            self.plugged += u64::from((!self.words[word] & mask).count_ones());
            self.words[word] |= mask;
        }
    }

    /// Marks every block of `range` as unplugged.
    pub fn unplug(&mut self, range: BlockRange) {
        for (word, mask) in range.words() {
            self.plugged -= u64::from((self.words[word] & mask).count_ones());
            self.words[word] &= !mask;
        }
    }

    /// Marks every block as unplugged.
    pub fn unplug_all(&mut self) {
        self.words.fill(0);
        self.plugged = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = 300;

    #[derive(Debug, Clone)]
    enum Step {
        Plug(BlockRange),
        Unplug(BlockRange),
        UnplugAll,
    }

    fn range() -> impl Strategy<Value = BlockRange> {
        (0..BLOCKS)
            .prop_flat_map(|first| (Just(first), first + 1..=BLOCKS))
            .prop_map(|(first, end)| BlockRange::new(first..end).unwrap())
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => range().prop_map(Step::Plug),
            8 => range().prop_map(Step::Unplug),
            1 => Just(Step::UnplugAll),
        ]
    }

    /// A simple, slow implementation.
    struct Reference(Vec<bool>);

    impl Reference {
        fn apply(&mut self, step: &Step) {
            match step {
                Step::Plug(range) => self.fill(*range, true),
                Step::Unplug(range) => self.fill(*range, false),
                Step::UnplugAll => self.0.fill(false),
            }
        }

        fn fill(&mut self, range: BlockRange, plugged: bool) {
            let Range { start, end } = range.indices();
            self.0[start as usize..end as usize].fill(plugged);
        }

        fn state(&self, range: BlockRange) -> BlockRangeState {
            let Range { start, end } = range.indices();
            let blocks = &self.0[start as usize..end as usize];
            if blocks.iter().all(|plugged| *plugged) {
                BlockRangeState::Plugged
            } else if blocks.iter().any(|plugged| *plugged) {
                BlockRangeState::Mixed
            } else {
                BlockRangeState::Unplugged
            }
        }
    }

    proptest! {
        #[test]
        fn c4_s5_s6_s7_s8_the_map_agrees_with_a_naive_one(
            steps in proptest::collection::vec((step(), range()), 1..60)
        ) {
            let mut map = BlockMap::new(BLOCKS);
            let mut reference = Reference(vec![false; BLOCKS as usize]);
            for (step, query) in &steps {
                match step {
                    Step::Plug(range) => map.plug(*range),
                    Step::Unplug(range) => map.unplug(*range),
                    Step::UnplugAll => map.unplug_all(),
                }
                reference.apply(step);
                prop_assert_eq!(map.state(*query), reference.state(*query));
                let plugged = reference.0.iter().filter(|plugged| **plugged).count();
                prop_assert_eq!(map.plugged(), plugged as u64);
            }
        }
    }
}
