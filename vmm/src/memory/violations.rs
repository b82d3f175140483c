//! Accesses to memory that is not there: counted, kept, and told without flooding anything.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use devices::pci::{Direction, RefusalReason};
use log::warn;
use serde::{Deserialize, Serialize};

/// What was not there when it was accessed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A block of a virtio-mem device that is not plugged.
    UnpluggedBlock(u64),
    /// A base address range of a PCI function that the function does not decode.
    #[allow(missing_docs)]
    BaseAddressRange { register: String, offset: u64, reason: RefusalReason },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnpluggedBlock(block) => write!(f, "unplugged block {block}"),
            Self::BaseAddressRange { register, offset, reason } => {
                write!(f, "offset {offset:#x} of {register} ({reason:?})")
            }
        }
    }
}

/// One access of a vCPU to what is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The device, such as `mem0` or `00:02.0`.
    pub device: String,
    /// The vCPU.
    pub vcpu: u32,
    /// Its instruction pointer. KVM has already gone on to the next instruction for a write.
    pub instruction_pointer: u64,
    /// Guest physical address.
    pub address: u64,
    /// What it is of the device.
    pub target: Target,
    /// Bytes accessed; KVM splits what is wider than 8.
    pub size: u32,
    /// Read or write.
    pub direction: Direction,
}

/// How many accesses there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViolationCounters {
    /// vCPU reads that must not be; they got all ones.
    pub reads: u64,
    /// vCPU writes, which vanished.
    pub writes: u64,
    /// Devices that were told to access an unplugged block, and refused.
    pub dma: u64,
    /// vCPU reads that the driver may do, having not negotiated UNPLUGGED_INACCESSIBLE; they got
    /// zeros.
    pub permitted_reads: u64,
}

/// The violations of one device.
#[derive(Default)]
pub struct ViolationLog(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    counters: ViolationCounters,
    latest: VecDeque<Violation>,
    last_told: Option<Instant>,
    untold: u64,
}

impl ViolationLog {
    /// As many violations are kept, the latest ones.
    const KEPT: usize = 64;
    /// At most one line of log in this time; it says how many went before.
    const TELL_INTERVAL: Duration = Duration::from_secs(1);

    /// Counts and keeps `violation`, and logs it unless another was logged just now.
    pub fn record(&self, violation: Violation) {
        let mut inner = self.lock();
        match violation.direction {
            Direction::Read => inner.counters.reads += 1,
            Direction::Write => inner.counters.writes += 1,
        }
        if inner.last_told.is_none_or(|told| told.elapsed() >= Self::TELL_INTERVAL) {
            let Violation { device, vcpu, instruction_pointer, address, target, size, direction } =
                &violation;
            warn!(
                "vCPU {vcpu} at {instruction_pointer:#x}: {direction:?} of {size} bytes at \
                 {address:#x}, {target} of {device} ({} more before)",
                inner.untold
            );
            inner.last_told = Some(Instant::now());
            inner.untold = 0;
        } else {
            inner.untold += 1;
        }
        if inner.latest.len() == Self::KEPT {
            inner.latest.pop_front();
        }
        inner.latest.push_back(violation);
    }

    /// Counts a read that the driver may do.
    pub fn record_permitted_read(&self) {
        self.lock().counters.permitted_reads += 1;
    }

    /// The counters. Those of devices' DMA are kept elsewhere, and 0 here.
    pub fn counters(&self) -> ViolationCounters {
        self.lock().counters
    }

    /// The latest violations, oldest first.
    pub fn latest(&self) -> Vec<Violation> {
        self.lock().latest.iter().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_violation_counts_but_only_the_latest_are_kept() {
        let log = ViolationLog::default();
        for address in 0..1000 {
            log.record(Violation {
                device: "mem0".into(),
                vcpu: 0,
                instruction_pointer: 0,
                address,
                target: Target::UnpluggedBlock(0),
                size: 8,
                direction: Direction::Write,
            });
        }
        log.record_permitted_read();
        let expected = ViolationCounters { writes: 1000, permitted_reads: 1, ..Default::default() };
        assert_eq!(log.counters(), expected);
        let addresses: Vec<u64> = log.latest().iter().map(|violation| violation.address).collect();
        assert_eq!(addresses, (936..1000).collect::<Vec<_>>());
    }
}
