//! A model of an IOMMU: which endpoint may access what, derived from the requests that the device
//! acknowledged.
//!
//! It parses requests independently of the device, and translates address by address. A request that a
//! device must not acknowledge (virtio 1.3, section 5.13.6) fails at once.

use std::collections::BTreeMap;

/// Feature bits that requests depend on (section 5.13.3).
const MAP_UNMAP: u64 = 1 << 2;
const MMIO: u64 = 1 << 5;
const BYPASS_CONFIG: u64 = 1 << 6;

const PAGE_SIZE: u64 = 0x1000;
const LAST_INPUT: u64 = (1 << 48) - 1;
const MSI_FIRST: u64 = 0xfee0_0000;
const MSI_LAST: u64 = 0xfeef_ffff;

/// The state of the IOMMU as the driver expects it.
#[derive(Default)]
pub struct Model {
    features: u64,
    bypass: bool,
    attached: BTreeMap<u32, u32>,
    domains: BTreeMap<u32, Domain>,
}

struct Domain {
    is_identity: bool,
    mappings: Vec<Mapping>,
}

struct Mapping {
    first: u64,
    last: u64,
    physical: u64,
    flags: u32,
}

/// An address that a device must not access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused(pub u64);

impl Model {
    /// A device whose endpoints access memory untranslated until they have a domain, or not at all.
    pub fn new(bypass: bool) -> Self {
        Self { bypass, ..Self::default() }
    }

    /// The driver resets the device, and accepts `features`.
    pub fn reset(&mut self, features: u64) {
        *self = Self { features, ..Self::new(self.bypass) };
    }

    /// The driver writes `bypass`.
    pub fn set_bypass(&mut self, bypass: u8) {
        if self.features & BYPASS_CONFIG != 0 && bypass <= 1 {
            self.bypass = bypass == 1;
        }
    }

    /// The device has acknowledged `request`.
    pub fn carried_out(&mut self, request: &[u8]) {
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().expect("4 bytes"));
        let long = |at: usize| u64::from(word(at + 4)) << 32 | u64::from(word(at));
        match request[0] {
            1 => self.attach(word(4), word(8), word(12)),
            2 => self.detach(word(4), word(8)),
            3 => {
                let (first, last, physical) = (long(8), long(16), long(24));
                self.map(word(4), Mapping { first, last, physical, flags: word(32) });
            }
            4 => self.unmap(word(4), long(8), long(16)),
            5 => {}
            kind => panic!("there is no request {kind}"),
        }
    }

    fn attach(&mut self, id: u32, endpoint: u32, flags: u32) {
        let is_identity = flags == 1 && self.features & BYPASS_CONFIG != 0;
        assert!(flags == 0 || is_identity, "flags {flags:#x}");
        if self.attached.get(&endpoint) != Some(&id) {
            self.leave(endpoint);
            self.attached.insert(endpoint, id);
        }
        let domain = self.domains.entry(id).or_insert(Domain { is_identity, mappings: vec![] });
        assert_eq!(domain.is_identity, is_identity);
    }

    fn detach(&mut self, id: u32, endpoint: u32) {
        assert_eq!(self.attached.get(&endpoint), Some(&id));
        self.leave(endpoint);
    }

    /// A domain goes with its last endpoint.
    fn leave(&mut self, endpoint: u32) {
        if let Some(id) = self.attached.remove(&endpoint)
            && !self.attached.values().any(|&other| other == id)
        {
            self.domains.remove(&id);
        }
    }

    fn map(&mut self, id: u32, mapping: Mapping) {
        let Mapping { first, last, physical, flags } = mapping;
        let known = if self.features & MMIO != 0 { 7 } else { 3 };
        assert!(self.features & MAP_UNMAP != 0 && flags & !known == 0, "flags {flags:#x}");
        assert!(first < last && last <= LAST_INPUT, "{first:#x}-{last:#x}");
        assert!([first, last + 1, physical].iter().all(|address| address % PAGE_SIZE == 0));
        assert!(last < MSI_FIRST || MSI_LAST < first, "{first:#x}-{last:#x}");
        let domain = self.mapped_domain(id);
        assert!(domain.mappings.iter().all(|other| last < other.first || other.last < first));
        domain.mappings.push(mapping);
    }

    fn unmap(&mut self, id: u32, first: u64, last: u64) {
        assert!(self.features & MAP_UNMAP != 0);
        let domain = self.mapped_domain(id);
        domain.mappings.retain(|mapping| {
            let inside = first <= mapping.first && mapping.last <= last;
            assert!(inside || mapping.last < first || last < mapping.first, "a mapping was split");
            !inside
        });
    }

    fn mapped_domain(&mut self, id: u32) -> &mut Domain {
        let domain = self.domains.get_mut(&id).expect("there is such a domain");
        assert!(!domain.is_identity);
        domain
    }

    /// Where each of `length` bytes from `address` on is for `endpoint`, or the first of them that it
    /// must not access.
    pub fn translate(
        &self,
        endpoint: u32,
        address: u64,
        length: usize,
        is_write: bool,
    ) -> Result<Vec<u64>, Refused> {
        let byte = |offset| {
            let address = address.checked_add(offset).ok_or(Refused(0))?;
            self.byte(endpoint, address, is_write).ok_or(Refused(address))
        };
        (0..length as u64).map(byte).collect()
    }

    fn byte(&self, endpoint: u32, address: u64, is_write: bool) -> Option<u64> {
        let Some(id) = self.attached.get(&endpoint) else {
            return self.bypass.then_some(address);
        };
        let domain = &self.domains[id];
        if domain.is_identity {
            return Some(address);
        }
        let wanted = if is_write { 2 } else { 1 };
        let mapping = domain
            .mappings
            .iter()
            .find(|mapping| (mapping.first..=mapping.last).contains(&address))?;
        (mapping.flags & wanted != 0).then(|| mapping.physical + (address - mapping.first))
    }
}
