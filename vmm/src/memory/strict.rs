//! Blocks that exist only while plugged: an unplugged one is in no memory slot.
//!
//! A slot covers blocks that were plugged together, or what is left of them, and never crosses the
//! edge of a *window*, an aligned piece of the region. Windows bound what one change disturbs:
//!
//! - Plugging adds slots and touches none that exist.
//! - Unplugging whole slots only removes them.
//! - Unplugging a part of a slot replaces it by what is left. KVM cannot shrink a slot in place, so
//!   for a moment the neighbours are in no slot either; every vCPU is out of KVM_RUN meanwhile.
//! - When slots run out, neighbours inside a window are merged, in the same way. If none is left
//!   then, the driver is told BUSY.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use devices::virtio::mem::{BackendBusy, BlockBackend, BlockRange, Region};
use log::{error, info};
use thiserror::Error;

use super::host::HostMemory;
use super::reachable::ReachableBlocks;
use super::slots::{MemorySlots, SlotError, SlotId};
use crate::vcpu::VcpuGate;

/// Size of a window; a block that is larger is a window of its own.
const WINDOW_BYTES: u64 = 1 << 30;

/// Why blocks cannot be plugged or unplugged now.
#[derive(Debug, Error)]
enum StrictError {
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error("the host does not take memory back: {0}")]
    Discard(std::io::Error),
}

impl From<StrictError> for BackendBusy {
    fn from(error: StrictError) -> Self {
        Self(Box::new(error))
    }
}

/// Blocks `start..end` (the key of the map is `start`), all in one slot.
struct Run {
    end: u64,
    slot: SlotId,
}

/// The memory of a device whose unplugged blocks nobody reaches.
pub struct StrictBlocks {
    region: Region,
    memory: HostMemory,
    slots: MemorySlots,
    gate: Arc<VcpuGate>,
    reachable: Arc<ReachableBlocks>,
    runs: BTreeMap<u64, Run>,
    window_blocks: u64,
}

impl StrictBlocks {
    /// All blocks of `region` unplugged; `memory` is what stands behind them.
    pub fn new(
        region: Region,
        memory: HostMemory,
        slots: MemorySlots,
        gate: Arc<VcpuGate>,
        reachable: Arc<ReachableBlocks>,
    ) -> Self {
        let window_blocks = (WINDOW_BYTES / region.block_size()).max(1);
        Self { region, memory, slots, gate, reachable, runs: BTreeMap::new(), window_blocks }
    }

    fn offsets(&self, blocks: &Range<u64>) -> Range<u64> {
        blocks.start * self.region.block_size()..blocks.end * self.region.block_size()
    }

    /// Cuts `blocks` at the edges of windows.
    fn windows(&self, blocks: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        let window = self.window_blocks;
        let first = blocks.start / window;
        (first..blocks.end.div_ceil(window))
            .map(move |w| blocks.start.max(w * window)..blocks.end.min((w + 1) * window))
    }

