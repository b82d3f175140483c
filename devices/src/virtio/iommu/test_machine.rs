//! An IOMMU device and its driver, for tests. Requests are spelled out byte by byte.

use std::sync::{Arc, LazyLock};

use vm_memory::{Bytes, GuestAddress, Permissions};

use super::{Translations, VirtioIommu, VirtioIommuConfig};
use crate::dma::{Iommu, Leases, PhysicalRange, Refused};
use crate::virtio::test_driver::memory::{BUFFERS, RAM_SIZE, STAGE, STAGE_SIZE};
use crate::virtio::test_driver::{Buffer, Count, Rings, TestDriver, TransportKind};

pub const OK: u8 = 0;
pub const UNSUPP: u8 = 2;
pub const INVAL: u8 = 4;
pub const RANGE: u8 = 5;
pub const NOENT: u8 = 6;
pub const NOMEM: u8 = 8;

pub const READ: u32 = 1;
pub const WRITE: u32 = 2;
pub const MMIO: u32 = 4;

/// All features that the device has.
pub const FEATURES: u64 = 0b111_0111;
pub const MAP_UNMAP: u64 = 1 << 2;
pub const BYPASS_CONFIG: u64 = 1 << 6;

/// The first endpoint of a PCI segment, its last one, and the only one outside of the segment.
pub const ENDPOINTS: [u32; 3] = [0, 0xffff, 0x2_0000];

const PAGE: u64 = 0x1000;
/// Apart from the addresses that the tests of all devices use.
const REQUEST_AT: u64 = BUFFERS + 0x400;
const RESPONSE_AT: u64 = BUFFERS + 0x800;

/// The device and its driver.
pub struct TestMachine {
    pub translations: Arc<Translations>,
    pub driver: TestDriver,
    /// Signals of faults to be reported.
    pub fault_signals: Arc<Count>,
}

impl TestMachine {
    /// A machine whose driver has not accessed the device yet.
    pub fn new(on: TransportKind) -> Self {
        let fault_signals = Arc::new(Count::default());
        let endpoints = vec![0..=0xffff, 0x2_0000..=0x2_0000];
        let config = VirtioIommuConfig { endpoints, bypass: true };
        let device = VirtioIommu::new(config, fault_signals.clone(), Leases::default());
        let translations = device.translations();
        let driver = TestDriver::new(on, Arc::new(device));
        Self { translations, driver, fault_signals }
    }

    /// A machine whose driver has accepted all features and is up.
    pub fn up(on: TransportKind) -> Self {
        let mut machine = Self::new(on);
        machine.driver.bring_up(FEATURES, Rings::default());
        machine
    }

    /// Sends `request` in a chain with `room` bytes for the answer, and returns the bytes that were
    /// written.
    pub fn send(&mut self, request: &[u8], room: u32) -> Vec<u8> {
        let response_at = GuestAddress(RESPONSE_AT);
        let mut response = [0xee_u8; 256];
        self.driver.memory.write_slice(request, GuestAddress(REQUEST_AT)).unwrap();
        self.driver.memory.write_slice(&response, response_at).unwrap();
        let chain = [
            Buffer::readable(REQUEST_AT, request.len() as u32),
            Buffer::writable(RESPONSE_AT, room),
        ];
        let written = self.driver.send(&chain) as usize;
        self.driver.memory.read_slice(&mut response, response_at).unwrap();
        assert!(response[written..].iter().all(|&byte| byte == 0xee));
        response[..written].to_vec()
    }

    /// Sends `request`, and returns the status.
    pub fn request(&mut self, request: &[u8]) -> u8 {
        let response = self.send(request, 4);
        let [status, 0, 0, 0] = response[..] else {
            panic!("no tail: {response:x?}");
        };
        status
    }

    pub fn attach(&mut self, domain: u32, endpoint: u32) -> u8 {
        self.request(&attach(domain, endpoint, 0))
    }

    pub fn attach_bypass(&mut self, domain: u32, endpoint: u32) -> u8 {
        self.request(&attach(domain, endpoint, 1))
    }

