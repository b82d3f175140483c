//! The device: decide a request, have it carried out, commit, answer.

use std::io::{Read, Write};

use log::warn;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zerocopy::{FromZeros, IntoBytes};

use super::block_map::BlockMap;
use super::region::{BlockRange, Region};
use super::wire::{
    BlockRangeState, Config, FEATURE_ACPI_PXM, FEATURE_UNPLUGGED_INACCESSIBLE, Request,
    RequestBytes, RequestedRange, Response, ResponseBytes,
};
use super::{BackendBusy, BlockBackend};
use crate::dma::DmaView;
use crate::virtio::{Chain, DeviceType, VirtioDevice, read_config_bytes};

/// How a device is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMemConfig {
    /// Where its memory lies.
    pub region: Region,
    /// Bytes requested from the driver at first.
    pub requested_size: u64,
    /// The ACPI proximity domain of the memory, if the machine has any.
    pub node_id: Option<u16>,
    /// Refuse drivers that do not accept UNPLUGGED_INACCESSIBLE (I4).
    pub insist_on_inaccessible: bool,
}

/// A requested size that cannot be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ResizeError {
    /// C2.
    #[error(
        "requested size {requested} is not a multiple of the block size {block_size}; nearest: {nearest}"
    )]
    NotBlocks {
        /// Bytes asked for.
        requested: u64,
        /// Bytes in a block.
        block_size: u64,
        /// The nearest size that would do, in bytes.
        nearest: u64,
    },
    /// More than there is room for.
    #[error("requested size {requested} is more than the region's {region_size} bytes")]
    TooLarge {
        /// Bytes asked for.
        requested: u64,
        /// Size of the region in bytes.
        region_size: u64,
    },
}

/// How often the driver asked for what, and was refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RequestCounters {
    pub plug: u64,
    pub unplug: u64,
    pub unplug_all: u64,
    pub state: u64,
    pub nack: u64,
    pub busy: u64,
    pub error: u64,
}

/// What an access of a vCPU to an unplugged block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnpluggedAccess {
    /// The driver may do it, and reads zeros (X3).
    Permitted,
    /// It may not (X2).
    Violation,
}

/// What to do about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Plug(BlockRange),
    Unplug(BlockRange),
    UnplugAll,
    Answer(Response),
}

/// A virtio-mem device.
pub struct VirtioMem {
    region: Region,
    node_id: Option<u16>,
    insist_on_inaccessible: bool,
    inaccessible_negotiated: bool,
    blocks: BlockMap,
    usable_blocks: u64,
    requested_blocks: u64,
    backend: Box<dyn BlockBackend>,
    counters: RequestCounters,
}

impl VirtioMem {
    /// Room beyond the requested size, so that a driver finds blocks it can use (C11).
    const USABLE_EXTRA_BYTES: u64 = 256 << 20;

    /// A device with every block unplugged (I1), whose memory is `backend`.
    pub fn new(
        config: VirtioMemConfig,
        backend: Box<dyn BlockBackend>,
    ) -> Result<Self, ResizeError> {
        let VirtioMemConfig { region, requested_size, node_id, insist_on_inaccessible } = config;
        let requested_blocks = requested_blocks(&region, requested_size)?;
        Ok(Self {
            region,
            node_id,
            insist_on_inaccessible,
            inaccessible_negotiated: false,
            blocks: BlockMap::new(region.block_count()),
            usable_blocks: usable_blocks(&region, requested_blocks),
            requested_blocks,
            backend,
            counters: RequestCounters::default(),
        })
    }

    /// Where the device's memory lies.
    pub fn region(&self) -> Region {
        self.region
    }

    /// Bytes plugged.
    pub fn plugged_size(&self) -> u64 {
        self.blocks.plugged() * self.region.block_size()
    }

    /// Bytes that the driver is asked to plug.
    pub fn requested_size(&self) -> u64 {
        self.requested_blocks * self.region.block_size()
    }

