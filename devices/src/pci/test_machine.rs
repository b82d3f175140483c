//! A machine for tests: functions of each kind in places of each kind, and records of their calls.
//!
//! ```text
//! 00:00.0 host bridge
//! 00:01.0 root port --- 01:00.0 endpoint
//! 00:02.0 endpoint
//! 00:02.1 endpoint
//! 00:03.0 bridge --+-- 02:00.0 conventional function
//!                  +-- 02:01.0 bridge --- 03:00.0 conventional function
//! 00:04.0 root port --- nothing (bus 04)
//! ```

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::header::register;
use super::*;
use crate::dma::Leases;
use crate::platform::{PlatformControl, PlatformEvent, ResetControl};
use crate::{Signal, lock};

/// A device that records accesses, and reads as the number of the BAR.
#[derive(Default)]
pub struct Recorder {
    pub reads: Vec<(BarIndex, u64, usize)>,
    pub writes: Vec<(BarIndex, u64, Vec<u8>)>,
    pub resets: Vec<ResetKind>,
    /// What a capability's own bytes read as.
    pub own_bytes: [u8; 4],
}

impl PciDevice for Recorder {
    fn read_bar(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        assert!(!data.is_empty());
        data.fill(bar as u8);
        self.reads.push((bar, offset, data.len()));
    }

    fn write_bar(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        assert!(!data.is_empty());
        self.writes.push((bar, offset, data.to_vec()));
    }

    fn reset(&mut self, kind: ResetKind) {
        self.resets.push(kind);
    }

    fn read_capability(&mut self, capability: &[u8], offset: usize, data: &mut [u8]) {
        assert_eq!(capability[0], 0x09);
        data.copy_from_slice(&self.own_bytes[offset - OWN_BYTES..][..data.len()]);
    }

    fn write_capability(&mut self, _capability: &[u8], offset: usize, data: &[u8]) {
        self.own_bytes[offset - OWN_BYTES..][..data.len()].copy_from_slice(data);
    }
}

/// Messages sent.
#[derive(Default)]
pub struct Messages(pub Mutex<Vec<Message>>);

