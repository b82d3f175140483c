//! Accesses to unplugged memory and to addresses that no PCI function decodes: counted, grouped by the
//! instruction that makes them, and logged at a limited rate.

pub mod refusals;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use devices::pci::{AddressSpace, Direction, RefusalReason};
use log::warn;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an access was to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A block of a virtio-mem device that is not plugged.
    #[allow(missing_docs)]
    UnpluggedBlock { block: u64, offset: u64 },
    /// A base address range of a PCI function that the function does not decode.
    #[allow(missing_docs)]
    BaseAddressRange { function: String, register: String, offset: u64, reason: RefusalReason },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnpluggedBlock { block, offset } => {
                write!(f, "offset {offset:#x} of unplugged block {block}")
            }
            Self::BaseAddressRange { function, register, offset, reason } => {
                write!(f, "offset {offset:#x} of {register} of {function} ({reason:?})")
            }
        }
    }
}

/// What a vCPU does at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// It loads data.
    Read,
    /// It stores data.
    Write,
    /// It fetches an instruction.
    Fetch,
}

impl From<Direction> for Operation {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Read => Self::Read,
            Direction::Write => Self::Write,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Fetch => "fetch",
        })
    }
}

/// One access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestAccess {
    /// Memory or ports.
    pub space: AddressSpace,
    /// Guest physical address, or the port.
    pub address: u64,
    /// Bytes accessed. KVM splits an access that is wider than 8 bytes or crosses a page, unless it cannot
    /// emulate the instruction at all.
    pub size: u32,
    /// What the vCPU does.
    pub operation: Operation,
    /// The value written, if it is known and at most 8 bytes long.
    pub value: Option<u64>,
}

/// A vCPU's privilege, from its current privilege level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Privilege {
    /// Levels 0 to 2.
    Kernel,
    /// Level 3.
    User,
}

impl fmt::Display for Privilege {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::User => "user",
        })
    }
}

/// The vCPU and the instruction that make an access.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accessor {
    /// The vCPU.
    pub vcpu: u32,
    /// Address of the instruction. After a write, KVM has already advanced to the next instruction, and the
    /// one that wrote is searched for before it. If it is not found, `instruction` is none and this is the
    /// address of the next one.
    pub instruction_pointer: u64,
    /// The function of the kernel that the instruction is in, and how far from its start.
    pub symbol: Option<String>,
    /// The vCPU's privilege.
    pub privilege: Privilege,
    /// CR3, which distinguishes processes.
    pub cr3: u64,
    /// The instruction in AT&T syntax, if it can be read.
    pub instruction: Option<String>,
}

impl fmt::Display for Accessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vcpu, instruction_pointer, privilege, .. } = self;
        write!(f, "vCPU {vcpu} at {instruction_pointer:#x}")?;
        if let Some(symbol) = &self.symbol {
            write!(f, " ({symbol})")?;
        }
        write!(f, " in {privilege} mode")?;
        self.instruction.as_ref().map_or(Ok(()), |instruction| write!(f, ", `{instruction}`"))
    }
}

/// Milliseconds since the Unix epoch, by the host's clock.
pub fn now_ms() -> u64 {
    // A clock before 1970 is wrong anyway.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// One access of a vCPU to what is unplugged or not decoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The device, such as `mem0` or `00:02.0`.
    pub device: String,
    /// When it happened, by the host's clock: milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// What made it.
    #[serde(flatten)]
    pub accessor: Accessor,
    /// The access.
    #[serde(flatten)]
    pub access: GuestAccess,
    /// What of the device it was to.
    pub target: Target,
}

impl Violation {
    /// A violation by `accessor` at this moment.
    pub fn now(device: String, accessor: Accessor, access: GuestAccess, target: Target) -> Self {
        Self { device, time_ms: now_ms(), accessor, access, target }
    }

