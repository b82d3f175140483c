//! Which endpoint may access what: domains, the endpoints attached to them, and their mappings.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::mem;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use log::debug;
use serde::{Deserialize, Serialize};
use vm_memory::Permissions;

use super::fault::{Fault, FaultLog, FaultReason, ReportCounters};
use super::mappings::{MappingTable, Overlap, Split, Untranslatable};
use super::wire::{self, AttachFlags, Config, FaultReport, Features, MapFlags, Status};
use crate::dma::{Iommu, Leases, PhysicalRange, Refused};
use crate::{Signal, lock};

/// Mappings are made of pages of this size.
const PAGE_SIZE: u64 = 0x1000;
/// Addresses have 48 bits, as with four levels of page tables.
const INPUT_RANGE: RangeInclusive<u64> = 0..=(1 << 48) - 1;
/// As many domain IDs as a PCI segment has requester IDs. A domain exists only while an endpoint is
/// attached to it.
const DOMAIN_RANGE: RangeInclusive<u32> = 0..=0xffff;
/// The addresses of message-signalled interrupts on x86 (Intel SDM, volume 3, section 12.11.1).
pub const MSI_WINDOW: RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;
/// The most mappings in all domains together. A driver that maps whole buffers does not reach the
/// limit, and one that maps page by page can map 4 GiB.
pub const MAX_MAPPINGS: usize = 1 << 20;
/// Bytes of the properties of a PROBE request: the only property, and zeros that mark the end of the
/// list.
pub const PROBE_SIZE: usize = 64;

/// The translations of an IOMMU. Shared between the IOMMU device, which changes them, the views of
/// other devices, which look up every access, and the machine, which may read the status at any time.
pub struct Translations {
    endpoints: Vec<RangeInclusive<u32>>,
    doorbell: Arc<dyn Signal>,
    leases: Leases,
    state: Mutex<State>,
}

struct State {
    bypass: bool,
    /// The domain of each endpoint that is attached to one.
    attached: BTreeMap<u32, u32>,
    domains: BTreeMap<u32, Domain>,
    /// In all domains.
    mappings: usize,
    faults: FaultLog,
}

/// A domain, which exists as long as an endpoint is attached to it.
struct Domain {
    endpoints: usize,
    kind: DomainKind,
}

enum DomainKind {
    /// All addresses are guest-physical.
    Identity,
    Mapped(MappingTable),
}

/// The status of an IOMMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IommuStatus {
    /// Whether endpoints without a domain access memory untranslated.
    pub bypass: bool,
    /// Domains that endpoints are attached to.
    pub domains: usize,
    /// Mappings in all domains.
    pub mappings: usize,
    /// The endpoints that are attached, or of which an access was refused, by ID.
    pub endpoints: Vec<EndpointStatus>,
    /// Fault reports that were delivered to the driver or dropped.
    pub reports: ReportCounters,
}

/// The status of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// Endpoint ID. A PCI function's is its requester ID.
    pub id: u32,
    /// The domain that it is attached to.
    pub domain: Option<u32>,
    /// Accesses refused since the machine was built.
    pub faults: u64,
    /// The last of them.
    pub last_fault: Option<Fault>,
}

impl Translations {
    pub(super) fn new(
        endpoints: Vec<RangeInclusive<u32>>,
        bypass: bool,
        doorbell: Arc<dyn Signal>,
        leases: Leases,
    ) -> Self {
        let state = State {
            bypass,
            attached: BTreeMap::new(),
            domains: BTreeMap::new(),
            mappings: 0,
            faults: FaultLog::default(),
        };
        Self { endpoints, doorbell, leases, state: Mutex::new(state) }
    }

    /// The status now. May be called on any thread.
    pub fn status(&self) -> IommuStatus {
        let state = lock(&self.state);
        let faults = state.faults.of_endpoints();
        let mut ids: Vec<u32> = state.attached.keys().chain(faults.keys()).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        let endpoints = ids.into_iter().map(|id| EndpointStatus {
            id,
            domain: state.attached.get(&id).copied(),
            faults: faults.get(&id).map_or(0, |faults| faults.count),
            last_fault: faults.get(&id).map(|faults| faults.last),
        });
        IommuStatus {
            bypass: state.bypass,
            domains: state.domains.len(),
            mappings: state.mappings,
            endpoints: endpoints.collect(),
            reports: state.faults.reports,
        }
    }

    /// Whether there is such an endpoint.
    pub(super) fn has_endpoint(&self, id: u32) -> bool {
        self.endpoints.iter().any(|ids| ids.contains(&id))
    }

    pub(super) fn config(&self) -> Config {
        Config {
            page_size_mask: (!(PAGE_SIZE - 1)).into(),
            input_range_start: (*INPUT_RANGE.start()).into(),
            input_range_end: (*INPUT_RANGE.end()).into(),
            domain_range_start: (*DOMAIN_RANGE.start()).into(),
            domain_range_end: (*DOMAIN_RANGE.end()).into(),
            probe_size: (PROBE_SIZE as u32).into(),
            bypass: lock(&self.state).bypass.into(),
            reserved: [0; 3],
        }
    }