impl Messages {
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl MessageSink for Messages {
    fn send(&self, message: Message) {
        lock(&self.0).push(message);
    }
}

/// A line of the interrupt controller.
#[derive(Default)]
pub struct Line(AtomicBool);

impl Line {
    pub fn level(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl InterruptLine for Line {
    fn set_level(&self, asserted: bool) {
        assert_ne!(self.0.swap(asserted, Ordering::Relaxed), asserted, "the same level twice");
    }
}

/// The addresses that doorbells have been notified of.
#[derive(Default)]
pub struct Places(Mutex<BTreeSet<u64>>);

/// A doorbell that records its address.
#[derive(Default)]
pub struct Bell {
    places: Arc<Places>,
    place: Mutex<Option<u64>>,
}

impl Bell {
    pub fn place(&self) -> Option<u64> {
        *lock(&self.place)
    }
}

impl Signal for Bell {
    fn signal(&self) {}
}

impl Doorbell for Bell {
    fn moved(&self, address: Option<u64>) {
        let left = std::mem::replace(&mut *lock(&self.place), address);
        assert_ne!(left.is_some(), address.is_some(), "from {left:x?} to {address:x?}");
        let mut places = lock(&self.places.0);
        assert!(left.is_none_or(|left| places.remove(&left)));
        assert!(address.is_none_or(|address| places.insert(address)), "{address:x?} twice");
    }
}

/// The parts that a device model would hold.
pub struct Handles {
    pub bell: Arc<Bell>,
    pub device: Arc<Mutex<Recorder>>,
    pub state: Arc<FunctionState>,
    pub msix: Arc<Msix>,
    pub intx: Arc<IntxPin>,
}

pub const MSIX: MsixLayout =
    MsixLayout { bar: BarIndex::Bar0, vectors: 3, table: 0x2000, pending: 0x3000 };
pub const BAR0_SIZE: u64 = 0x4000;
/// Where the doorbell is in BAR 2.
pub const DOORBELL: u64 = 0x800;
pub const ROM: [u8; 4] = [0x55, 0xaa, 0x12, 0x34];
/// Where the own bytes of the only vendor-specific capability start.
pub const OWN_BYTES: usize = 8;

pub const IDENTITY: Identity = Identity {
    vendor: 0x1234,
    device: 0x5678,
    revision: 9,
    class: ClassCode { base: 0xff, sub: 0x01, interface: 0x02 },
    subsystem_vendor: 0xabcd,
    subsystem: 0xef01,
};

/// A function with ranges of every kind. It interrupts with `pin`.
pub fn function(
    pin: InterruptPin,
    sink: &Arc<Messages>,
    places: &Arc<Places>,
) -> (Function, Handles) {
    let mut builder = FunctionBuilder::new(IDENTITY);
    builder.bar(BarIndex::Bar0, BarKind::Memory64Prefetchable, BAR0_SIZE).unwrap();
    builder.bar(BarIndex::Bar2, BarKind::Memory32, 0x1000).unwrap();
    builder.bar(BarIndex::Bar3, BarKind::Io, 0x20).unwrap();
    let bell = Arc::new(Bell { places: Arc::clone(places), place: Mutex::default() });
    builder.doorbell(BarIndex::Bar2, DOORBELL, Arc::clone(&bell) as _).unwrap();
    builder.rom(ROM.to_vec()).unwrap();
    builder
        .vendor_capability(&VendorCapability {
            bytes: vec![0xee; 12],
            writable: vec![0xff; 8],
            device_bytes: OWN_BYTES..12,
        })
        .unwrap();
    let msix = builder.msix(MSIX, Arc::clone(sink) as _).unwrap();
    let intx = builder.intx(pin);
    let state = builder.state();
    let device = Arc::new(Mutex::new(Recorder::default()));
    (builder.build(Arc::clone(&device) as _), Handles { bell, device, state, msix, intx })
}

/// A root complex, as a driver reaches it, and what interrupts come of it.
pub struct Host {
    pub root: Arc<RootComplex>,
    pub lines: [Arc<Line>; 4],
    pub messages: Arc<Messages>,
}

impl Host {
    /// `messages` are those that the functions of `topology` send.
    pub fn new(topology: Topology, messages: Arc<Messages>, leases: Leases) -> Self {
        let lines = [(); 4].map(|()| Arc::new(Line::default()));
        let root = RootComplex::new(topology, lines.clone().map(|line| line as _), leases).unwrap();
        Self { root: Arc::new(root), lines, messages }
    }

    pub fn read_config(&self, address: FunctionAddress, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.root.read_config(address, offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn read_config_u16(&self, address: FunctionAddress, offset: usize) -> u16 {
        self.read_config(address, offset) as u16
    }

    pub fn write_config(&self, address: FunctionAddress, offset: usize, value: u32) {
        self.root.write_config(address, offset, &value.to_le_bytes());
    }

    pub fn write_config_u16(&self, address: FunctionAddress, offset: usize, value: u16) {
        self.root.write_config(address, offset, &value.to_le_bytes());
    }

    pub fn command(&self, address: FunctionAddress, command: Command) {
        self.write_config_u16(address, register::COMMAND, command.bits());
    }

    /// Where in its registers a function has capability `id`.
    pub fn capability(&self, address: FunctionAddress, id: u8) -> Option<usize> {
        let mut at = self.read_config(address, register::CAPABILITIES_POINTER) as u8;
        while at != 0 {
            let [found, next] = self.read_config_u16(address, at.into()).to_le_bytes();
            if found == id {
                return Some(at.into());
            }
            at = next;
        }
        None
    }
}

/// Functions in every place, each of which records its accesses.
pub struct Machine {
    host: Host,
    /// 01:00.0, 00:02.0, 00:02.1, 02:00.0 and 03:00.0.
    pub functions: Vec<Handles>,
}

impl Deref for Machine {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

pub const PORT: FunctionAddress = address(0, 1, 0);
pub const BELOW_PORT: FunctionAddress = address(1, 0, 0);
pub const FIRST: FunctionAddress = address(0, 2, 0);
pub const SECOND: FunctionAddress = address(0, 2, 1);
pub const BRIDGE: FunctionAddress = address(0, 3, 0);
pub const BELOW_BRIDGE: FunctionAddress = address(2, 0, 0);
pub const NESTED_BRIDGE: FunctionAddress = address(2, 1, 0);
pub const NESTED: FunctionAddress = address(3, 0, 0);
pub const EMPTY_PORT: FunctionAddress = address(0, 4, 0);

pub const fn address(bus: u8, device: u8, function: u8) -> FunctionAddress {
    FunctionAddress::new(bus, Slot(device << 3 | function))
}

impl Machine {
    pub fn new() -> Self {
        let messages = Arc::new(Messages::default());
        let places = Arc::default();
        let mut functions = Vec::new();
        let mut device = |pins: &[InterruptPin]| {
            let mut device = Vec::new();
            for &pin in pins {
                let (function, handles) = function(pin, &messages, &places);
                functions.push(handles);
                device.push(function);
            }
            Node::Device(device)
        };
        let below = device(&[InterruptPin::A]);
        let multi_function = device(&[InterruptPin::A, InterruptPin::B]);
        let conventional = device(&[InterruptPin::A]);
        let nested = Node::ConventionalBridge(vec![device(&[InterruptPin::C])]);
        let topology = Topology {
            root: vec![
                RootNode::Port(RootPort { access_control: true, below: Some(below) }),
                RootNode::Integrated(multi_function),
                RootNode::Integrated(Node::ConventionalBridge(vec![conventional, nested])),
                RootNode::Port(RootPort { access_control: false, below: None }),
            ],
        };
        Self { host: Host::new(topology, messages, Leases::default()), functions }
    }

    /// What the device model at `address` holds.
    pub fn handles(&self, address: FunctionAddress) -> &Handles {
        self.functions.iter().find(|handles| handles.state.address() == Some(address)).unwrap()
    }

    /// Puts BAR 0 to `address`, and opens all bridges above.
    pub fn map(&self, function: FunctionAddress, address: u64) {
        for bridge in [PORT, BRIDGE, NESTED_BRIDGE] {
            self.write_config(bridge, register::MEMORY_BASE, 0xfff0_0000);
            self.write_config(bridge, register::IO_BASE, 0xf000);
            self.command(bridge, Command::IO | Command::MEMORY | Command::MASTER);
        }
        self.root.write_config(function, register::BASE_ADDRESS, &address.to_le_bytes());
        self.command(function, Command::IO | Command::MEMORY | Command::MASTER);
    }

    /// Reads four bytes of memory. Also returns how the access ended.
    pub fn load(&self, address: u64) -> (u32, Access) {
        let mut data = [0; 4];
        let access = self.root.read_memory(address, &mut data);
        (u32::from_le_bytes(data), access)
    }

    pub fn store(&self, address: u64, value: u32) -> Access {
        self.root.write_memory(address, &value.to_le_bytes())
    }
}

/// Counts requests to the machine.
#[derive(Default)]
pub struct Requests(AtomicUsize);

impl PlatformControl for Requests {
    fn request(&self, _event: PlatformEvent) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Requests {
    /// How many so far.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A reset register whose resets are counted.
    pub fn reset_control(self: &Arc<Self>) -> ResetControl {
        ResetControl::new(self.clone())
    }
}