    /// Bytes from the start of the region in which blocks may be plugged.
    pub fn usable_region_size(&self) -> u64 {
        self.usable_blocks * self.region.block_size()
    }

    /// What the driver has asked so far.
    pub fn counters(&self) -> RequestCounters {
        self.counters
    }

    /// Asks the driver to plug or unplug until `bytes` are plugged. True if that is news, which
    /// the transport must then tell the driver (C7).
    pub fn set_requested_size(&mut self, bytes: u64) -> Result<bool, ResizeError> {
        let requested = requested_blocks(&self.region, bytes)?;
        let changed = requested != self.requested_blocks;
        self.requested_blocks = requested;
        // The usable size only grows here: blocks beyond a smaller one may be plugged (C6).
        self.usable_blocks = self.usable_blocks.max(usable_blocks(&self.region, requested));
        Ok(changed)
    }

    /// What an access by a vCPU to the unplugged memory at `address` is (X2, X3).
    pub fn classify_unplugged_access(&self, address: u64, is_write: bool) -> UnpluggedAccess {
        let usable =
            self.region.block_at(address).is_some_and(|block| block.0 < self.usable_blocks);
        let may_read = !self.inaccessible_negotiated && !self.insist_on_inaccessible;
        if usable && !is_write && may_read {
            UnpluggedAccess::Permitted
        } else {
            UnpluggedAccess::Violation
        }
    }

    fn answer(&mut self, request: Request) -> Response {
        let response = match self.decide(request) {
            Decision::Plug(range) => self.plug(range),
            Decision::Unplug(range) => self.unplug(range),
            Decision::UnplugAll => self.unplug_all(),
            Decision::Answer(response) => response,
        };
        self.count(request, response);
        response
    }

    fn decide(&self, request: Request) -> Decision {
        let resolve = |range: RequestedRange| self.region.resolve(range, self.usable_blocks);
        let refuse = Decision::Answer(Response::Error);
        match request {
            Request::Plug(range) => match resolve(range) {
                Some(range) if self.blocks.state(range) != BlockRangeState::Unplugged => refuse,
                // NACK and never ERROR, which would make Linux give the device up: the requested
                // size may have shrunk while the request was under way (P6).
                Some(range) if self.blocks.plugged() + range.count() > self.requested_blocks => {
                    Decision::Answer(Response::Nack)
                }
                Some(range) => Decision::Plug(range),
                None => refuse,
            },
            Request::Unplug(range) => match resolve(range) {
                Some(range) if self.blocks.state(range) == BlockRangeState::Plugged => {
                    Decision::Unplug(range)
                }
                _ => refuse,
            },
            Request::UnplugAll => Decision::UnplugAll,
            Request::State(range) => resolve(range).map_or(refuse, |range| {
                Decision::Answer(Response::State(self.blocks.state(range)))
            }),
            Request::Unknown(_) => refuse,
        }
    }

    fn plug(&mut self, range: BlockRange) -> Response {
        let plugged = self.backend.plug(range);
        self.commit(plugged, |device| device.blocks.plug(range))
    }

    fn unplug(&mut self, range: BlockRange) -> Response {
        let unplugged = self.backend.unplug(range);
        self.commit(unplugged, |device| device.blocks.unplug(range))
    }

    fn unplug_all(&mut self) -> Response {
        let unplugged = self.backend.unplug_all();
        self.commit(unplugged, |device| {
            device.blocks.unplug_all();
            device.usable_blocks = usable_blocks(&device.region, device.requested_blocks);
        })
    }

    fn commit(
        &mut self,
        result: Result<(), BackendBusy>,
        change: impl FnOnce(&mut Self),
    ) -> Response {
        match result {
            Ok(()) => {
                change(self);
                Response::Ack
            }
            Err(error) => {
                if self.counters.busy == 0 {
                    warn!("the memory device answers BUSY: {error}");
                }
                Response::Busy
            }
        }
    }

