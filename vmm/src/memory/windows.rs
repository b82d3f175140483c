//! Which memory slots the blocks of a region are in.
//!
//! The region is divided into *windows*, aligned pieces of equal size. Plugging the first block of a window
//! sets one slot for the whole window, and other blocks of it are plugged and unplugged without a change of
//! slots. When a vCPU accesses an unplugged block, all unplugged blocks are *withdrawn*: each window then has
//! a slot for each run of plugged blocks.
//!
//! KVM cannot shrink a slot in place, so during a withdrawal plugged blocks are in no slot for a moment; every
//! vCPU is out of KVM_RUN meanwhile. The slots that a withdrawal would need are claimed when blocks are
//! plugged or unplugged. If there are too few, each window gets a single slot again; if that does not free
//! enough, the driver gets BUSY.
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

/// The smallest size of a window. Larger ones cost more, since KVM allocates data for each page of a slot.
const WINDOW_BYTES: u64 = 1 << 30;
/// The largest number of windows of a region, except if a single block is larger than a window.
const WINDOWS: u64 = 256;

/// A window with blocks that are plugged or still in slots.
#[derive(Default)]
struct Window {
    /// The number of runs of plugged blocks in it. While blocks of it are being unplugged, an upper bound.
    runs: u32,
    /// Disjoint ranges of blocks that include all plugged ones, in no particular order.
    slots: Vec<(Range<u64>, SlotId)>,
}

impl Window {
    /// How many slots have to be claimed for it.
    fn claim(&self) -> u32 {
        self.runs.max(self.slots.len() as u32)
    }

    /// The ranges of `blocks` that are in no slot.
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

/// A planned change of a window.
struct Plan {
    window: u64,
    runs: u32,
    /// Ranges in no slot that each have to get one.
    gaps: Vec<Range<u64>>,
}

/// Blocks that are being unplugged. They are not reachable any more.
#[must_use]
pub struct Unplugging {
    blocks: Vec<BlockRange>,
    /// The windows that they are in, with the number of runs of plugged blocks before.
    before: Vec<(u64, u32)>,
    /// The same windows with the number of runs after.
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
    /// No block of `region` is plugged; `memory` backs them.
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

    /// Puts `range`, whose memory is accessible, into slots and makes it reachable. On an error none of it is
    /// reachable.
    pub fn plug(&mut self, range: BlockRange) -> Result<(), SlotError> {
        let plans = self.claim(|windows| windows.plan_plug(range))?;
        let covered = self.cover(&plans);
        if covered.is_ok() {
            for plan in plans {
                self.windows.entry(plan.window).or_default().runs = plan.runs;
            }
            self.reachable.insert(range);
            // KVM_RUN of a vCPU may just have failed on these blocks.
            self.slots.count_change();
        }
        self.adjust_claim();
        covered
    }

    /// Makes `range` unreachable, if there are enough slots for the blocks that stay plugged.
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

    /// Completes an unplug: the memory of the blocks is freed.
    pub fn end_unplug(&mut self, unplugging: Unplugging) {
        self.set_runs(unplugging.after);
        self.adjust_claim();
    }

    /// Removes all slots. Nothing may be plugged. On an error some stay, which does no harm.
    pub fn clear(&mut self) -> Result<(), SlotError> {
        let indices: Vec<u64> = self.windows.keys().copied().collect();
        let cleared = indices.into_iter().try_for_each(|index| self.set_slots(index, Vec::new()));
        self.adjust_claim();
        cleared
    }

    /// Cancels an unplug: the blocks stay plugged, and are reachable again.
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

    /// Removes all unplugged blocks from the memory slots, so that an access to one is an MMIO exit.
    /// Returns whether any were in one.
    pub fn withdraw_unplugged(&mut self) -> Result<bool, SlotError> {
        let runs = |index: &u64| (*index, self.reachable.runs(self.window(*index)));
        self.rearrange(self.windows.keys().map(runs).collect())
    }

    /// Gives each window a single slot, or none if nothing in it is plugged.
    fn merge_slots(&mut self) -> Result<bool, SlotError> {
        let whole = |(index, window): (&u64, &Window)| {
            let slots = (window.runs > 0).then(|| self.window(*index));
            (*index, slots.into_iter().collect())
        };
        self.rearrange(self.windows.iter().map(whole).collect())
    }

    /// Sets the slots of windows to these ranges. Returns whether any had others.
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
        info!("rearranged memory slots: {before} before, {} now", self.slots.used());
        Ok(true)
    }

    /// Sets the window's slots to `ranges`. No vCPU may run, unless nothing in the window is plugged.
    ///
    /// On an error the old slots are restored. If KVM refuses that too, plugged blocks may be in no slot, and
    /// the machine ends.
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
        let what = format!("cannot put plugged memory back into its memory slot: {error}");
        self.ending.set(Ending::MachineError(what));
    }

    fn try_set_slots(&mut self, index: u64, ranges: Vec<Range<u64>>) -> Result<(), SlotError> {
        let window = self.windows.entry(index).or_default();
        let (kept, mut unwanted): (Vec<_>, Vec<_>) =
            mem::take(&mut window.slots).into_iter().partition(|(range, _)| ranges.contains(range));
        window.slots = kept;
        while let Some((range, slot)) = unwanted.pop() {
            if let Err((slot, error)) = self.slots.clear(slot) {
                unwanted.push((range, slot));
                window.slots.append(&mut unwanted);
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

    /// Splits `range` at window boundaries: the window's number, the piece, and how many of the two blocks
    /// next to the piece are in the window and plugged.
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

    /// Claims the slots that a change needs, and returns its plans.
    fn claim(&mut self, plan: impl Fn(&Self) -> Vec<Plan>) -> Result<Vec<Plan>, SlotError> {
        let plans = plan(self);
        if self.claim_for(&plans).is_ok() {
            return Ok(plans);
        }
        // Windows without a plugged block may still have slots, and windows with blocks that were plugged
        // after a withdrawal may have more than they need.
        self.merge_slots()?;
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

    /// Drops windows without blocks and slots, and releases claimed slots that are not needed.
    fn adjust_claim(&mut self) {
        self.windows.retain(|_, window| window.claim() > 0);
        let needed = self.windows.values().map(Window::claim).sum();
        self.slots.release(self.claimed - needed);
        self.claimed = needed;
    }

    /// Puts the gaps of all `plans` into slots. On an error some are in slots, which does no harm.
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
