//! The device: decide a request, have it carried out, commit, answer.

use std::io::{Read, Write};
use std::sync::Mutex;

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
use crate::lock;
use crate::virtio::{Chain, DeviceType, VirtioDevice, read_config_bytes};

/// The configuration of a device.
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

/// Why a requested size is invalid.
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
        /// The nearest valid size, in bytes.
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

/// The number of requests of each type, and of those that were refused.
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

/// Whether a vCPU may make an access to an unplugged block.
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
///
/// Requests come one after the other. One may take the backend as long as the host does, and nothing of
/// the device is locked meanwhile.
pub struct VirtioMem {
    region: Region,
    node_id: Option<u16>,
    insist_on_inaccessible: bool,
    state: Mutex<State>,
    backend: Box<dyn BlockBackend>,
}

struct State {
    inaccessible_negotiated: bool,
    blocks: BlockMap,
    usable_blocks: u64,
    requested_blocks: u64,
    counters: RequestCounters,
}

impl VirtioMem {
    /// Usable bytes beyond the requested size, so that a driver finds blocks it can use (C11).
    const USABLE_EXTRA_BYTES: u64 = 256 << 20;

    /// A device with every block unplugged (I1), whose memory is `backend`.
    pub fn new(
        config: VirtioMemConfig,
        backend: Box<dyn BlockBackend>,
    ) -> Result<Self, ResizeError> {
        let VirtioMemConfig { region, requested_size, node_id, insist_on_inaccessible } = config;
        let requested_blocks = requested_blocks(&region, requested_size)?;
        let state = State {
            inaccessible_negotiated: false,
            blocks: BlockMap::new(region.block_count()),
            usable_blocks: usable_blocks(&region, requested_blocks),
            requested_blocks,
            counters: RequestCounters::default(),
        };
        Ok(Self { region, node_id, insist_on_inaccessible, state: Mutex::new(state), backend })
    }

    /// Where the device's memory lies.
    pub fn region(&self) -> Region {
        self.region
    }

    /// Bytes plugged.
    pub fn plugged_size(&self) -> u64 {
        lock(&self.state).blocks.plugged() * self.region.block_size()
    }

    /// Bytes that the driver is asked to plug.
    pub fn requested_size(&self) -> u64 {
        lock(&self.state).requested_blocks * self.region.block_size()
    }

    /// Bytes from the start of the region in which blocks may be plugged.
    pub fn usable_region_size(&self) -> u64 {
        lock(&self.state).usable_blocks * self.region.block_size()
    }

    /// The requests so far.
    pub fn counters(&self) -> RequestCounters {
        lock(&self.state).counters
    }

    /// Asks the driver to plug or unplug until `bytes` are plugged. True if that changes the requested
    /// size, of which the transport must then notify the driver (C7).
    pub fn set_requested_size(&self, bytes: u64) -> Result<bool, ResizeError> {
        let requested = requested_blocks(&self.region, bytes)?;
        let mut state = lock(&self.state);
        let changed = requested != state.requested_blocks;
        state.requested_blocks = requested;
        // The usable size only grows here: blocks beyond a smaller one may be plugged (C6).
        state.usable_blocks = state.usable_blocks.max(usable_blocks(&self.region, requested));
        Ok(changed)
    }

    /// Whether a vCPU may access the unplugged memory at `address` (X2, X3).
    pub fn classify_unplugged_access(&self, address: u64, is_write: bool) -> UnpluggedAccess {
        let state = lock(&self.state);
        let usable =
            self.region.block_at(address).is_some_and(|block| block.0 < state.usable_blocks);
        let may_read = !state.inaccessible_negotiated && !self.insist_on_inaccessible;
        if usable && !is_write && may_read {
            UnpluggedAccess::Permitted
        } else {
            UnpluggedAccess::Violation
        }
    }

    fn answer(&self, request: Request) -> Response {
        let decision = self.decide(&lock(&self.state), request);
        let response = match decision {
            Decision::Plug(range) => self.plug(range),
            Decision::Unplug(range) => self.unplug(range),
            Decision::UnplugAll => self.unplug_all(),
            Decision::Answer(response) => response,
        };
        lock(&self.state).count(request, response);
        response
    }