    fn enter_slots(&mut self, blocks: Range<u64>) -> Result<(), SlotError> {
        let mut entered = Vec::new();
        for piece in self.windows(blocks) {
            match self.slots.add(&self.memory, self.offsets(&piece)) {
                Ok(slot) => {
                    entered.push(piece.start);
                    self.runs.insert(piece.start, Run { end: piece.end, slot });
                }
                Err(error) => {
                    for start in entered {
                        self.remove_run(start)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn remove_run(&mut self, start: u64) -> Result<(), SlotError> {
        let Some(Run { end, slot }) = self.runs.remove(&start) else {
            return Ok(());
        };
        self.slots.remove(slot).map_err(|(slot, error)| {
            self.runs.insert(start, Run { end, slot });
            error
        })
    }

    /// Takes `blocks`, all in slots, out of them. On an error they are all in slots still.
    fn leave_slots(&mut self, blocks: Range<u64>) -> Result<(), SlotError> {
        let first = self.runs.range(..=blocks.start).next_back().map_or(0, |(start, _)| *start);
        let touched: Vec<Range<u64>> =
            self.runs.range(first..blocks.end).map(|(start, run)| *start..run.end).collect();
        let cut = |run: &Range<u64>| run.start < blocks.start || run.end > blocks.end;
        // Held while neighbours are in no slot.
        let gate = Arc::clone(&self.gate);
        let _quiesced = touched.iter().any(cut).then(|| gate.close());
        for (done, run) in touched.iter().enumerate() {
            if let Err(error) = self.carve(run, &blocks) {
                for run in &touched[..done] {
                    let lost = run.start.max(blocks.start)..run.end.min(blocks.end);
                    self.restore(lost);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes `hole` out of one run. On an error the run is as before.
    fn carve(&mut self, run: &Range<u64>, hole: &Range<u64>) -> Result<(), SlotError> {
        let left = run.start..hole.start.max(run.start);
        let right = hole.end.min(run.end)..run.end;
        let (kept, added) = match (left.is_empty(), right.is_empty()) {
            (true, true) => return self.remove_run(run.start),
            (false, true) => (left, None),
            (true, false) => (right, None),
            (false, false) => (left, Some(right)),
        };
        let Some(Run { end, slot }) = self.runs.remove(&run.start) else {
            return Ok(());
        };
        let carved = self.slots.replace(&slot, &self.memory, self.offsets(&kept)).and_then(|()| {
            added
                .map(|added| {
                    let slot = self.slots.add(&self.memory, self.offsets(&added))?;
                    Ok((added, slot))
                })
                .transpose()
        });
        match carved {
            Ok(added) => {
                self.runs.insert(kept.start, Run { end: kept.end, slot });
                if let Some((added, slot)) = added {
                    self.runs.insert(added.start, Run { end: added.end, slot });
                }
                Ok(())
            }
            Err(carve_error) => {
                if let Err(error) = self.slots.replace(&slot, &self.memory, self.offsets(run)) {
                    error!("blocks {run:?} are lost to the guest: {error}");
                }
                self.runs.insert(run.start, Run { end, slot });
                Err(carve_error)
            }
        }
    }

    /// Puts blocks back that had left their slots.
    fn restore(&mut self, blocks: Range<u64>) {
        if let Err(error) = self.enter_slots(blocks.clone()) {
            error!("blocks {blocks:?} are lost to the guest: {error}");
        }
    }

    /// Merges neighbours inside windows, to free slots.
    fn compact(&mut self) -> Result<(), SlotError> {
        let gate = Arc::clone(&self.gate);
        let _quiesced = gate.close();
        let before = self.runs.len();
        let mut starts: Vec<u64> = self.runs.keys().copied().collect();
        starts.reverse();
        // From the last to the first, so that a run has already taken in those behind it.
        for pair in starts.windows(2) {
            let &[next, start] = pair else { continue };
            if self.runs[&start].end != next || next.is_multiple_of(self.window_blocks) {
                continue;
            }
            let end = self.runs[&next].end;
            let merged = self.offsets(&(start..end));
            self.remove_run(next)?;
            let run = self.runs.get_mut(&start).expect("only the run behind it was removed");
            self.slots.replace(&run.slot, &self.memory, merged)?;
            run.end = end;
        }
        info!("merged {before} memory slots into {}", self.runs.len());
        Ok(())
    }
}

impl BlockBackend for StrictBlocks {
    fn plug(&mut self, range: BlockRange) -> Result<(), BackendBusy> {
        let needed = self.windows(range.indices()).count();
        if self.slots.available() < needed {
            self.compact().map_err(StrictError::from)?;
        }
        self.enter_slots(range.indices()).map_err(StrictError::from)?;
        self.reachable.insert(range);
        Ok(())
    }

    fn unplug(&mut self, range: BlockRange) -> Result<(), BackendBusy> {
        // A hole in the middle of a slot makes two of it.
        if self.slots.available() == 0 {
            self.compact().map_err(StrictError::from)?;
        }
        self.reachable.remove(range);
        let left = self.leave_slots(range.indices()).map_err(StrictError::from);
        let result = left.and_then(|()| {
            self.memory.discard(self.region.byte_offsets(range)).map_err(|error| {
                self.restore(range.indices());
                StrictError::Discard(error)
            })
        });
        if result.is_err() {
            self.reachable.insert(range);
        }
        Ok(result?)
    }

    fn unplug_all(&mut self) -> Result<(), BackendBusy> {
        let ranges: Vec<BlockRange> =
            self.runs.iter().filter_map(|(start, run)| BlockRange::new(*start..run.end)).collect();
        let result = self.take_all(&ranges);
        if result.is_err() {
            ranges.iter().for_each(|range| self.reachable.insert(*range));
        }
        Ok(result?)
    }
}

impl StrictBlocks {
    /// Takes `ranges`, which are all runs, out of their slots and discards the whole region. On an
    /// error they are all in slots still.
    fn take_all(&mut self, ranges: &[BlockRange]) -> Result<(), StrictError> {
        for (done, range) in ranges.iter().enumerate() {
            self.reachable.remove(*range);
            if let Err(error) = self.remove_run(range.first().0) {
                ranges[..done].iter().for_each(|range| self.restore(range.indices()));
                return Err(error.into());
            }
        }
        self.memory.discard(0..self.memory.size()).map_err(|error| {
            ranges.iter().for_each(|range| self.restore(range.indices()));
            StrictError::Discard(error)
        })
    }
}