    fn count(&mut self, request: Request, response: Response) {
        match request {
            Request::Plug(_) => self.counters.plug += 1,
            Request::Unplug(_) => self.counters.unplug += 1,
            Request::UnplugAll => self.counters.unplug_all += 1,
            Request::State(_) => self.counters.state += 1,
            Request::Unknown(_) => {}
        }
        match response {
            Response::Nack => self.counters.nack += 1,
            Response::Busy => self.counters.busy += 1,
            Response::Error => self.counters.error += 1,
            Response::Ack | Response::State(_) => {}
        }
    }

    fn config(&self) -> Config {
        Config {
            block_size: self.region.block_size().into(),
            node_id: self.node_id.unwrap_or(0).into(),
            padding: [0; 6],
            addr: self.region.address().into(),
            region_size: self.region.size().into(),
            usable_region_size: self.usable_region_size().into(),
            plugged_size: self.plugged_size().into(),
            requested_size: self.requested_size().into(),
        }
    }
}

impl VirtioDevice for VirtioMem {
    fn device_type(&self) -> DeviceType {
        DeviceType::Memory
    }

    fn features(&self) -> u64 {
        let pxm = if self.node_id.is_some() { FEATURE_ACPI_PXM } else { 0 };
        FEATURE_UNPLUGGED_INACCESSIBLE | pxm
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        &[128]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(self.config().as_bytes(), offset, data);
    }

    fn accept_features(&mut self, features: u64) -> bool {
        self.inaccessible_negotiated = features & FEATURE_UNPLUGGED_INACCESSIBLE != 0;
        self.inaccessible_negotiated || !self.insist_on_inaccessible
    }

    fn process_chain(&mut self, _queue: u16, memory: &DmaView, chain: Chain<'_>) -> u32 {
        // Without room for the answer the request is not carried out: the driver would not know.
        if !has_room_for_response(memory, chain.clone()) {
            return 0;
        }
        let response = match read_request(memory, chain.clone()) {
            Some(request) => self.answer(request),
            None => {
                self.counters.error += 1;
                Response::Error
            }
        };
        // The buffer is looked up anew: the request may have unplugged the memory it lies in.
        write_response(memory, chain, response)
    }

    fn reset(&mut self) {
        // No block changes (I2): the driver that comes next finds what this one left.
        self.inaccessible_negotiated = false;
    }
}

fn read_request(memory: &DmaView, chain: Chain<'_>) -> Option<Request> {
    let mut bytes = RequestBytes::new_zeroed();
    chain.reader(memory).ok()?.read_exact(bytes.as_mut_bytes()).ok()?;
    Some(bytes.into())
}

fn has_room_for_response(memory: &DmaView, chain: Chain<'_>) -> bool {
    chain.writer(memory).is_ok_and(|writer| writer.available_bytes() >= size_of::<ResponseBytes>())
}

/// Writes the response, and returns how many bytes that took: none where it no longer fits.
fn write_response(memory: &DmaView, chain: Chain<'_>, response: Response) -> u32 {
    let bytes = ResponseBytes::from(response);
    match chain.writer(memory).map(|mut writer| writer.write_all(bytes.as_bytes())) {
        Ok(Ok(())) => size_of::<ResponseBytes>() as u32,
        _ => 0,
    }
}

fn requested_blocks(region: &Region, bytes: u64) -> Result<u64, ResizeError> {
    let block_size = region.block_size();
    if bytes > region.size() {
        return Err(ResizeError::TooLarge { requested: bytes, region_size: region.size() });
    }
    if !bytes.is_multiple_of(block_size) {
        let nearest = (bytes + block_size / 2) / block_size * block_size;
        return Err(ResizeError::NotBlocks { requested: bytes, block_size, nearest });
    }
    Ok(bytes / block_size)
}

/// C11: the requested size and some room, in blocks, capped at the region.
fn usable_blocks(region: &Region, requested_blocks: u64) -> u64 {
    let extra = VirtioMem::USABLE_EXTRA_BYTES.div_ceil(region.block_size());
    (requested_blocks + extra).min(region.block_count())
}
