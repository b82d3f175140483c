//! Counts of all accesses, and a log of the last ones.

use zerocopy::little_endian::{U32, U64};

use super::registers::bar0::LOG_ENTRIES;
use super::registers::{Accesses, LogEntry};
use crate::pci::{BarIndex, Direction};

/// Accesses to a range.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct AccessCounts {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

impl From<AccessCounts> for Accesses {
    fn from(counts: AccessCounts) -> Self {
        Self { reads: counts.reads.into(), writes: counts.writes.into() }
    }
}

/// An access that reached the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoggedAccess {
    /// Its number among all that were logged, from 1 on.
    pub sequence: u64,
    /// The range.
    pub bar: BarIndex,
    /// Bytes from the start of the range.
    pub offset: u64,
    /// Bytes accessed.
    pub size: usize,
    /// Which way.
    pub direction: Direction,
    /// What was read or written, little-endian: the first eight bytes of it.
    pub value: u64,
}

impl From<&LoggedAccess> for LogEntry {
    fn from(access: &LoggedAccess) -> Self {
        Self {
            sequence: access.sequence.into(),
            offset: access.offset.into(),
            value: access.value.into(),
            size: U32::new(u32::try_from(access.size).unwrap_or(u32::MAX)),
            bar: access.bar as u8,
            direction: match access.direction {
                Direction::Read => 0,
                Direction::Write => 1,
            },
            reserved: [0; 2],
        }
    }
}

/// An unused entry.
const UNUSED: LogEntry = LogEntry {
    sequence: U64::ZERO,
    offset: U64::ZERO,
    value: U64::ZERO,
    size: U32::ZERO,
    bar: 0,
    direction: 0,
    reserved: [0; 2],
};

/// The counts and the log. Of bounded size.
#[derive(Default)]
pub(super) struct AccessLog {
    counts: [AccessCounts; 6],
    logged: u64,
    /// An access is at its sequence number modulo [`LOG_ENTRIES`], less one as they count from 1.
    ring: Vec<LoggedAccess>,
}

impl AccessLog {
    pub fn count(&mut self, bar: BarIndex, direction: Direction) {
        let counts = &mut self.counts[bar as usize];
        match direction {
            Direction::Read => counts.reads += 1,
            Direction::Write => counts.writes += 1,
        }
    }

    pub fn record(&mut self, bar: BarIndex, offset: u64, direction: Direction, data: &[u8]) {
        let mut value = [0; 8];
        value.iter_mut().zip(data).for_each(|(value, byte)| *value = *byte);
        let slot = self.next_slot();
        self.logged += 1;
        let access = LoggedAccess {
            sequence: self.logged,
            bar,
            offset,
            size: data.len(),
            direction,
            value: u64::from_le_bytes(value),
        };
        match self.ring.get_mut(slot) {
            Some(oldest) => *oldest = access,
            None => self.ring.push(access),
        }
    }

    /// Where the next access goes: where the oldest one is, once the ring is full.
    fn next_slot(&self) -> usize {
        (self.logged % LOG_ENTRIES as u64) as usize
    }

    pub fn counts(&self) -> [AccessCounts; 6] {
        self.counts
    }

    /// How many accesses were ever logged.
    pub fn logged(&self) -> u64 {
        self.logged
    }

    /// The last accesses, oldest first.
    pub fn recent(&self) -> Vec<LoggedAccess> {
        let (newer, older) = self.ring.split_at(self.next_slot());
        [older, newer].concat()
    }

    /// A slot of the ring as the guest reads it.
    pub fn entry(&self, slot: usize) -> LogEntry {
        self.ring.get(slot).map_or(UNUSED, LogEntry::from)
    }
}
