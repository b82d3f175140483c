//! A machine for tests: a probe below a root port, as firmware would leave it, with some memory.
//!
//! Registers are spelled out as `docs/probe.md` has them.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::{Probe, ProbeStatus};
use crate::Signal;
use crate::dma::{DmaMemory, DmaPath, DmaRegion, Iommu, Leases};
use crate::pci::test_machine::{Host, Line, Messages, address};
use crate::pci::{
    Access, Command, Function, FunctionAddress, Message, Node, RootNode, RootPort, Topology,
};

pub const PORT: FunctionAddress = address(0, 1, 0);
pub const PROBE: FunctionAddress = address(1, 0, 0);

pub const BAR0: u64 = 0xe000_0000;
pub const BAR2: u64 = 0x8_0000_0000;
pub const BAR4: u64 = 0xe000_2000;
pub const BAR5: u16 = 0xc000;
pub const ROM: u64 = 0xe000_4000;
pub const RAM_SIZE: u32 = 0x10000;

pub const MEMORY: u64 = 0x10000;
pub const MEMORY_SIZE: usize = 0x2000;

pub const INTERRUPT: u64 = 0x100;
pub const INTX: u64 = 0x104;
pub const SCRATCH: u64 = 0x200;
pub const BUFFER: u64 = 0x1000;

const ALL: Command = Command::IO.union(Command::MEMORY).union(Command::MASTER);

/// Counts how often it was signalled.
#[derive(Default)]
pub struct Doorbell(AtomicUsize);

impl Signal for Doorbell {
    fn signal(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub struct Machine {
    host: Host,
    pub probe: Arc<Mutex<Probe>>,
    pub memory: GuestMemoryMmap,
    doorbell: Arc<Doorbell>,
}

impl Deref for Machine {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Machine {
    pub fn new() -> Self {
        Self::build(DmaPath::direct)
    }

    /// The same, with the probe behind `iommu`.
    pub fn behind(iommu: Arc<dyn Iommu>) -> Self {
        Self::build(|memory| DmaPath::through(iommu, memory))
    }

    /// The same, with `peer` as the second function of its device.
    pub fn beside(peer: Function) -> Self {
        Self::build_with(DmaPath::direct, vec![peer])
    }

    fn build(path: impl FnOnce(DmaMemory) -> DmaPath) -> Self {
        Self::build_with(path, Vec::new())
    }

    fn build_with(path: impl FnOnce(DmaMemory) -> DmaPath, peers: Vec<Function>) -> Self {
        let messages = Arc::new(Messages::default());
        let doorbell = Arc::new(Doorbell::default());
        let range = GuestRegionMmap::from_range(GuestAddress(MEMORY), MEMORY_SIZE, None).unwrap();
        let range = Arc::new(range);
        let leases = Leases::default();
        let for_devices = vec![DmaRegion::fixed(Arc::clone(&range))];
        let for_devices = DmaMemory::new(for_devices, leases.clone()).unwrap();
        let memory = GuestMemoryMmap::from_arc_regions(vec![range]).unwrap();
        let (function, probe) = Probe::new(
            RAM_SIZE,
            &path(for_devices),
            Arc::clone(&messages) as _,
            Arc::clone(&doorbell) as _,
        )
        .unwrap();
        let mut functions = vec![function.build(Arc::clone(&probe) as _)];
        functions.extend(peers);
        let below = Some(Node::Device(functions));
        let port = RootNode::Port(RootPort { access_control: true, below });
        let host = Host::new(Topology { root: vec![port] }, messages, leases);
        let machine = Self { host, probe, memory, doorbell };
        machine.configure_port();
        machine.configure();
        machine
    }

    fn configure_port(&self) {
        for (register, value) in [
            // Ports c000-cfff; memory e0000000-e00fffff and 800000000-8000fffff.
            (0x1c, 0xc0c0),
            (0x20, 0xe000_e000),
            (0x24, 0x0001_0001),
            (0x28, 8),
            (0x2c, 8),
        ] {
            self.write_config(PORT, register, value);
        }
        self.command(PORT, ALL);
    }

    /// Gives the probe its addresses, and enables all of it.
    pub fn configure(&self) {
        for (register, value) in [
            (0x10, BAR0 as u32),
            (0x18, BAR2 as u32),
            (0x1c, (BAR2 >> 32) as u32),
            (0x20, BAR4 as u32),
            (0x24, BAR5.into()),
            (0x30, ROM as u32 | 1),
        ] {
            self.write_config(PROBE, register, value);
        }
        self.enable(ALL);
    }

    pub fn enable(&self, command: Command) {
        self.command(PROBE, command);
    }

    /// Pin A below device 1.
    pub fn line(&self) -> &Line {
        &self.lines[1]
    }

    pub fn read_bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        assert_eq!(self.root.read_memory(address, &mut data), Access::Claimed);
        data
    }

    pub fn read(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.read_bytes(address, 4).try_into().unwrap())
    }

    pub fn read_u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.read_bytes(address, 8).try_into().unwrap())
    }

    pub fn write_bytes(&self, address: u64, data: &[u8]) {
        assert_eq!(self.root.write_memory(address, data), Access::Claimed);
    }

    pub fn write(&self, address: u64, value: u32) {
        self.write_bytes(address, &value.to_le_bytes());
    }

    pub fn read_port(&self, port: u16) -> u32 {
        let mut data = [0; 4];
        assert_eq!(self.root.read_io(port, &mut data), Access::Claimed);
        u32::from_le_bytes(data)
    }

    pub fn write_port(&self, port: u16, value: u32) {
        assert_eq!(self.root.write_io(port, &value.to_le_bytes()), Access::Claimed);
    }

    /// Makes vector n send n.
    pub fn enable_msix(&self) {
        for vector in 0..8 {
            let entry = BAR4 + 16 * u64::from(vector);
            for (offset, value) in [(0, 0xfee0_0000), (4, 0), (8, vector), (12, 0)] {
                self.write(entry + offset, value);
            }
        }
        self.write_config(PROBE, self.capability(PROBE, 0x11).unwrap(), 1 << 31);
    }

    /// The vectors raised since the last call.
    pub fn raised(&self) -> Vec<u32> {
        self.messages.take().into_iter().map(|Message { data, .. }| data).collect()
    }

    pub fn rings(&self) -> usize {
        self.doorbell.0.load(Ordering::Relaxed)
    }

    /// Has the probe make its pending transfer.
    pub fn process(&self) {
        Probe::process(&self.probe, &self.root);
    }

    pub fn probe(&self) -> MutexGuard<'_, Probe> {
        self.probe.lock().unwrap()
    }

    pub fn status(&self) -> ProbeStatus {
        self.probe().status()
    }
}