    /// On a vCPU's thread, with the device's lock held.
    pub(super) fn set_bypass(&self, bypass: bool) {
        lock(&self.state).bypass = bypass;
        self.leases.revoke();
    }

    /// Section 5.13.6.3.2.
    pub(super) fn attach(&self, request: &wire::Attach, features: Features) -> Status {
        let flags = AttachFlags::from_bits_retain(request.flags.get());
        let known = if features.contains(Features::BYPASS_CONFIG) {
            AttachFlags::BYPASS
        } else {
            AttachFlags::empty()
        };
        let (id, endpoint) = (request.domain.get(), request.endpoint.get());
        if request.reserved != [0; 4] || !known.contains(flags) {
            return Status::Invalid;
        }
        if !self.has_endpoint(endpoint) {
            return Status::NoEntry;
        }
        if !DOMAIN_RANGE.contains(&id) {
            return Status::Range;
        }
        let bypass = flags.contains(AttachFlags::BYPASS);
        let mut state = lock(&self.state);
        let consistent = state.domains.get(&id).is_none_or(|domain| domain.is_bypass() == bypass);
        if !consistent {
            return Status::Invalid;
        }
        if state.attached.get(&endpoint) != Some(&id) {
            let left = state.detach(endpoint);
            state.attach(endpoint, id, bypass);
            drop(state);
            // The endpoint must no longer access what its old domain mapped.
            self.leases.drain();
            drop(left);
        }
        Status::Ok
    }

    /// Section 5.13.6.4.2.
    pub(super) fn detach(&self, request: &wire::Detach) -> Status {
        let (id, endpoint) = (request.domain.get(), request.endpoint.get());
        if !self.has_endpoint(endpoint) {
            return Status::NoEntry;
        }
        let mut state = lock(&self.state);
        if state.attached.get(&endpoint) != Some(&id) {
            return Status::Invalid;
        }
        let left = state.detach(endpoint);
        drop(state);
        self.leases.drain();
        drop(left);
        Status::Ok
    }

    /// Section 5.13.6.5.2.
    pub(super) fn map(&self, request: &wire::Map, features: Features) -> Status {
        let flags = MapFlags::from_bits_retain(request.flags.get());
        let mut known = MapFlags::READ | MapFlags::WRITE;
        known.set(MapFlags::MMIO, features.contains(Features::MMIO));
        if !known.contains(flags) {
            return Status::Invalid;
        }
        let (first, last) = (request.virt_start.get(), request.virt_end.get());
        let physical = request.phys_start.get();
        let aligned = first.is_multiple_of(PAGE_SIZE)
            && last.wrapping_add(1).is_multiple_of(PAGE_SIZE)
            && physical.is_multiple_of(PAGE_SIZE);
        if last <= first {
            return Status::Invalid;
        }
        let possible = INPUT_RANGE.contains(&last) && physical.checked_add(last - first).is_some();
        if !aligned || !possible {
            return Status::Range;
        }
        lock(&self.state).map(request.domain.get(), first..=last, physical, permissions(flags))
    }

    /// Section 5.13.6.6.2. When it returns no access is under way that was translated before.
    pub(super) fn unmap(&self, request: &wire::Unmap) -> Status {
        let (first, last) = (request.virt_start.get(), request.virt_end.get());
        if request.reserved != [0; 4] || last < first {
            return Status::Invalid;
        }
        let status = lock(&self.state).unmap(request.domain.get(), first..=last);
        self.leases.drain();
        status
    }

    /// Back to the initial state: no domains, and no faults to report. `bypass` stays (section
    /// 5.13.4.2).
    pub(super) fn reset(&self) {
        let mut state = lock(&self.state);
        state.attached.clear();
        let domains = mem::take(&mut state.domains);
        state.mappings = 0;
        state.faults.drop_pending();
        drop(state);
        self.leases.revoke();
        // To drop a million mappings takes a while, so no lock is held meanwhile.
        drop(domains);
    }

    pub(super) fn has_fault_to_report(&self) -> bool {
        lock(&self.state).faults.has_pending()
    }

    pub(super) fn take_fault_report(&self) -> Option<FaultReport> {
        lock(&self.state).faults.take_pending()
    }

    pub(super) fn count_report(&self, delivered: bool) {
        let reports = &mut lock(&self.state).faults.reports;
        *if delivered { &mut reports.delivered } else { &mut reports.dropped } += 1;
    }
}

impl Iommu for Translations {
    fn translate(
        &self,
        requester: u32,
        address: u64,
        length: usize,
        access: Permissions,
    ) -> Result<Vec<PhysicalRange>, Refused> {
        let mut state = lock(&self.state);
        state.translate(requester, address, length, access).map_err(|fault| {
            debug!("DMA of endpoint {requester:#x} refused: {fault:x?}");
            state.faults.record(requester, fault);
            self.doorbell.signal();
            Refused
        })
    }
}

