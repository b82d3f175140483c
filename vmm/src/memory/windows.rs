//! Which memory slots the blocks of a region are in.
//!
//! The region is cut into *windows*, aligned pieces of equal size. Plugging the first block of a window
//! sets one slot for all of it, and other blocks of it come and go without a change of slots. When a vCPU
//! is refused an unplugged block, all of these are *withdrawn*: a window is left with a slot for each run
//! of plugged blocks.
//!
//! KVM cannot shrink a slot in place, so for a moment a withdrawal has neighbours in no slot either; every
//! vCPU is out of KVM_RUN meanwhile. The slots that a withdrawal would take are claimed when blocks are
//! plugged or unplugged. Where there are no more, windows are put under single slots again; and where
//! that is not enough, the driver is told BUSY.
//!
//! A vCPU may have blocks withdrawn at any moment, between any two calls.

use std::collections::BTreeMap;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use devices::virtio::mem::{BlockRange, Region};
use log::info;

use super::host::HostMemory;
use super::reachable::ReachableBlocks;
use super::slots::{MemorySlots, SlotError, SlotId};
use crate::exit::{Ending, EndingCell};
use crate::quiesce::VcpuGate;

/// The least size of a window. What KVM keeps for each page of a slot bounds it from above.
const WINDOW_BYTES: u64 = 1 << 30;
/// The number of windows that a region has at most, unless its blocks are as large.
const WINDOWS: u64 = 256;

/// A piece of the region with blocks that are plugged, or are in slots still.
#[derive(Default)]
struct Window {
    /// How many runs of plugged blocks there are in it at most, while blocks of it are being unplugged;
    /// else just as many.
    runs: u32,
    /// Disjoint ranges of blocks that include all plugged ones, in no order.
    slots: Vec<(Range<u64>, SlotId)>,
}

impl Window {
    /// How many slots have to be claimed for it.
    fn claim(&self) -> u32 {
        self.runs.max(self.slots.len() as u32)
    }

    /// What of `blocks` is in no slot.
    fn gaps(&self, blocks: Range<u64>) -> Vec<Range<u64>> {
        let mut covered: Vec<_> = self.slots.iter().map(|(range, _)| range).collect();
        covered.sort_by_key(|range| range.start);
        let mut gaps = Vec::new();
        let mut next = blocks.start;
        for range in covered {
            gaps.push(next..range.start.min(blocks.end));
            next = next.max(range.end);
        }
        gaps.push(next..blocks.end);
        gaps.retain(|gap| !gap.is_empty());
        gaps
    }
}

/// What becomes of a window.
struct Plan {
    window: u64,
    runs: u32,
    /// What is to be in slots, each range in one of its own, and is in none.
    gaps: Vec<Range<u64>>,
}

/// Blocks on their way out. They are reachable no more.
#[must_use]
pub struct Unplugging {
    blocks: Vec<BlockRange>,
    /// The windows that they are in, and how many runs of plugged blocks those had before.
    before: Vec<(u64, u32)>,
    /// And how many they will have.
    after: Vec<(u64, u32)>,
}

impl Unplugging {
    /// The blocks, run by run.
    pub fn blocks(&self) -> &[BlockRange] {
        &self.blocks
    }
}

/// The windows of a region.
pub struct Windows {
    region: Region,
    memory: HostMemory,
    slots: MemorySlots,
    gate: Arc<VcpuGate>,
    ending: Arc<EndingCell>,
    /// The blocks that are plugged.
    reachable: Arc<ReachableBlocks>,
    windows: BTreeMap<u64, Window>,
    window_blocks: u64,
    claimed: u32,
}

impl Windows {
    /// No block of `region` is plugged; `memory` is what stands behind them.
    pub fn new(
        region: Region,
        memory: HostMemory,
        slots: MemorySlots,
        gate: Arc<VcpuGate>,
        reachable: Arc<ReachableBlocks>,
        ending: Arc<EndingCell>,
    ) -> Self {
        let window_bytes = WINDOW_BYTES.max((region.size() / WINDOWS).next_power_of_two());
        let window_blocks = (window_bytes / region.block_size()).max(1);
        let windows = BTreeMap::new();
        Self { region, memory, slots, gate, ending, reachable, windows, window_blocks, claimed: 0 }
    }

    /// Has `range`, whose memory is there, in slots, and reachable. On an error none of it is reachable.
    pub fn plug(&mut self, range: BlockRange) -> Result<(), SlotError> {
        let plans = self.claim(|windows| windows.plan_plug(range))?;
        let covered = self.cover(&plans);
        if covered.is_ok() {
            for plan in plans {
                self.windows.entry(plan.window).or_default().runs = plan.runs;
            }
            self.reachable.insert(range);
            // A vCPU may just have been refused them.
            self.slots.count_change();
        }
        self.adjust_claim();
        covered
    }

