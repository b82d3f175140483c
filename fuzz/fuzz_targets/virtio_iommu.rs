//! Requests to an IOMMU, and the DMA of devices behind it.
//!
//! Every transfer must access exactly the bytes that a simple model has for it, or none. Every reported
//! fault must be of a transfer that was refused.
#![no_main]

use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use devices::dma::{DmaPath, FixedRequester, Leases};
use devices::virtio::iommu::{Translations, VirtioIommu, VirtioIommuConfig};
use libfuzzer_sys::fuzz_target;
use moat_fuzz::guest::{Count, Memory, contents};
use moat_fuzz::iommu_model::{Model, Refused};
use moat_fuzz::mmio_driver::{self, BUFFERS, MmioDriver};
use virtio_driver::{Buffer, Bus, mmio};
use vm_memory::{Bytes, GuestAddress};

/// The memory that endpoints access.
const MEMORY: u64 = 0x10_0000;
const MEMORY_SIZE: usize = 0x4000;

const PAGE_SIZE: u64 = 0x1000;
const REQUEST_QUEUE: u16 = 0;
const EVENT_QUEUE: u16 = 1;
const REQUEST_AT: u64 = BUFFERS;
const ANSWER_AT: u64 = BUFFERS + 0x1000;
const REPORT_AT: u64 = BUFFERS + 0x2000;
const REPORT_SIZE: u32 = 24;
/// All features of the device.
const FEATURES: u64 = 0b111_0111;
/// Offset of `bypass` in the configuration.
const BYPASS: u64 = 36;

#[derive(Debug, Arbitrary)]
enum Action {
    Attach { domain: Domain, endpoint: Endpoint, flags: Flags },
    Detach { domain: Domain, endpoint: Endpoint },
    Map { domain: Domain, range: Range, physical: Physical, flags: Flags },
    Unmap { domain: Domain, range: Range },
    Probe { endpoint: Endpoint, room: u8 },
    AnyRequest { bytes: Vec<u8>, room: u8 },
    SetBypass(u8),
    BringUp { features: u8 },
    Dma { endpoint: Endpoint, address: Input, length: u16, byte: u8, is_write: bool },
    TakeReports,
}

/// A few domains, or any.
#[derive(Debug)]
struct Domain(u32);

/// An endpoint that exists, or any.
#[derive(Debug)]
struct Endpoint(u32);

/// Flags that exist, or any.
#[derive(Debug)]
struct Flags(u32);

/// An address that endpoints access: near a border of pages, or any.
#[derive(Debug)]
struct Input(u64);

/// Addresses to be mapped: mostly few pages.
#[derive(Debug)]
struct Range {
    first: u64,
    last: u64,
}

/// The addresses that they are mapped to: mostly memory.
#[derive(Debug)]
struct Physical(u64);

impl<'a> Arbitrary<'a> for Domain {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(if u.ratio(1, 16)? { u.arbitrary()? } else { u.int_in_range(0..=3)? }))
    }
}

impl<'a> Arbitrary<'a> for Endpoint {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let known = *u.choose(&[0, 8, 0xffff, 0x2_0000])?;
        Ok(Self(if u.ratio(1, 16)? { u.arbitrary()? } else { known }))
    }
}

impl<'a> Arbitrary<'a> for Flags {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(if u.ratio(1, 16)? { u.arbitrary()? } else { u.int_in_range(0..=3)? }))
    }
}

/// The start of one of a few pages, some of them at the ends of what can be mapped.
fn page(u: &mut Unstructured) -> Result<u64> {
    let base =
        *u.choose(&[0, 0, 0, MEMORY, 0xfedf_e000, 0xfeef_e000, (1 << 48) - 8 * PAGE_SIZE])?;
    Ok(base + PAGE_SIZE * u.int_in_range(0..=7)?)
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(match u.int_in_range(0..=15)? {
            0 => u.arbitrary()?,
            1..8 => page(u)?.wrapping_sub(u.int_in_range(1..=64)?),
            _ => page(u)? + u.int_in_range(0..=PAGE_SIZE - 1)?,
        }))
    }
}

impl<'a> Arbitrary<'a> for Range {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        if u.ratio(1, 16)? {
            return Ok(Self { first: u.arbitrary()?, last: u.arbitrary()? });
        }
        let first = page(u)?;
        let size = PAGE_SIZE << u.choose(&[0, 0, 0, 1, 1, 2, 20, 36])?;
        Ok(Self { first, last: first + (size - 1) })
    }
}

impl<'a> Arbitrary<'a> for Physical {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let in_memory = MEMORY + PAGE_SIZE * u.int_in_range(0..=4)?;
        Ok(Self(if u.ratio(1, 16)? { u.arbitrary()? } else { in_memory }))
    }
}

struct Machine {
    driver: MmioDriver,
    translations: Arc<Translations>,
    memory: Memory,
    /// The expected contents of memory.
    expected: Vec<u8>,
    model: Model,
    /// Endpoint and address of each transfer that was refused.
    refused: Vec<(u32, u64)>,
}

impl Machine {
    fn new(bypass: bool) -> Self {
        let endpoints = vec![0..=0xffff, 0x2_0000..=0x2_0000];
        let config = VirtioIommuConfig { endpoints, bypass };
        let device = VirtioIommu::new(config, Arc::new(Count::default()), Leases::default());
        let translations = device.translations();
        let rings = Memory::new(0, mmio_driver::MEMORY_SIZE);
        let mut machine = Self {
            driver: MmioDriver::new(Arc::new(device), rings.guest.clone(), rings.view()),
            translations,
            memory: Memory::new(MEMORY, MEMORY_SIZE),
            expected: vec![0; MEMORY_SIZE],
            model: Model::new(bypass),
            refused: vec![],
        };
        machine.bring_up(FEATURES);
        machine
    }