    /// Whether both are the same operation of the same instruction on the same device.
    fn repeats(&self, other: &Self) -> bool {
        let key =
            |violation: &Self| (violation.accessor.instruction_pointer, violation.access.operation);
        key(self) == key(other) && self.device == other.device
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, accessor, access, target, .. } = self;
        let GuestAccess { address, size, operation, value, .. } = access;
        write!(f, "{accessor}: {operation} of {size} bytes at {address:#x}, {target} of {device}")?;
        value.map_or(Ok(()), |value| write!(f, ", value {value:#x}"))
    }
}

/// An instruction that made one or more violations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offender {
    /// How many.
    pub count: u64,
    /// When the first happened, in milliseconds since the Unix epoch.
    pub first_time_ms: u64,
    /// The latest.
    #[serde(flatten)]
    pub latest: Violation,
}

/// What an access to an unplugged block, by a vCPU or a device, leads to. It is counted and refused in any
/// case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ViolationPolicy {
    /// It is kept and logged.
    #[default]
    Report,
    /// It ends the machine.
    Stop,
    /// It is kept, logged, and raises a machine check in the vCPU that made it, if one did.
    MachineCheck,
    /// Nothing more.
    Ignore,
}

/// What has to be done after a violation was recorded.
#[derive(Debug)]
#[must_use]
pub enum Consequence {
    /// Nothing.
    None,
    /// End the machine.
    Stop(Box<Violation>),
    /// Raise a machine check in the vCPU that made the access.
    MachineCheck(GuestAccess),
}

/// How many accesses there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViolationCounters {
    /// vCPU reads that are violations; they got all ones.
    pub reads: u64,
    /// vCPU writes, which were discarded.
    pub writes: u64,
    /// Instructions that a vCPU tried to fetch.
    pub fetches: u64,
    /// DMA accesses of devices to unplugged blocks, which were refused.
    pub dma: u64,
    /// vCPU reads that are permitted because the driver has not negotiated UNPLUGGED_INACCESSIBLE; they
    /// got zeros.
    pub permitted_reads: u64,
}

/// Warnings about events that a guest can cause at any rate: one per second at most.
#[derive(Default)]
pub struct ThrottledWarnings {
    last_warning: Option<Instant>,
    suppressed: u64,
}

impl ThrottledWarnings {
    const INTERVAL: Duration = Duration::from_secs(1);

    /// Logs `what` and how many warnings were suppressed before, or suppresses it too.
    pub fn warn(&mut self, what: impl fmt::Display) {
        if self.last_warning.is_none_or(|last| last.elapsed() >= Self::INTERVAL) {
            warn!("{what} ({} more before)", self.suppressed);
            self.last_warning = Some(Instant::now());
            self.suppressed = 0;
        } else {
            self.suppressed += 1;
        }
    }
}

/// The violations of one device.
#[derive(Default)]
pub struct ViolationLog(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    counters: ViolationCounters,
    /// In the order of their latest violations, oldest first.
    offenders: VecDeque<Offender>,
    warnings: ThrottledWarnings,
}

impl ViolationLog {
    /// How many offenders are kept: the latest ones.
    const KEPT: usize = 64;

    /// Counts an access without keeping it.
    fn count(&self, operation: Operation) {
        let counters = &mut self.lock().counters;
        match operation {
            Operation::Read => counters.reads += 1,
            Operation::Write => counters.writes += 1,
            Operation::Fetch => counters.fetches += 1,
        }
    }

    /// Keeps `violation`, which has been counted, and logs it at a limited rate.
    fn keep(&self, violation: Violation) {
        let mut inner = self.lock();
        inner.warnings.warn(&violation);
        inner.fold(violation);
    }

