//! A machine with functions of each kind in places of each kind.
//!
//! ```text
//! 00:00.0 host bridge
//! 00:01.0 root port --- 01:00.0 probe
//! 00:02.0 probe
//! 00:02.1 virtio entropy device
//! 00:03.0 bridge --+-- 02:00.0 probe
//!                  +-- 02:01.0 virtio entropy device
//! ```

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use arbitrary::{Arbitrary, Result, Unstructured};
use devices::dma::DmaPath;
use devices::pci::{
    Access, ConfigPorts, Ecam, Function, FunctionAddress, Node, RootComplex, RootNode, RootPort,
    Slot, Topology,
};
use devices::platform::ResetControl;
use devices::probe::Probe;
use devices::virtio::rng::Rng;
use devices::virtio::transport::{PciTransport, Transport};

use crate::guest::{Bell, Count, IdleLine, Memory};

const PORT: FunctionAddress = address(0, 1, 0);
const BRIDGE: FunctionAddress = address(0, 3, 0);
/// All functions but the bridges, at their initial addresses.
const ENDPOINTS: [FunctionAddress; 5] =
    [address(1, 0, 0), address(0, 2, 0), address(0, 2, 1), address(2, 0, 0), address(2, 1, 0)];

/// Where the BARs of the first function go.
pub const BARS: u64 = 0xe000_0000;
/// Bytes that the BARs of each function have for themselves.
pub const BARS_STRIDE: u64 = 0x10_0000;
/// Where the I/O ports of the first function go.
pub const PORTS: u16 = 0xc000;
/// Ports that each function has for itself.
pub const PORTS_STRIDE: u16 = 0x100;
/// Offset of the expansion ROM from the first BAR.
pub const ROM_OFFSET: u64 = 0x8_0000;

/// Where memory starts.
pub const MEMORY: u64 = 0x1_0000;
/// Bytes of memory.
pub const MEMORY_SIZE: usize = 0x4000;

const PROBE_RAM_SIZE: u32 = 0x1000;

const fn address(bus: u8, device: u8, function: u8) -> FunctionAddress {
    FunctionAddress::new(bus, Slot::new(device, function).expect("it is one"))
}

/// A function that configuration accesses go to: mostly one that exists.
#[derive(Debug, Clone, Copy)]
pub struct ConfigTarget(pub FunctionAddress);

impl<'a> Arbitrary<'a> for ConfigTarget {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let known = [&[address(0, 0, 0), PORT, BRIDGE], &ENDPOINTS[..]].concat();
        let index = usize::from(u.arbitrary::<u8>()? % 16);
        Ok(Self(match known.get(index) {
            Some(&function) => function,
            None => FunctionAddress::from(u.arbitrary::<u16>()?),
        }))
    }
}

/// A register that configuration accesses start at: mostly one that does something.
#[derive(Debug, Clone, Copy)]
pub struct ConfigOffset(pub u16);

impl<'a> Arbitrary<'a> for ConfigOffset {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let limit = *u.choose(&[0x40, 0x40, 0x100, 0x100, 0x100, 0x1000])?;
        Ok(Self(u.arbitrary::<u16>()? % limit))
    }
}

/// The machine, and what the guest reaches of it.
pub struct Machine {
    /// The root complex.
    pub root: Arc<RootComplex>,
    /// Configuration space in memory,
    pub ecam: Ecam,
    /// and through I/O ports.
    pub config_ports: ConfigPorts,
    memory: Memory,
    /// How often a device asked to be processed.
    pub doorbells: Arc<Count>,
    /// Message-signalled interrupts.
    pub messages: Arc<Count>,
    probes: Vec<Arc<Mutex<Probe>>>,
    transports: Vec<Arc<Mutex<PciTransport>>>,
    bells: Vec<Arc<Bell>>,
}

impl Machine {
    /// A machine as firmware leaves it: all functions have addresses and are enabled.
    pub fn new() -> Self {
        let mut devices = Devices::new();
        let below_port = devices.probe();
        let multi_function = vec![devices.probe(), devices.entropy()];
        let below_bridge =
            vec![Node::Device(vec![devices.probe()]), Node::Device(vec![devices.entropy()])];
        let port = RootPort { access_control: true, below: Some(Node::Device(vec![below_port])) };
        let topology = Topology {
            root: vec![
                RootNode::Port(port),
                RootNode::Integrated(Node::Device(multi_function)),
                RootNode::Integrated(Node::ConventionalBridge(below_bridge)),
            ],
        };
        let lines = [(); 4].map(|()| Arc::new(IdleLine) as _);
        let leases = devices.memory.dma.leases().clone();
        let root =
            Arc::new(RootComplex::new(topology, lines, leases).expect("there is such a topology"));
        let Devices { memory, doorbells, messages, probes, transports, bells } = devices;
        let machine = Self {
            ecam: Ecam::new(Arc::clone(&root)),
            config_ports: ConfigPorts::new(
                Arc::clone(&root),
                ResetControl::new(Arc::clone(&doorbells) as _),
            ),
            root,
            memory,
            doorbells,
            messages,
            probes,
            transports,
            bells,
        };
        machine.configure();
        machine
    }