    fn bring_up(&mut self, features: u64) {
        self.driver.bring_up(features & FEATURES);
        self.model.reset(features & FEATURES);
        self.refused.clear();
    }

    /// Sends a request, and updates the model with it if the device acknowledges it.
    fn request(&mut self, request: &[u8], room: u32) {
        self.driver.store(REQUEST_AT, request);
        let request_buffer = Buffer::readable(REQUEST_AT, request.len() as u32);
        let chain = [request_buffer, Buffer::writable(ANSWER_AT, room)];
        // A device may refuse a chain that has an empty buffer.
        let chain = chain.into_iter().filter(|buffer| buffer.len > 0);
        self.driver.publish_chain(REQUEST_QUEUE, &chain.collect::<Vec<_>>());
        let written = self.driver.take_used(REQUEST_QUEUE).expect("every chain is answered");
        assert!(written <= room);
        let Some(tail) = written.checked_sub(4) else {
            return;
        };
        let answer = contents(&self.driver.memory, ANSWER_AT, written as usize);
        if answer[tail as usize] == 0 {
            self.model.carried_out(request);
        }
    }

    fn dma(&mut self, endpoint: u32, address: u64, bytes: &mut [u8], is_write: bool) {
        let path = DmaPath::through(Arc::clone(&self.translations) as _, self.memory.dma.clone());
        let view = path.view(Arc::new(FixedRequester(endpoint)));
        let view = view.lease().expect("it may always access memory");
        let places = self.model.translate(endpoint, address, bytes.len(), is_write);
        if let Err(Refused(address)) = places {
            self.refused.push((endpoint, address));
        }
        let in_memory = |places: Vec<u64>| {
            let offsets = places.into_iter().map(|place| {
                let offset = usize::try_from(place.checked_sub(MEMORY)?).ok()?;
                (offset < MEMORY_SIZE).then_some(offset)
            });
            offsets.collect::<Option<Vec<_>>>()
        };
        let offsets = places.ok().and_then(in_memory);
        let done = if is_write {
            view.write_slice(bytes, GuestAddress(address))
        } else {
            view.read_slice(bytes, GuestAddress(address))
        };
        assert_eq!(done.is_ok(), offsets.is_some(), "{done:?}");
        for (offset, byte) in offsets.into_iter().flatten().zip(bytes) {
            if is_write {
                self.expected[offset] = *byte;
            } else {
                assert_eq!(*byte, self.expected[offset]);
            }
        }
        assert!(self.memory.contents(MEMORY, MEMORY_SIZE) == self.expected);
    }

    fn take_report(&mut self) -> bool {
        if !self.driver.is_waiting(EVENT_QUEUE) {
            self.driver.publish_chain(EVENT_QUEUE, &[Buffer::writable(REPORT_AT, REPORT_SIZE)]);
        }
        let Some(written) = self.driver.take_used(EVENT_QUEUE) else {
            return false;
        };
        assert_eq!(written, REPORT_SIZE);
        let report = contents(&self.driver.memory, REPORT_AT, REPORT_SIZE as usize);
        let endpoint = u32::from_le_bytes(report[8..12].try_into().expect("4 bytes"));
        let address = u64::from_le_bytes(report[16..24].try_into().expect("8 bytes"));
        assert!(self.refused.contains(&(endpoint, address)), "{endpoint:#x} {address:#x}");
        true
    }
}

/// The bytes of a request.
fn request(kind: u8, words: &[u32], longs: &[u64], more: &[u32]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend(longs.iter().flat_map(|long| long.to_le_bytes()));
    bytes.extend(more.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

fn run(machine: &mut Machine, action: Action) {
    match action {
        Action::Attach { domain, endpoint, flags } => {
            machine.request(&request(1, &[domain.0, endpoint.0, flags.0, 0], &[], &[]), 4);
        }
        Action::Detach { domain, endpoint } => {
            machine.request(&request(2, &[domain.0, endpoint.0, 0, 0], &[], &[]), 4);
        }
        Action::Map { domain, range, physical, flags } => {
            let addresses = [range.first, range.last, physical.0];
            machine.request(&request(3, &[domain.0], &addresses, &[flags.0]), 4);
        }
        Action::Unmap { domain, range } => {
            machine.request(&request(4, &[domain.0], &[range.first, range.last], &[0]), 4);
        }
        Action::Probe { endpoint, room } => {
            machine.request(&request(5, &[endpoint.0], &[0; 8], &[]), room.into());
        }
        Action::AnyRequest { mut bytes, room } => {
            bytes.truncate(0x100);
            if !bytes.is_empty() {
                machine.request(&bytes, room.into());
            }
        }
        Action::SetBypass(bypass) => {
            machine.driver.write(mmio::CONFIG + BYPASS, &[bypass]);
            machine.model.set_bypass(bypass);
        }
        Action::BringUp { features } => machine.bring_up(features.into()),
        Action::Dma { endpoint, address, length, byte, is_write } => {
            let mut bytes = vec![byte; 1 + usize::from(length % 0x200)];
            machine.dma(endpoint.0, address.0, &mut bytes, is_write);
        }
        Action::TakeReports => while machine.take_report() {},
    }
}

fuzz_target!(|input: (bool, Vec<Action>)| {
    let (bypass, actions) = input;
    let mut machine = Machine::new(bypass);
    for action in actions {
        run(&mut machine, action);
    }
});