    fn decide(&self, state: &State, request: Request) -> Decision {
        let resolve = |range: RequestedRange| self.region.resolve(range, state.usable_blocks);
        let refuse = Decision::Answer(Response::Error);
        match request {
            Request::Plug(range) => match resolve(range) {
                Some(range) if state.blocks.state(range) != BlockRangeState::Unplugged => refuse,
                // NACK and never ERROR, which would make Linux give the device up: the requested
                // size may have shrunk while the request was under way (P6).
                Some(range) if state.blocks.plugged() + range.count() > state.requested_blocks => {
                    Decision::Answer(Response::Nack)
                }
                Some(range) => Decision::Plug(range),
                None => refuse,
            },
            Request::Unplug(range) => match resolve(range) {
                Some(range) if state.blocks.state(range) == BlockRangeState::Plugged => {
                    Decision::Unplug(range)
                }
                _ => refuse,
            },
            Request::UnplugAll => Decision::UnplugAll,
            Request::State(range) => resolve(range).map_or(refuse, |range| {
                Decision::Answer(Response::State(state.blocks.state(range)))
            }),
            Request::Unknown(_) => refuse,
        }
    }

    fn plug(&self, range: BlockRange) -> Response {
        let plugged = self.backend.plug(range);
        self.commit(plugged, |state| state.blocks.plug(range))
    }

    fn unplug(&self, range: BlockRange) -> Response {
        let unplugged = self.backend.unplug(range);
        self.commit(unplugged, |state| state.blocks.unplug(range))
    }

    fn unplug_all(&self) -> Response {
        let unplugged = self.backend.unplug_all();
        self.commit(unplugged, |state| {
            state.blocks.unplug_all();
            state.usable_blocks = usable_blocks(&self.region, state.requested_blocks);
        })
    }

    fn commit(&self, result: Result<(), BackendBusy>, change: impl FnOnce(&mut State)) -> Response {
        let mut state = lock(&self.state);
        match result {
            Ok(()) => {
                change(&mut state);
                Response::Ack
            }
            Err(error) => {
                if state.counters.busy == 0 {
                    warn!("the memory device answers BUSY: {error}");
                }
                Response::Busy
            }
        }
    }

    fn config(&self) -> Config {
        let state = lock(&self.state);
        let bytes = |blocks: u64| (blocks * self.region.block_size()).into();
        Config {
            block_size: self.region.block_size().into(),
            node_id: self.node_id.unwrap_or(0).into(),
            padding: [0; 6],
            addr: self.region.address().into(),
            region_size: self.region.size().into(),
            usable_region_size: bytes(state.usable_blocks),
            plugged_size: bytes(state.blocks.plugged()),
            requested_size: bytes(state.requested_blocks),
        }
    }
}

impl State {
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

    fn accept_features(&self, features: u64) -> bool {
        let inaccessible = features & FEATURE_UNPLUGGED_INACCESSIBLE != 0;
        lock(&self.state).inaccessible_negotiated = inaccessible;
        inaccessible || !self.insist_on_inaccessible
    }

    fn process_chain(&self, _queue: u16, chain: &Chain<'_>) -> u32 {
        // Without room for the answer the request is not carried out, as the driver would not learn the
        // result.
        let room = chain.writer().map_or(0, |writer| writer.available());
        if room < size_of::<ResponseBytes>() as u64 {
            return 0;
        }
        let response = match read_request(chain) {
            Some(request) => self.answer(request),
            None => {
                lock(&self.state).counters.error += 1;
                Response::Error
            }
        };
        // Looked up anew: the request may have unplugged the memory that the buffer lies in.
        let Some(mut writer) = chain.writer() else {
            return 0;
        };
        let _ = writer.write_all(ResponseBytes::from(response).as_bytes());
        writer.written()
    }

    fn reset(&self) {
        // No block changes (I2): the next driver finds the blocks as this one left them.
        lock(&self.state).inaccessible_negotiated = false;
    }
}

fn read_request(chain: &Chain<'_>) -> Option<Request> {
    let mut bytes = RequestBytes::new_zeroed();
    chain.reader()?.read_exact(bytes.as_mut_bytes()).ok()?;
    Some(bytes.into())
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
