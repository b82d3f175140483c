//! The device: reads requests, has them carried out, answers, and reports faults.

use std::io::{Read, Write};
use std::mem::offset_of;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use log::debug;
use zerocopy::{FromBytes, IntoBytes};

use super::translations::{MSI_WINDOW, PROBE_SIZE, Translations};
use super::wire::{
    Config, FaultReport, Features, Head, Probe, Request, RequestType, ReservedMemory, Status, Tail,
};
use crate::dma::Leases;
use crate::virtio::{Chain, DeviceType, VirtioDevice, read_config_bytes};
use crate::{Signal, lock};

const REQUEST_QUEUE: u16 = 0;

/// The configuration of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtioIommuConfig {
    /// The IDs of the endpoints that exist, which the machine's tables (ACPI VIOT) must list.
    ///
    /// For PCI that is a whole segment: the requester IDs change as the guest numbers buses, and an ID
    /// without a function never accesses anything.
    pub endpoints: Vec<RangeInclusive<u32>>,
    /// Whether endpoints access memory untranslated until the driver attaches them to a domain.
    pub bypass: bool,
}

/// A virtio-iommu device.
pub struct VirtioIommu {
    translations: Arc<Translations>,
    negotiated: Mutex<Features>,
}

impl VirtioIommu {
    /// A device whose translations are not in use yet.
    ///
    /// `doorbell` is signalled when there is a fault to report to the driver. The machine then
    /// calls [`Transport::process_queues`](crate::virtio::transport::Transport::process_queues).
    /// `leases` are those within which translated accesses are made.
    pub fn new(config: VirtioIommuConfig, doorbell: Arc<dyn Signal>, leases: Leases) -> Self {
        let VirtioIommuConfig { endpoints, bypass } = config;
        let translations = Arc::new(Translations::new(endpoints, bypass, doorbell, leases));
        Self { translations, negotiated: Mutex::new(Features::empty()) }
    }

    /// The translations, for the [`DmaPath`](crate::dma::DmaPath) of other devices.
    pub fn translations(&self) -> Arc<Translations> {
        Arc::clone(&self.translations)
    }

    fn negotiated(&self) -> Features {
        *lock(&self.negotiated)
    }

    /// Carries out the request of `chain`, and returns how many bytes the answer took. Without room for
    /// the answer the request is not carried out, as the driver would not learn the result.
    fn answer(&self, chain: &Chain<'_>) -> Option<u32> {
        let (mut reader, mut writer) = (chain.reader()?, chain.writer()?);
        let kind = RequestType::from(read::<Head>(&mut reader)?);
        let room = writer.available().checked_sub(size_of::<Tail>() as u64)?;
        let properties_size = match kind {
            RequestType::Unknown(_) => return None,
            RequestType::Probe => room.min(PROBE_SIZE as u64) as usize,
            _ => 0,
        };
        let mut properties = vec![0; properties_size];
        let status = match read_request(kind, &mut reader) {
            Some(request) => self.carry_out(&request, &mut properties),
            None => Status::Invalid,
        };
        if status != Status::Ok {
            debug!("IOMMU request {kind:?} failed: {status:?}");
        }
        writer.write_all(&properties).ok()?;
        writer.write_all(Tail::from(status).as_bytes()).ok()?;
        Some(writer.written())
    }

    fn carry_out(&self, request: &Request, properties: &mut [u8]) -> Status {
        let negotiated = self.negotiated();
        let map_unmap = negotiated.contains(Features::MAP_UNMAP);
        match request {
            Request::Attach(attach) => self.translations.attach(attach, negotiated),
            Request::Detach(detach) => self.translations.detach(detach),
            Request::Map(map) if map_unmap => self.translations.map(map, negotiated),
            Request::Unmap(unmap) if map_unmap => self.translations.unmap(unmap),
            Request::Map(_) | Request::Unmap(_) => Status::Unsupported,
            Request::Probe(probe) => self.probe(probe, properties),
        }
    }

    /// Section 5.13.6.7.2. All endpoints are alike.
    fn probe(&self, request: &Probe, properties: &mut [u8]) -> Status {
        let (first, last) = MSI_WINDOW.into_inner();
        let property = ReservedMemory::msi(first, last);
        if properties.len() < PROBE_SIZE {
            return Status::Invalid;
        }
        if !self.translations.has_endpoint(request.endpoint.get()) {
            return Status::NoEntry;
        }
        properties[..size_of::<ReservedMemory>()].copy_from_slice(property.as_bytes());
        Status::Ok
    }

    /// Puts the oldest pending report into `chain`.
    fn report(&self, chain: &Chain<'_>) -> u32 {
        let Some(report) = self.translations.take_fault_report() else {
            return 0;
        };
        let written = chain.writer().is_some_and(|mut writer| {
            writer.available() >= size_of::<FaultReport>() as u64
                && writer.write_all(report.as_bytes()).is_ok()
        });
        self.translations.count_report(written);
        if written { size_of::<FaultReport>() as u32 } else { 0 }
    }
}

impl VirtioDevice for VirtioIommu {
    fn device_type(&self) -> DeviceType {
        DeviceType::Iommu
    }

    fn features(&self) -> u64 {
        Features::all().bits()
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        &[128, 64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(self.translations.config().as_bytes(), offset, data);
    }

    /// The driver may write `bypass`, and nothing else.
    fn write_config(&self, offset: u64, data: &[u8]) {
        let bypass = (offset_of!(Config, bypass) as u64)
            .checked_sub(offset)
            .and_then(|index| data.get(usize::try_from(index).ok()?));
        if let Some(&bypass @ 0..=1) = bypass
            && self.negotiated().contains(Features::BYPASS_CONFIG)
        {
            self.translations.set_bypass(bypass != 0);
        }
    }

    fn accept_features(&self, features: u64) -> bool {
        *lock(&self.negotiated) = Features::from_bits_truncate(features);
        true
    }

    /// Buffers for fault reports stay where they are until there is a fault.
    fn wants_chain(&self, queue: u16) -> bool {
        queue == REQUEST_QUEUE || self.translations.has_fault_to_report()
    }

    fn process_chain(&self, queue: u16, chain: &Chain<'_>) -> u32 {
        if queue == REQUEST_QUEUE { self.answer(chain).unwrap_or(0) } else { self.report(chain) }
    }

    fn reset(&self) {
        *lock(&self.negotiated) = Features::empty();
        self.translations.reset();
    }
}

/// Reads the rest of a request of type `kind`. None if it is too short.
fn read_request(kind: RequestType, reader: &mut impl Read) -> Option<Request> {
    Some(match kind {
        RequestType::Attach => Request::Attach(read(reader)?),
        RequestType::Detach => Request::Detach(read(reader)?),
        RequestType::Map => Request::Map(read(reader)?),
        RequestType::Unmap => Request::Unmap(read(reader)?),
        RequestType::Probe => Request::Probe(read(reader)?),
        RequestType::Unknown(_) => return None,
    })
}

fn read<T: FromBytes + IntoBytes>(reader: &mut impl Read) -> Option<T> {
    let mut value = T::new_zeroed();
    reader.read_exact(value.as_mut_bytes()).ok()?;
    Some(value)
}