    /// Records an access to `device` as `policy` demands. `accessor` finds out what made it.
    pub fn record(
        &self,
        policy: ViolationPolicy,
        device: &str,
        access: GuestAccess,
        target: Target,
        accessor: impl FnOnce(&GuestAccess) -> Accessor,
    ) -> Consequence {
        self.count(access.operation);
        if policy == ViolationPolicy::Ignore {
            return Consequence::None;
        }
        let violation = Violation::now(device.into(), accessor(&access), access, target);
        self.keep(violation.clone());
        match policy {
            ViolationPolicy::Stop => Consequence::Stop(Box::new(violation)),
            ViolationPolicy::MachineCheck => Consequence::MachineCheck(access),
            ViolationPolicy::Report | ViolationPolicy::Ignore => Consequence::None,
        }
    }

    /// Counts a read that the driver is permitted to make.
    pub fn count_permitted_read(&self) {
        self.lock().counters.permitted_reads += 1;
    }

    /// The counters. DMA of devices is counted elsewhere, so `dma` is 0 here.
    pub fn counters(&self) -> ViolationCounters {
        self.lock().counters
    }

    /// The instructions that made the latest violations, latest last.
    pub fn offenders(&self) -> Vec<Offender> {
        self.lock().offenders.iter().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn fold(&mut self, latest: Violation) {
        let known = self.offenders.iter().position(|offender| offender.latest.repeats(&latest));
        let offender = match known.and_then(|index| self.offenders.remove(index)) {
            Some(before) => Offender { count: before.count + 1, latest, ..before },
            None => Offender { count: 1, first_time_ms: latest.time_ms, latest },
        };
        if self.offenders.len() == ViolationLog::KEPT {
            self.offenders.pop_front();
        }
        self.offenders.push_back(offender);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violation(instruction_pointer: u64, operation: Operation, address: u64) -> Violation {
        let accessor = Accessor {
            vcpu: 0,
            instruction_pointer,
            symbol: None,
            privilege: Privilege::Kernel,
            cr3: 0,
            instruction: None,
        };
        let access =
            GuestAccess { space: AddressSpace::Memory, address, size: 8, operation, value: None };
        let target = Target::UnpluggedBlock { block: 0, offset: address };
        Violation::now("mem0".into(), accessor, access, target)
    }

    #[test]
    fn only_the_latest_offenders_are_kept() {
        let log = ViolationLog::default();
        for instruction_pointer in 0..1000 {
            log.keep(violation(instruction_pointer, Operation::Write, 0));
        }
        let kept: Vec<u64> = log
            .offenders()
            .iter()
            .map(|offender| offender.latest.accessor.instruction_pointer)
            .collect();
        assert_eq!(kept, (936..1000).collect::<Vec<_>>());
    }

    #[test]
    fn an_instruction_that_repeats_a_violation_is_one_offender() {
        let log = ViolationLog::default();
        log.keep(violation(1, Operation::Read, 0));
        let first = log.offenders()[0].first_time_ms;
        log.keep(violation(2, Operation::Read, 0));
        log.keep(violation(1, Operation::Write, 0));
        (1..=1000).for_each(|address| log.keep(violation(1, Operation::Read, address)));
        let kept: Vec<_> = log
            .offenders()
            .iter()
            .map(|Offender { count, latest, .. }| {
                let Violation { accessor, access, .. } = latest;
                (accessor.instruction_pointer, access.operation, *count, access.address)
            })
            .collect();
        assert_eq!(
            kept,
            [
                (2, Operation::Read, 1, 0),
                (1, Operation::Write, 1, 0),
                (1, Operation::Read, 1001, 1000)
            ]
        );
        assert_eq!(log.offenders()[2].first_time_ms, first);
    }

    #[test]
    fn counted_accesses_are_not_kept() {
        let log = ViolationLog::default();
        for operation in [Operation::Read, Operation::Write, Operation::Fetch] {
            log.count(operation);
        }
        log.count(Operation::Write);
        log.count_permitted_read();
        let expected = ViolationCounters {
            reads: 1,
            writes: 2,
            fetches: 1,
            permitted_reads: 1,
            ..Default::default()
        };
        assert_eq!(log.counters(), expected);
        assert_eq!(log.offenders(), []);
    }
}