impl State {
    fn attach(&mut self, endpoint: u32, id: u32, bypass: bool) {
        let domain = self.domains.entry(id).or_insert_with(|| Domain::new(bypass));
        domain.endpoints += 1;
        self.attached.insert(endpoint, id);
    }

    /// Returns the domain if this was its last endpoint, so that the caller can drop it without a lock:
    /// that takes a while for a million mappings.
    #[must_use]
    fn detach(&mut self, endpoint: u32) -> Option<Domain> {
        let id = self.attached.remove(&endpoint)?;
        let Entry::Occupied(mut domain) = self.domains.entry(id) else {
            return None;
        };
        domain.get_mut().endpoints -= 1;
        (domain.get().endpoints == 0).then(|| {
            let domain = domain.remove();
            self.mappings -= domain.mappings();
            domain
        })
    }

    fn map(
        &mut self,
        id: u32,
        range: RangeInclusive<u64>,
        physical: u64,
        permissions: Permissions,
    ) -> Status {
        let Some(domain) = self.domains.get_mut(&id) else {
            return Status::NoEntry;
        };
        let reserved = range.start() <= MSI_WINDOW.end() && MSI_WINDOW.start() <= range.end();
        let DomainKind::Mapped(table) = &mut domain.kind else {
            return Status::Invalid;
        };
        if reserved {
            return Status::Invalid;
        }
        if self.mappings == MAX_MAPPINGS {
            return Status::NoMemory;
        }
        match table.map(range, physical, permissions) {
            Ok(()) => {
                self.mappings += 1;
                Status::Ok
            }
            Err(Overlap) => Status::Invalid,
        }
    }

    fn unmap(&mut self, id: u32, range: RangeInclusive<u64>) -> Status {
        let Some(domain) = self.domains.get_mut(&id) else {
            return Status::NoEntry;
        };
        let DomainKind::Mapped(table) = &mut domain.kind else {
            return Status::Invalid;
        };
        match table.unmap(range) {
            Ok(removed) => {
                self.mappings -= removed;
                Status::Ok
            }
            Err(Split) => Status::Range,
        }
    }

    fn translate(
        &self,
        endpoint: u32,
        address: u64,
        length: usize,
        access: Permissions,
    ) -> Result<Vec<PhysicalRange>, Fault> {
        let identity = || Ok(vec![PhysicalRange { address, length }]);
        let domain = self.attached.get(&endpoint).and_then(|id| self.domains.get(id));
        match domain.map(|domain| &domain.kind) {
            None if self.bypass => identity(),
            None => Err(Fault::new(address, access, FaultReason::Domain)),
            Some(DomainKind::Identity) => identity(),
            Some(DomainKind::Mapped(table)) => {
                table.translate(address, length, access).map_err(|why| match why {
                    Untranslatable::NotMapped(address) => {
                        Fault::new(address, access, FaultReason::Mapping)
                    }
                    Untranslatable::TooManyPieces(address) => {
                        Fault::new(address, access, FaultReason::Unknown)
                    }
                })
            }
        }
    }
}

impl Domain {
    fn new(bypass: bool) -> Self {
        let kind =
            if bypass { DomainKind::Identity } else { DomainKind::Mapped(MappingTable::default()) };
        Self { endpoints: 0, kind }
    }

    fn is_bypass(&self) -> bool {
        matches!(self.kind, DomainKind::Identity)
    }

    fn mappings(&self) -> usize {
        match &self.kind {
            DomainKind::Identity => 0,
            DomainKind::Mapped(table) => table.len(),
        }
    }
}

/// The MMIO flag is a kind of memory and not a permission.
fn permissions(flags: MapFlags) -> Permissions {
    match (flags.contains(MapFlags::READ), flags.contains(MapFlags::WRITE)) {
        (false, false) => Permissions::No,
        (true, false) => Permissions::Read,
        (false, true) => Permissions::Write,
        (true, true) => Permissions::ReadWrite,
    }
}

#[cfg(test)]
impl Translations {
    /// Makes `count` mappings in `domain`, without a request for each.
    pub(super) fn fill(&self, domain: u32, count: usize) {
        let mut state = lock(&self.state);
        let above_msi = 1_u64 << 32;
        for page in (above_msi..).step_by(PAGE_SIZE as usize).take(count) {
            let range = page..=page + (PAGE_SIZE - 1);
            assert_eq!(state.map(domain, range, 0, Permissions::No), Status::Ok);
        }
    }

    /// Asserts that the counters match the mappings and endpoints there are.
    pub(super) fn assert_in_order(&self) {
        let state = lock(&self.state);
        let mappings: usize = state.domains.values().map(Domain::mappings).sum();
        assert_eq!(state.mappings, mappings);
        for (id, domain) in &state.domains {
            let endpoints = state.attached.values().filter(|attached| *attached == id).count();
            assert_eq!(domain.endpoints, endpoints);
            assert_ne!(endpoints, 0);
        }
        assert!(state.attached.values().all(|id| state.domains.contains_key(id)));
    }
}
