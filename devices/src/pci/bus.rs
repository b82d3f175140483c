//! The tree of buses: how configuration requests are routed, and how the address maps are made.

use std::sync::Arc;

use super::address_map::DecodeMap;
use super::bridge;
use super::capability::express::PortType;
use super::function::{Placement, Reset, Written};
use super::intx::SharedLine;
use super::reach::{self, BusKind, Reach};
use super::{
    Function, FunctionAddress, FunctionStatus, Node, ResetKind, RootNode, RootPort, Slot, Topology,
    TopologyError,
};

/// The functions on a bus, in the order of their slots.
pub(super) struct Bus {
    kind: BusKind,
    pub slots: Vec<SlotEntry>,
}

/// A function in its slot and, if it is a bridge, the bus below.
pub(super) struct SlotEntry {
    pub address: FunctionAddress,
    pub function: Function,
    pub below: Option<Bus>,
}

impl Bus {
    /// Bus 0 and everything behind it. `lines` are those that pins A to D of device 0 drive.
    pub fn root(topology: Topology, lines: [Arc<SharedLine>; 4]) -> Result<Self, TopologyError> {
        let mut bus = BusBuilder::new(BusKind::Root, 0, lines);
        let mut last_bus = 0;
        bus.add_device(vec![bridge::host_bridge()])?;
        for node in topology.root {
            match node {
                RootNode::Port(port) => bus.add_root_port(port, &mut last_bus)?,
                RootNode::Integrated(node) => bus.add(node, &mut last_bus)?,
            }
        }
        Ok(Self { kind: bus.kind, slots: bus.slots })
    }

    /// The function that a configuration request for `target` gets to from this bus, whose number
    /// is `number` at this time (PCI Express Base 6.0, section 7.3.3).
    pub fn find(&mut self, number: u8, target: FunctionAddress) -> Option<&mut SlotEntry> {
        if target.bus == number {
            return self.slots.iter_mut().find(|entry| entry.address.slot == target.slot);
        }
        self.slots.iter_mut().find_map(|entry| {
            let below = entry.below.as_mut()?;
            let numbers = reach::bus_numbers(&entry.function.config)?;
            numbers.contains(&target.bus).then(|| below.find(*numbers.start(), target))
        })?
    }

    /// The map of decoded addresses, from the registers of all functions on bus 0 and behind it.
    pub fn map(&mut self) -> DecodeMap {
        let mut map = DecodeMap::default();
        self.decode(&Reach::root(), &mut map);
        map
    }

    /// Enters into `map` what all functions on the bus and behind it decode. The first one to decode an
    /// address gets it.
    fn decode(&mut self, reach: &Reach, map: &mut DecodeMap) {
        for SlotEntry { address, function, below } in &mut self.slots {
            function.decode(*address, reach, map);
            if let Some(below) = below {
                below.decode(&reach.through(&function.config, below.kind), map);
            }
        }
    }

    /// The status of all functions on the bus and behind it.
    pub fn status(&self) -> Vec<FunctionStatus> {
        let of_entry = |entry: &SlotEntry| {
            let mut status = vec![entry.function.status(entry.address)];
            status.extend(entry.below.iter().flat_map(Self::status));
            status
        };
        self.slots.iter().flat_map(of_entry).collect()
    }

    fn reset(&mut self, resets: &mut Vec<Reset>) {
        for SlotEntry { function, below, .. } in &mut self.slots {
            resets.push(function.reset(ResetKind::Hot));
            if let Some(below) = below {
                below.reset(resets);
            }
        }
    }
}

impl SlotEntry {
    /// The guest writes registers. For a bridge, that may reset everything below it.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Written {
        let held_reset = reach::holds_reset(&self.function.config);
        let mut written = self.function.write(offset, data);
        if let Some(below) = &mut self.below
            && !held_reset
            && reach::holds_reset(&self.function.config)
        {
            below.reset(&mut written.resets);
        }
        written
    }
}

struct BusBuilder {
    kind: BusKind,
    number: u8,
    lines: [Arc<SharedLine>; 4],
    devices: u8,
    slots: Vec<SlotEntry>,
}

impl BusBuilder {
    fn new(kind: BusKind, number: u8, lines: [Arc<SharedLine>; 4]) -> Self {
        Self { kind, number, lines, devices: 0, slots: Vec::new() }
    }

    fn add(&mut self, node: Node, last_bus: &mut u8) -> Result<(), TopologyError> {
        match node {
            Node::Device(functions) => self.add_device(functions),
            Node::ConventionalBridge(below) => {
                let port_type = (self.kind != BusKind::Conventional).then_some(PortType::Bridge);
                let below = (BusKind::Conventional, below);
                self.add_bridge(bridge::conventional_bridge(), port_type, true, below, last_bus)
            }
        }
    }