    /// Makes `range` unreachable, if there are slots for what will be left.
    pub fn begin_unplug(&mut self, range: BlockRange) -> Result<Unplugging, SlotError> {
        let plans = self.claim(|windows| windows.plan_unplug(range))?;
        let mut unplugging =
            Unplugging { blocks: vec![range], before: Vec::new(), after: Vec::new() };
        for Plan { window: index, runs, .. } in plans {
            let window = self.windows.entry(index).or_default();
            unplugging.before.push((index, window.runs));
            unplugging.after.push((index, runs));
            window.runs = window.runs.max(runs);
        }
        self.reachable.remove(range);
        Ok(unplugging)
    }

    /// Makes everything unreachable.
    pub fn begin_unplug_all(&mut self) -> Unplugging {
        let all = self.region.blocks();
        let runs = self.reachable.runs(all.indices());
        self.reachable.remove(all);
        let before: Vec<_> =
            self.windows.iter().map(|(index, window)| (*index, window.runs)).collect();
        Unplugging {
            blocks: runs.into_iter().filter_map(BlockRange::new).collect(),
            after: before.iter().map(|(index, _)| (*index, 0)).collect(),
            before,
        }
    }

    /// The blocks are gone.
    pub fn end_unplug(&mut self, unplugging: Unplugging) {
        self.set_runs(unplugging.after);
        self.adjust_claim();
    }

    /// Takes the slots of everything away, of which nothing is plugged. On an error some stay, where
    /// nobody is any the worse for them.
    pub fn clear(&mut self) -> Result<(), SlotError> {
        let indices: Vec<u64> = self.windows.keys().copied().collect();
        let cleared = indices.into_iter().try_for_each(|index| self.set_slots(index, Vec::new()));
        self.adjust_claim();
        cleared
    }

    /// The blocks stay where they were, and are reachable again.
    pub fn cancel_unplug(&mut self, unplugging: Unplugging) {
        for range in unplugging.blocks {
            self.reachable.insert(range);
        }
        let windows = unplugging.before.iter().map(|(index, _)| *index).collect::<Vec<_>>();
        self.set_runs(unplugging.before);
        // They may have been withdrawn meanwhile.
        let uncovered = |index: &u64| {
            let covers = |run: Range<u64>| self.windows[index].gaps(run).is_empty();
            !self.reachable.runs(self.window(*index)).into_iter().all(covers)
        };
        let wanted = windows.into_iter().filter(uncovered);
        let wanted = wanted.map(|index| (index, self.reachable.runs(self.window(index)))).collect();
        if let Err(error) = self.rearrange(wanted) {
            self.fail(&error);
        }
        self.adjust_claim();
    }

    /// Takes all unplugged blocks out of the memory slots, so that touching one is an MMIO exit.
    /// Returns whether there were any.
    pub fn withdraw_unplugged(&mut self) -> Result<bool, SlotError> {
        let runs = |index: &u64| (*index, self.reachable.runs(self.window(*index)));
        self.rearrange(self.windows.keys().map(runs).collect())
    }

    /// Gives each window a single slot, and those in which nothing is plugged none.
    fn gather(&mut self) -> Result<bool, SlotError> {
        let whole = |(index, window): (&u64, &Window)| {
            let slots = (window.runs > 0).then(|| self.window(*index));
            (*index, slots.into_iter().collect())
        };
        self.rearrange(self.windows.iter().map(whole).collect())
    }

    /// Has windows have these slots. Returns whether they had others.
    fn rearrange(&mut self, mut wanted: Vec<(u64, Vec<Range<u64>>)>) -> Result<bool, SlotError> {
        wanted.retain(|(index, ranges)| {
            let slots = &self.windows[index].slots;
            slots.len() != ranges.len() || slots.iter().any(|(range, _)| !ranges.contains(range))
        });
        if wanted.is_empty() {
            return Ok(false);
        }
        let gate = Arc::clone(&self.gate);
        let _quiesced = gate.close();
        let before = self.slots.used();
        for (index, ranges) in wanted {
            self.set_slots(index, ranges)?;
        }
        self.adjust_claim();
        info!("rearranged unplugged blocks: {before} memory slots are {} now", self.slots.used());
        Ok(true)
    }

    /// Has the window's slots be `ranges`. No vCPU may run, unless nothing in the window is plugged.
    ///
    /// On an error they are what they were. Where KVM refuses that too, plugged blocks may be in no
    /// slot, and the machine ends.
    fn set_slots(&mut self, index: u64, ranges: Vec<Range<u64>>) -> Result<(), SlotError> {
        let window = self.windows.entry(index).or_default();
        let before = window.slots.iter().map(|(range, _)| range.clone()).collect();
        self.try_set_slots(index, ranges).inspect_err(|_| {
            if let Err(error) = self.try_set_slots(index, before) {
                self.fail(&error);
            }
        })
    }

