//! Accesses that were refused: counted, and kept until they have been reported to the driver.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use vm_memory::Permissions;

use super::wire::{FaultFlags, FaultReport};

/// Why an access was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum FaultReason {
    /// VIRTIO_IOMMU_FAULT_R_UNKNOWN: the access consists of too many pieces, for which the
    /// specification defines no reason.
    Unknown = 0,
    /// The endpoint is not attached to a domain, and does not bypass the IOMMU.
    Domain = 1,
    /// Its domain has no mapping there that allows such an access.
    Mapping = 2,
}

/// An access of a device that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The first address that was refused, as the device gave it.
    pub address: u64,
    /// Whether it was a write.
    pub is_write: bool,
    /// Why.
    pub reason: FaultReason,
}

/// The refused accesses of one endpoint since the machine was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointFaults {
    /// How many.
    pub count: u64,
    /// The last of them.
    pub last: Fault,
}

/// Fault reports since the machine was built.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportCounters {
    /// Delivered to the driver.
    pub delivered: u64,
    /// Dropped because the driver did not make buffers available in time.
    pub dropped: u64,
}

/// The record of refused accesses.
#[derive(Debug, Default)]
pub struct FaultLog {
    endpoints: BTreeMap<u32, EndpointFaults>,
    pending: VecDeque<(u32, Fault)>,
    pub reports: ReportCounters,
}

impl FaultLog {
    /// The most reports that wait for a buffer of the driver. Further ones are dropped.
    pub const MAX_PENDING: usize = 64;

    pub fn record(&mut self, endpoint: u32, fault: Fault) {
        let faults =
            self.endpoints.entry(endpoint).or_insert(EndpointFaults { count: 0, last: fault });
        faults.count += 1;
        faults.last = fault;
        if self.pending.len() < Self::MAX_PENDING {
            self.pending.push_back((endpoint, fault));
        } else {
            self.reports.dropped += 1;
        }
    }

    pub fn of_endpoints(&self) -> &BTreeMap<u32, EndpointFaults> {
        &self.endpoints
    }

    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub fn take_pending(&mut self) -> Option<FaultReport> {
        let (endpoint, Fault { address, is_write, reason }) = self.pending.pop_front()?;
        let access = if is_write { FaultFlags::WRITE } else { FaultFlags::READ };
        Some(FaultReport {
            reason: reason as u8,
            reserved: [0; 3],
            flags: (access | FaultFlags::ADDRESS).bits().into(),
            endpoint: endpoint.into(),
            reserved1: 0.into(),
            address: address.into(),
        })
    }

    /// A driver that resets the device gets no reports of earlier faults.
    pub fn drop_pending(&mut self) {
        self.reports.dropped += self.pending.len() as u64;
        self.pending.clear();
    }
}

impl Fault {
    pub(super) fn new(address: u64, access: Permissions, reason: FaultReason) -> Self {
        Self { address, is_write: access.has_write(), reason }
    }
}