    fn add_root_port(&mut self, port: RootPort, last_bus: &mut u8) -> Result<(), TopologyError> {
        let function = bridge::root_port(port.access_control);
        let linked = port.below.is_some();
        let below = (BusKind::Link, port.below.into_iter().collect());
        self.add_bridge(function, Some(PortType::RootPort), linked, below, last_bus)
    }

    fn add_device(&mut self, functions: Vec<Function>) -> Result<(), TopologyError> {
        let device = self.next_device()?;
        let count = functions.len();
        let error = TopologyError::Functions { bus: self.number, device, functions: count };
        if !(1..=usize::from(Slot::FUNCTIONS)).contains(&count) {
            return Err(error);
        }
        let port_type = match self.kind {
            BusKind::Root => Some(PortType::IntegratedEndpoint),
            BusKind::Link => Some(PortType::Endpoint),
            BusKind::Conventional => None,
        };
        for (number, mut function) in (0..Slot::FUNCTIONS).zip(functions) {
            let placement = Placement {
                address: self.address(device, number),
                port_type,
                linked: true,
                multi_function: count > 1,
                lines: &self.lines,
            };
            function.place(&placement);
            self.slots.push(SlotEntry { address: placement.address, function, below: None });
        }
        Ok(())
    }

    fn add_bridge(
        &mut self,
        mut function: Function,
        port_type: Option<PortType>,
        linked: bool,
        (kind, nodes): (BusKind, Vec<Node>),
        last_bus: &mut u8,
    ) -> Result<(), TopologyError> {
        let device = self.next_device()?;
        let secondary = *last_bus + 1;
        if secondary >= Topology::BUSES {
            return Err(TopologyError::TooManyBuses);
        }
        *last_bus = secondary;
        // The pins of the bus below are those of the bridge (PCI-to-PCI Bridge 1.2, section 9.1).
        let mut lines = self.lines.clone();
        lines.rotate_left(usize::from(device % 4));
        let mut below = BusBuilder::new(kind, secondary, lines);
        for node in nodes {
            below.add(node, last_bus)?;
        }
        let placement = Placement {
            address: self.address(device, 0),
            port_type,
            linked,
            multi_function: false,
            lines: &self.lines,
        };
        function.place(&placement);
        bridge::set_bus_numbers(&mut function.config, self.number, &(secondary..=*last_bus));
        let below = Some(Bus { kind, slots: below.slots });
        self.slots.push(SlotEntry { address: placement.address, function, below });
        Ok(())
    }

    fn next_device(&mut self) -> Result<u8, TopologyError> {
        let device = self.devices;
        if device == Slot::DEVICES {
            return Err(TopologyError::TooManyDevices { bus: self.number });
        }
        self.devices += 1;
        Ok(device)
    }

    /// The address of a function whose numbers were checked.
    fn address(&self, device: u8, function: u8) -> FunctionAddress {
        FunctionAddress::new(self.number, Slot(device << 3 | function))
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_machine::{Line, Messages, function};
    use super::super::{InterruptPin, RootComplex};
    use super::*;
    use crate::dma::Leases;

    fn device(functions: usize) -> Node {
        let sink = Arc::new(Messages::default());
        Node::Device(
            (0..functions).map(|_| function(InterruptPin::A, &sink, &Arc::default()).0).collect(),
        )
    }

    fn build(root: Vec<Node>) -> Result<RootComplex, TopologyError> {
        let root = root.into_iter().map(RootNode::Integrated).collect();
        let lines = [(); 4].map(|()| Arc::new(Line::default()) as _);
        RootComplex::new(Topology { root }, lines, Leases::default())
    }

    #[test]
    fn a_topology_with_too_many_devices_functions_or_buses_is_refused() {
        let devices = |count| (0..count).map(|_| device(1)).collect::<Vec<_>>();
        assert!(build(devices(31)).is_ok());
        assert_eq!(build(devices(32)).err(), Some(TopologyError::TooManyDevices { bus: 0 }));
        let bridge = Node::ConventionalBridge(devices(33));
        assert_eq!(build(vec![bridge]).err(), Some(TopologyError::TooManyDevices { bus: 1 }));
        assert!(build(vec![device(8)]).is_ok());
        for functions in [0, 9] {
            let error = TopologyError::Functions { bus: 0, device: 1, functions };
            assert_eq!(build(vec![device(functions)]).err(), Some(error));
        }
        let deep =
            |buses| (0..buses).fold(device(1), |below, _| Node::ConventionalBridge(vec![below]));
        assert_eq!(build(vec![deep(63)]).unwrap().status().len(), 65);
        assert_eq!(build(vec![deep(64)]).err(), Some(TopologyError::TooManyBuses));
    }
}
