//! A machine with one memory device and a driver for it, for tests.

use std::ops::Range;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use vm_memory::GuestRegionMmap;

use super::{BackendBusy, BlockBackend, BlockRange, Region, VirtioMem, VirtioMemConfig};
use crate::dma::{Iommu, Reachability};
use crate::virtio::test_driver::memory::{BUFFERS, map};
use crate::virtio::test_driver::{Buffer, Rings, TestDriver, TransportKind};

pub const MIB: u64 = 1 << 20;
/// First address of the region.
pub const REGION: u64 = 4 << 30;
/// Bytes in a block.
pub const BLOCK: u64 = 2 * MIB;
/// Blocks in the region.
pub const BLOCKS: u64 = 512;

/// Feature bits, request types, response types and states, as numbered in virtio 1.3, section 5.15.
pub const ACPI_PXM: u64 = 1 << 0;
pub const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
pub const PERSISTENT_SUSPEND: u64 = 1 << 2;
pub const PLUG: u16 = 0;
pub const UNPLUG: u16 = 1;
pub const UNPLUG_ALL: u16 = 2;
pub const STATE: u16 = 3;
pub const ACK: u16 = 0;
pub const NACK: u16 = 1;
pub const BUSY: u16 = 2;
pub const ERROR: u16 = 3;
pub const PLUGGED: u16 = 0;
pub const UNPLUGGED: u16 = 1;
pub const MIXED: u16 = 2;

/// Bytes of a request and of a response.
pub const REQUEST: u32 = 24;
pub const RESPONSE: u32 = 10;
/// Where the driver puts them.
pub const REQUEST_AT: u64 = BUFFERS;
pub const RESPONSE_AT: u64 = BUFFERS + 0x100;

/// The address of a block.
pub fn block(index: u64) -> u64 {
    REGION + index * BLOCK
}

/// A device whose region is [`BLOCKS`] blocks at [`REGION`], 128 of them requested.
pub fn config() -> VirtioMemConfig {
    VirtioMemConfig {
        region: Region::new(REGION, BLOCKS * BLOCK, BLOCK, 4096).unwrap(),
        requested_size: 128 * BLOCK,
        node_id: None,
        insist_on_inaccessible: false,
    }
}

/// A call of the device to its backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Plug(Range<u64>),
    Unplug(Range<u64>),
    UnplugAll,
}

/// The memory of the region. It records the device's calls, refuses them after [`Self::set_busy`], and
/// makes only plugged blocks accessible to devices.
#[derive(Clone)]
pub struct FakeMemory(Arc<Mutex<FakeMemoryState>>);

/// A call that takes its time.
pub struct SlowCall {
    begun: Receiver<()>,
    end: Sender<()>,
}

impl SlowCall {
    /// Waits until it has begun.
    pub fn wait_until_begun(&self) {
        self.begun.recv().unwrap();
    }

    /// Lets it end.
    pub fn end(self) {
        self.end.send(()).unwrap();
    }
}

struct FakeMemoryState {
    plugged: Vec<bool>,
    calls: Vec<Call>,
    busy: bool,
    slow: Option<(Sender<()>, Receiver<()>)>,
}

impl FakeMemory {
    fn new() -> Self {
        let plugged = vec![false; BLOCKS as usize];
        Self(Arc::new(Mutex::new(FakeMemoryState {
            plugged,
            calls: vec![],
            busy: false,
            slow: None,
        })))
    }

    /// From now on, refuses everything or nothing.
    pub fn set_busy(&self, busy: bool) {
        self.0.lock().unwrap().busy = busy;
    }

    /// The next call takes its time.
    pub fn slow_down(&self) -> SlowCall {
        let (begin, begun) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        self.0.lock().unwrap().slow = Some((begin, ended));
        SlowCall { begun, end }
    }

    /// The calls since the last time.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }

    /// Which blocks are plugged.
    pub fn plugged(&self) -> Vec<bool> {
        self.0.lock().unwrap().plugged.clone()
    }

    fn set(&self, call: Call, range: Range<u64>, plugged: bool) -> Result<(), BackendBusy> {
        let slow = self.0.lock().unwrap().slow.take();
        if let Some((begin, ended)) = slow {
            begin.send(()).unwrap();
            ended.recv().unwrap();
        }
        let mut state = self.0.lock().unwrap();
        let blocks = range.start as usize..range.end as usize;
        // UNPLUG_ALL is for blocks in any state; for all other calls the blocks must be in the right
        // one.
        let as_promised = state.plugged[blocks.clone()].iter().all(|&before| before != plugged);
        assert!(as_promised || call == Call::UnplugAll, "{call:?}");
        state.calls.push(call);
        if state.busy {
            return Err(BackendBusy("refused by the test".into()));
        }
        state.plugged[blocks].fill(plugged);
        Ok(())
    }
}

impl BlockBackend for FakeMemory {
    fn plug(&self, range: BlockRange) -> Result<(), BackendBusy> {
        self.set(Call::Plug(range.indices()), range.indices(), true)
    }

    fn unplug(&self, range: BlockRange) -> Result<(), BackendBusy> {
        self.set(Call::Unplug(range.indices()), range.indices(), false)
    }

    fn unplug_all(&self) -> Result<(), BackendBusy> {
        self.set(Call::UnplugAll, 0..BLOCKS, false)
    }
}

impl Reachability for FakeMemory {
    fn permits(&self, offset: u64, len: usize) -> bool {
        let blocks = offset / BLOCK..(offset + len as u64).div_ceil(BLOCK);
        self.0.lock().unwrap().plugged[blocks.start as usize..blocks.end as usize]
            .iter()
            .all(|&plugged| plugged)
    }
}