    /// Gives all functions their addresses, and enables them.
    pub fn configure(&self) {
        // Behind the port: all of e00xxxxx, ports cxxx. Behind the bridge: e03xxxxx and e04xxxxx,
        // dxxx.
        for (bridge, buses, windows) in [
            (PORT, 0x0001_0100, [0xc0c0, 0xe000_e000]),
            (BRIDGE, 0x0002_0200, [0xd0d0, 0xe040_e030]),
        ] {
            self.write(bridge, 0x18, buses);
            self.write(bridge, 0x3c, 0);
            self.write(bridge, 0x1c, windows[0]);
            self.write(bridge, 0x20, windows[1]);
            self.write(bridge, 0x04, 7);
        }
        for (index, function) in (0..).zip(ENDPOINTS) {
            let base = Self::bars(index);
            for (bar, offset) in [(0, 0), (2, 0x1_0000), (4, 0x2_0000)] {
                self.write(function, 0x10 + 4 * bar, base as u32 + offset);
            }
            self.write(function, 0x1c, 0);
            self.write(function, 0x24, Self::ports(index).into());
            self.write(function, 0x30, (base + ROM_OFFSET) as u32 | 1);
            self.write(function, 0x04, 7);
        }
    }

    /// Where the BARs of a function are after [`Self::configure`].
    pub fn bars(function: u8) -> u64 {
        BARS + BARS_STRIDE * (u64::from(function) % ENDPOINTS.len() as u64)
    }

    /// Where the I/O ports of a function are then.
    pub fn ports(function: u8) -> u16 {
        let index = u16::from(function) % ENDPOINTS.len() as u16;
        // Those on bus 2 are behind a window of their own.
        let window = if index < 3 { PORTS } else { PORTS + 0x1000 };
        window + PORTS_STRIDE * index
    }

    fn write(&self, function: FunctionAddress, register: usize, value: u32) {
        self.root.write_config(function, register, &value.to_le_bytes());
    }

    /// Processes the pending work of all devices.
    pub fn process(&self) {
        self.probes.iter().for_each(|probe| Probe::process(probe, &self.root));
        for transport in &self.transports {
            transport.process_queues();
        }
    }

    /// Asserts that a write to the address of each doorbell rings that one only.
    pub fn assert_doorbells_ring(&self) {
        for bell in &self.bells {
            let Some(address) = bell.address() else { continue };
            let rings = || self.bells.iter().map(|bell| bell.rings()).collect::<Vec<_>>();
            let before = rings();
            assert_eq!(self.root.write_memory(address, &[0, 0]), Access::Claimed);
            for (other, (before, after)) in self.bells.iter().zip(before.into_iter().zip(rings())) {
                assert_eq!(after - before, usize::from(Arc::ptr_eq(bell, other)), "{address:#x}");
            }
        }
    }

    /// The probes.
    pub fn probes(&self) -> impl Iterator<Item = MutexGuard<'_, Probe>> {
        self.probes.iter().map(|probe| probe.lock().expect("nothing has panicked"))
    }

    /// All of memory.
    pub fn contents(&self) -> Vec<u8> {
        self.memory.contents(MEMORY, MEMORY_SIZE)
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

/// The devices made so far.
struct Devices {
    memory: Memory,
    doorbells: Arc<Count>,
    messages: Arc<Count>,
    probes: Vec<Arc<Mutex<Probe>>>,
    transports: Vec<Arc<Mutex<PciTransport>>>,
    bells: Vec<Arc<Bell>>,
}

impl Devices {
    fn new() -> Self {
        Self {
            memory: Memory::new(MEMORY, MEMORY_SIZE),
            doorbells: Arc::default(),
            messages: Arc::default(),
            probes: vec![],
            transports: vec![],
            bells: vec![],
        }
    }

    fn probe(&mut self) -> Function {
        let (function, probe) = Probe::new(
            PROBE_RAM_SIZE,
            &DmaPath::direct(self.memory.dma.clone()),
            Arc::clone(&self.messages) as _,
            Arc::clone(&self.doorbells) as _,
        )
        .expect("there is such a function");
        self.probes.push(Arc::clone(&probe));
        function.build(probe)
    }

    fn entropy(&mut self) -> Function {
        let bell = Arc::new(Bell::new(Arc::clone(&self.doorbells)));
        let (transport, function) = PciTransport::new(
            Arc::new(Rng::new(Box::new(io::repeat(0x5a)))),
            &DmaPath::direct(self.memory.dma.clone()),
            Arc::clone(&self.messages) as _,
            Arc::clone(&bell) as _,
        )
        .expect("there is such a function");
        self.transports.push(transport);
        self.bells.push(bell);
        function
    }
}
