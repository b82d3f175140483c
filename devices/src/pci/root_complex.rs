//! The root complex: routes the machine's accesses to functions.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use super::address_map::{DecodeMap, Route};
use super::bus::Bus;
use super::doorbell::Moves;
use super::intx::SharedLine;
use super::{
    Access, AddressSpace, Direction, FunctionAddress, FunctionStatus, InterruptLine, Refusal,
    Topology, TopologyError,
};
use crate::dma::Leases;
use crate::lock;

/// All of PCI. Shared between vCPUs.
pub struct RootComplex {
    /// Every function with its registers.
    root: Mutex<Bus>,
    /// The address maps that follow from the registers. Written with the registers' lock held.
    map: RwLock<DecodeMap>,
    leases: Leases,
}

impl RootComplex {
    /// Functions in their state after power-on, and bridges with bus numbers as firmware would assign
    /// them.
    ///
    /// Pin A of device `d` on bus 0 drives line `d % 4`, pin B the next one, and so on. `leases` are those
    /// of the functions' own accesses.
    pub fn new(
        topology: Topology,
        lines: [Arc<dyn InterruptLine>; 4],
        leases: Leases,
    ) -> Result<Self, TopologyError> {
        let lines = lines.map(|line| Arc::new(SharedLine::new(line)));
        let mut root = Bus::root(topology, lines)?;
        let map = RwLock::new(root.map());
        Ok(Self { root: Mutex::new(root), map, leases })
    }

    /// The guest reads registers of `function`, from `offset` on. It reads ones where there is
    /// nothing.
    pub fn read_config(&self, function: FunctionAddress, offset: usize, data: &mut [u8]) {
        data.fill(u8::MAX);
        let device_bytes =
            lock(&self.root).find(0, function).and_then(|entry| entry.function.read(offset, data));
        if let Some(access) = device_bytes {
            access.read(data);
        }
    }

    /// The guest writes registers of `function`, from `offset` on.
    pub fn write_config(&self, function: FunctionAddress, offset: usize, data: &[u8]) {
        let mut root = lock(&self.root);
        let Some(entry) = root.find(0, function) else {
            return;
        };
        let written = entry.write(offset, data);
        if written.changed {
            self.replace_map(root.map());
            // Functions may have stopped being bus masters, or no longer decode what others write to.
            self.leases.revoke();
        }
        // The rest takes devices' locks, and a device may be busy.
        drop(root);
        for (completer, kind) in written.resets {
            completer.reset(kind);
        }
        if let Some(access) = written.device_bytes {
            access.write(data);
        }
    }

    fn replace_map(&self, map: DecodeMap) {
        let moves = Moves::between(&self.map().doorbells, &map.doorbells);
        moves.leave();
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = map;
        moves.arrive();
    }

    /// The guest reads memory. It reads ones unless a function answers.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) -> Access {
        self.read(AddressSpace::Memory, address, data)
    }

    /// The guest writes memory.
    pub fn write_memory(&self, address: u64, data: &[u8]) -> Access {
        self.write(AddressSpace::Memory, address, data)
    }

    /// The guest reads from an I/O port. It reads ones unless a function answers.
    pub fn read_io(&self, port: u16, data: &mut [u8]) -> Access {
        self.read(AddressSpace::Io, port.into(), data)
    }

    /// The guest writes to an I/O port.
    pub fn write_io(&self, port: u16, data: &[u8]) -> Access {
        self.write(AddressSpace::Io, port.into(), data)
    }

    /// Every function as its registers are now, in the order of addresses at the start.
    pub fn status(&self) -> Vec<FunctionStatus> {
        lock(&self.root).status()
    }

    /// The function that decodes the first byte gets the access, up to the end of what it decodes.
    fn read(&self, space: AddressSpace, address: u64, data: &mut [u8]) -> Access {
        data.fill(u8::MAX);
        match self.route(space, address) {
            Some(Route { completer, target, offset, room }) => {
                let size = data.len().min(room);
                completer.read(&target, offset, &mut data[..size]);
                Access::Claimed
            }
            None => self.refuse(space, address, data.len(), Direction::Read),
        }
    }

    fn write(&self, space: AddressSpace, address: u64, data: &[u8]) -> Access {
        match self.route(space, address) {
            Some(Route { completer, target, offset, room }) => {
                let size = data.len().min(room);
                completer.write(&target, offset, &data[..size]);
                Access::Claimed
            }
            None => self.refuse(space, address, data.len(), Direction::Write),
        }
    }

    fn route(&self, space: AddressSpace, address: u64) -> Option<Route> {
        self.map().space(space).route(address)
    }

    fn map(&self) -> RwLockReadGuard<'_, DecodeMap> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(
        &self,
        space: AddressSpace,
        address: u64,
        size: usize,
        direction: Direction,
    ) -> Access {
        let map = self.map();
        let Some(stray) = map.space(space).stray(address) else {
            return Access::Unmapped;
        };
        stray.completer.state.count_refused();
        Access::Refused(Refusal {
            function: stray.function,
            register: stray.register,
            space,
            offset: address - stray.span.first,
            size,
            direction,
            reason: stray.reason,
        })
    }
}