    pub fn detach(&mut self, domain: u32, endpoint: u32) -> u8 {
        self.request(&detach(domain, endpoint))
    }

    pub fn map(&mut self, domain: u32, first: u64, last: u64, physical: u64, flags: u32) -> u8 {
        self.request(&map(domain, first, last, physical, flags))
    }

    pub fn unmap(&mut self, domain: u32, first: u64, last: u64) -> u8 {
        self.request(&unmap(domain, first, last))
    }

    pub fn mappings(&self) -> usize {
        self.translations.status().mappings
    }

    /// Where one byte at `address` is for `endpoint`.
    pub fn translate(&self, endpoint: u32, address: u64, access: Permissions) -> Option<u64> {
        match self.translations.translate(endpoint, address, 1, access) {
            Ok(pieces) => {
                let [PhysicalRange { address, length: 1 }] = pieces[..] else {
                    panic!("one byte is at {pieces:x?}");
                };
                Some(address)
            }
            Err(Refused) => None,
        }
    }

    /// Stores a request that is always answered, and returns its chain.
    pub fn store_attach(driver: &TestDriver) -> Vec<Buffer> {
        let request: [u8; 20] = attach(1, 0, 0).try_into().unwrap();
        driver.store(REQUEST_AT, request);
        vec![Buffer::readable(REQUEST_AT, 20), Buffer::writable(RESPONSE_AT, 4)]
    }
}

/// The bytes of an ATTACH request, with all reserved bits of the head set.
pub fn attach(domain: u32, endpoint: u32, flags: u32) -> Vec<u8> {
    let body = [domain, endpoint, flags, 0].map(u32::to_le_bytes);
    [&[1, 0xff, 0xff, 0xff], body.as_flattened()].concat()
}

/// The bytes of a DETACH request, with all reserved bits set.
pub fn detach(domain: u32, endpoint: u32) -> Vec<u8> {
    let body = [domain, endpoint, u32::MAX, u32::MAX].map(u32::to_le_bytes);
    [&[2, 0xff, 0xff, 0xff], body.as_flattened()].concat()
}

/// The bytes of a MAP request.
pub fn map(domain: u32, first: u64, last: u64, physical: u64, flags: u32) -> Vec<u8> {
    let range = [first, last, physical].map(u64::to_le_bytes);
    let (domain, flags) = (domain.to_le_bytes(), flags.to_le_bytes());
    [&[3, 0, 0, 0], &domain[..], range.as_flattened(), &flags].concat()
}

/// The bytes of an UNMAP request.
pub fn unmap(domain: u32, first: u64, last: u64) -> Vec<u8> {
    let range = [first, last].map(u64::to_le_bytes);
    [&[4, 0, 0, 0], &domain.to_le_bytes()[..], range.as_flattened(), &[0; 4]].concat()
}

/// The bytes of a PROBE request, with all reserved bits set.
pub fn probe(endpoint: u32) -> Vec<u8> {
    [&[5, 0xff, 0xff, 0xff], &endpoint.to_le_bytes()[..], &[0xff; 64]].concat()
}

/// An IOMMU for [`TestDriver::behind`] that translates all memory to itself, each page by a
/// mapping of its own. All tests share it.
pub fn page_by_page() -> Arc<Translations> {
    static TRANSLATIONS: LazyLock<Arc<Translations>> = LazyLock::new(map_page_by_page);
    Arc::clone(&TRANSLATIONS)
}

fn map_page_by_page() -> Arc<Translations> {
    let mut machine = TestMachine::up(TransportKind::Mmio);
    assert_eq!(machine.attach(1, TestDriver::ENDPOINT), OK);
    for (start, size) in [(0, RAM_SIZE), (STAGE, STAGE_SIZE)] {
        for page in (start..start + size).step_by(PAGE as usize) {
            assert_eq!(machine.map(1, page, page + (PAGE - 1), page, READ | WRITE), OK);
        }
    }
    machine.translations
}