    fn fail(&self, error: &SlotError) {
        let what = format!("KVM has taken memory from the guest: {error}");
        self.ending.set(Ending::MachineError(what));
    }

    fn try_set_slots(&mut self, index: u64, ranges: Vec<Range<u64>>) -> Result<(), SlotError> {
        let window = self.windows.entry(index).or_default();
        let (kept, mut gone): (Vec<_>, Vec<_>) =
            mem::take(&mut window.slots).into_iter().partition(|(range, _)| ranges.contains(range));
        window.slots = kept;
        while let Some((range, slot)) = gone.pop() {
            if let Err((slot, error)) = self.slots.clear(slot) {
                gone.push((range, slot));
                window.slots.append(&mut gone);
                return Err(error);
            }
        }
        for range in ranges {
            if !window.slots.iter().any(|(kept, _)| *kept == range) {
                let slot = self.slots.set(&self.memory, byte_offsets(&self.region, &range))?;
                window.slots.push((range, slot));
            }
        }
        Ok(())
    }

    fn set_runs(&mut self, runs: Vec<(u64, u32)>) {
        for (index, runs) in runs {
            self.windows.entry(index).or_default().runs = runs;
        }
    }

    /// The blocks of a window.
    fn window(&self, index: u64) -> Range<u64> {
        let end = (index + 1) * self.window_blocks;
        index * self.window_blocks..end.min(self.region.block_count())
    }

    /// `range` in pieces, each in a window: that window's number, the piece, and how many blocks beside
    /// the piece are plugged and in the window, 0 to 2.
    fn pieces(&self, range: BlockRange) -> impl Iterator<Item = (u64, Range<u64>, u32)> {
        let Range { start, end } = range.indices();
        (start / self.window_blocks..end.div_ceil(self.window_blocks)).map(move |index| {
            let window = self.window(index);
            let piece = start.max(window.start)..end.min(window.end);
            let left = piece.start > window.start && self.reachable.contains(piece.start - 1);
            let right = piece.end < window.end && self.reachable.contains(piece.end);
            (index, piece, u32::from(left) + u32::from(right))
        })
    }

    fn plan_plug(&self, range: BlockRange) -> Vec<Plan> {
        let plan = |(index, piece, neighbours)| match self.windows.get(&index) {
            Some(window) => {
                let runs = window.runs + 1 - neighbours;
                Plan { window: index, runs, gaps: window.gaps(piece) }
            }
            None => Plan { window: index, runs: 1, gaps: vec![self.window(index)] },
        };
        self.pieces(range).map(plan).collect()
    }

    fn plan_unplug(&self, range: BlockRange) -> Vec<Plan> {
        let plan = |(index, _, neighbours)| {
            let runs = self.windows.get(&index).map_or(0, |window| window.runs);
            Plan { window: index, runs: runs + neighbours - 1, gaps: Vec::new() }
        };
        self.pieces(range).map(plan).collect()
    }

    /// Claims what a change takes, and returns the change.
    fn claim(&mut self, plan: impl Fn(&Self) -> Vec<Plan>) -> Result<Vec<Plan>, SlotError> {
        let plans = plan(self);
        if self.claim_for(&plans).is_ok() {
            return Ok(plans);
        }
        // Windows without a plugged block may have slots still, and blocks that were plugged after a
        // withdrawal have more than they need.
        self.gather()?;
        let plans = plan(self);
        self.claim_for(&plans)?;
        Ok(plans)
    }

    fn claim_for(&mut self, plans: &[Plan]) -> Result<(), SlotError> {
        let more = |plan: &Plan| {
            let (slots, claim) = self
                .windows
                .get(&plan.window)
                .map_or((0, 0), |window| (window.slots.len(), window.claim()));
            plan.runs.max((slots + plan.gaps.len()) as u32).saturating_sub(claim)
        };
        let count = plans.iter().map(more).sum();
        self.slots.claim(count)?;
        self.claimed += count;
        Ok(())
    }

    /// Forgets windows that have nothing left, and gives back what is claimed and not needed.
    fn adjust_claim(&mut self) {
        self.windows.retain(|_, window| window.claim() > 0);
        let needed = self.windows.values().map(Window::claim).sum();
        self.slots.release(self.claimed - needed);
        self.claimed = needed;
    }

    /// Has all of `plans` in slots. On an error some are, which does no harm.
    fn cover(&mut self, plans: &[Plan]) -> Result<(), SlotError> {
        for plan in plans {
            for gap in &plan.gaps {
                let slot = self.slots.set(&self.memory, byte_offsets(&self.region, gap))?;
                let window = self.windows.entry(plan.window).or_default();
                window.slots.push((gap.clone(), slot));
            }
        }
        Ok(())
    }
}

fn byte_offsets(region: &Region, blocks: &Range<u64>) -> Range<u64> {
    blocks.start * region.block_size()..blocks.end * region.block_size()
}