/// The configuration as the driver reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigRead {
    pub block_size: u64,
    pub node_id: u16,
    pub addr: u64,
    pub region_size: u64,
    pub usable_region_size: u64,
    pub plugged_size: u64,
    pub requested_size: u64,
}

/// A memory device, its memory and its driver.
pub struct TestMachine {
    pub device: Arc<VirtioMem>,
    pub memory: FakeMemory,
    pub driver: TestDriver,
}

impl TestMachine {
    /// A machine whose driver has not accessed the device yet.
    pub fn new(on: TransportKind, config: VirtioMemConfig) -> Self {
        Self::build(config, |device, region| TestDriver::with_memory(on, device, vec![region]))
    }

    fn build(
        config: VirtioMemConfig,
        driver: impl FnOnce(Arc<VirtioMem>, (Arc<GuestRegionMmap>, Arc<dyn Reachability>)) -> TestDriver,
    ) -> Self {
        let memory = FakeMemory::new();
        let device = VirtioMem::new(config, Box::new(memory.clone())).unwrap();
        let device = Arc::new(device);
        let region = (map(REGION, BLOCKS * BLOCK), Arc::new(memory.clone()) as Arc<_>);
        let driver = driver(device.clone(), region);
        Self { device, memory, driver }
    }

    /// A machine with [`config`] whose driver has accepted UNPLUGGED_INACCESSIBLE and is up.
    pub fn up(on: TransportKind) -> Self {
        let mut machine = Self::new(on, config());
        machine.driver.bring_up(UNPLUGGED_INACCESSIBLE, Rings::default());
        machine
    }

    /// The same, with the device behind an IOMMU.
    pub fn up_behind(iommu: Arc<dyn Iommu>, on: TransportKind) -> Self {
        let mut machine = Self::build(config(), |device, region| {
            TestDriver::behind(iommu, on, device, vec![region])
        });
        machine.driver.bring_up(UNPLUGGED_INACCESSIBLE, Rings::default());
        machine
    }

    /// Changes the requested size as the host does.
    pub fn resize(&mut self, blocks: u64) {
        let device = Arc::clone(&self.device);
        self.driver
            .transport()
            .change_config(&mut || device.set_requested_size(blocks * BLOCK).unwrap());
    }

    /// Reads the configuration.
    pub fn config(&mut self) -> ConfigRead {
        let mut read = |offset| {
            let mut data = [0xa5; 8];
            self.driver.read_config(offset, &mut data);
            u64::from_le_bytes(data)
        };
        ConfigRead {
            block_size: read(0),
            node_id: read(8) as u16,
            addr: read(16),
            region_size: read(24),
            usable_region_size: read(32),
            plugged_size: read(40),
            requested_size: read(48),
        }
    }

    /// Writes a request to memory, and returns the chain it is sent with.
    pub fn write_request(&mut self, kind: u16, address: u64, blocks: u16) -> [Buffer; 2] {
        self.write_request_at(REQUEST_AT, kind, address, blocks);
        [Buffer::readable(REQUEST_AT, REQUEST), Buffer::writable(RESPONSE_AT, RESPONSE)]
    }

    /// Writes a request to `at`, with all its padding set.
    pub fn write_request_at(&mut self, at: u64, kind: u16, address: u64, blocks: u16) {
        self.driver.store(at, [0xff_u8; REQUEST as usize]);
        self.driver.store(at, kind);
        self.driver.store(at + 8, address);
        self.driver.store(at + 16, blocks);
    }

    /// Sends a request, and returns the type and the state of the response.
    pub fn request(&mut self, kind: u16, address: u64, blocks: u16) -> (u16, u16) {
        self.driver.store(RESPONSE_AT, [0xff_u8; 16]);
        let chain = self.write_request(kind, address, blocks);
        assert_eq!(self.driver.send(&chain), RESPONSE);
        self.response_at(RESPONSE_AT)
    }

    /// Reads the type and the state of the response at `at`.
    pub fn response_at(&self, at: u64) -> (u16, u16) {
        let [kind, padding @ .., state] = self.driver.load::<[u16; 5]>(at);
        assert_eq!(padding, [0; 3]);
        (kind, state)
    }

    /// Asks to plug `blocks`.
    pub fn plug(&mut self, blocks: Range<u64>) -> u16 {
        self.request(PLUG, block(blocks.start), (blocks.end - blocks.start) as u16).0
    }

    /// Asks to unplug `blocks`.
    pub fn unplug(&mut self, blocks: Range<u64>) -> u16 {
        self.request(UNPLUG, block(blocks.start), (blocks.end - blocks.start) as u16).0
    }

    /// Asks to unplug all blocks.
    pub fn unplug_all(&mut self) -> u16 {
        self.request(UNPLUG_ALL, 0, 0).0
    }

    /// Asks for the state of `blocks`.
    pub fn state(&mut self, blocks: Range<u64>) -> u16 {
        let count = (blocks.end - blocks.start) as u16;
        let (kind, state) = self.request(STATE, block(blocks.start), count);
        assert_eq!(kind, ACK);
        state
    }

    /// Does `actions`, which must change neither the configuration nor the memory.
    pub fn assert_unchanged_by(&mut self, actions: impl FnOnce(&mut Self)) {
        let (config, plugged) = (self.config(), self.memory.plugged());
        actions(self);
        assert_eq!(self.config(), config);
        assert_eq!(self.memory.plugged(), plugged);
        for (index, plugged) in (0..config.usable_region_size / BLOCK).zip(plugged) {
            let expected = if plugged { PLUGGED } else { UNPLUGGED };
            assert_eq!(self.state(index..index + 1), expected, "block {index}");
        }
    }
}
