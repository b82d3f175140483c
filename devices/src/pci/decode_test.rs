//! Compares the address maps with a walk from the root over the raw registers.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;

use super::address_map::Route;
use super::bus::{Bus, SlotEntry};
use super::completer::Target;
use super::config_space::ConfigSpace;
use super::intx::SharedLine;
use super::test_machine::{BAR0_SIZE, DOORBELL, Line, MSIX, Messages, function};
use super::*;

/// A part of a random machine.
#[derive(Debug, Clone)]
enum Shape {
    Device(u8),
    Bridge(Vec<Shape>),
    /// On bus 0. Elsewhere, what is below the port takes its place.
    Port(Option<Box<Shape>>),
}

fn shape() -> impl Strategy<Value = Shape> {
    (1..3_u8).prop_map(Shape::Device).prop_recursive(3, 8, 3, |below| {
        prop_oneof![
            prop::collection::vec(below.clone(), 0..3).prop_map(Shape::Bridge),
            prop::option::of(below).prop_map(|below| Shape::Port(below.map(Box::new))),
        ]
    })
}

fn node(shape: &Shape) -> Node {
    let messages = Arc::new(Messages::default());
    match shape {
        Shape::Device(functions) => Node::Device(
            (0..*functions)
                .map(|_| function(InterruptPin::A, &messages, &Arc::default()).0)
                .collect(),
        ),
        Shape::Bridge(below) => Node::ConventionalBridge(below.iter().map(node).collect()),
        Shape::Port(Some(below)) => node(below),
        Shape::Port(None) => Node::ConventionalBridge(Vec::new()),
    }
}

fn root_node(shape: &Shape) -> RootNode {
    match shape {
        Shape::Port(below) => RootNode::Port(RootPort {
            access_control: false,
            below: below.as_ref().map(|below| node(below)),
        }),
        shape => RootNode::Integrated(node(shape)),
    }
}

/// A write to a register of some function.
#[derive(Debug, Clone)]
struct Write {
    /// The index of a function on bus 0, on the bus below it, and so on, each modulo the number of
    /// functions.
    path: Vec<usize>,
    offset: usize,
    data: Vec<u8>,
}

/// Addresses close to each other, so that ranges overlap or touch, in the formats of different
/// registers.
fn value() -> impl Strategy<Value = u32> {
    prop_oneof![
        (0..3_u32, 0..4_u32).prop_map(|(high, low)| 0xe000_0000 + (high << 20) + (low << 12)),
        (0..4_u32).prop_map(|low| 0xc000 + (low << 4)),
        // Windows: limit and base.
        (0..3_u32, 0..3_u32).prop_map(|(base, limit)| (0xe000_e000 + (base << 4)) | limit << 20),
        (0..3_u32, 0..3_u32).prop_map(|(base, limit)| 0xc0c0 + (base << 4) + (limit << 12)),
        select(vec![0, 1, 7, u32::MAX]),
        any::<u32>(),
    ]
}

fn write() -> impl Strategy<Value = Write> {
    // COMMAND, everything of a header that concerns addresses, and power management.
    let offset = prop_oneof![
        4 => Just(0x04),
        8 => (0x10_usize / 4..=0x30 / 4).prop_map(|index| index * 4),
        1 => select(vec![0x3e, 0x44]),
        1 => 0..0x100_usize,
    ];
    let value = prop_oneof![2 => Just(7), 5 => value()];
    let path = prop::collection::vec(any::<usize>(), 1..5);
    (path, offset, value, 1..=4_usize).prop_map(|(path, offset, value, size)| Write {
        path,
        offset,
        data: value.to_le_bytes()[..size].to_vec(),
    })
}

fn pick<'a>(bus: &'a mut Bus, path: &[usize]) -> &'a mut SlotEntry {
    let count = bus.slots.len();
    let entry = &mut bus.slots[path[0] % count];
    if path.len() > 1 && entry.below.as_ref().is_some_and(|below| !below.slots.is_empty()) {
        pick(entry.below.as_mut().unwrap(), &path[1..])
    } else {
        entry
    }
}

/// The function that decodes an address, the part of it, and the offset there.
type Owner = (FunctionAddress, &'static str, u64);

fn owner(route: &Route) -> Owner {
    let target = match route.target {
        Target::Device(BarIndex::Bar0) => "BAR 0",
        Target::Device(BarIndex::Bar2) => "BAR 2",
        Target::Device(BarIndex::Bar3) => "BAR 3",
        Target::Device(_) => "no such BAR",
        Target::MsixTable(_) => "table",
        Target::MsixPending(_) => "pending",
        Target::Rom => "ROM",
    };
    (route.completer.state.address().unwrap(), target, route.offset)
}

/// Finds what decodes an address: the first function on the bus whose registers match it, one byte at a
/// time.
fn walk(bus: &Bus, io: bool, address: u64) -> Option<Owner> {
    bus.slots.iter().find_map(|SlotEntry { address: place, function, below }| {
        let config = &function.config;
        let awake = config.u8(0x44) & 3 == 0;
        let enabled = config.u8(0x04) & if io { 1 } else { 2 } != 0;
        if !awake || !enabled {
            return None;
        }
        match below {
            Some(below) if config.u8(0x3e) & 0x40 == 0 && passes(config, io, address) => {
                walk(below, io, address)
            }
            Some(_) => None,
            None if config.u16(0) == 0x1234 => {
                decodes(config, io, address).map(|(target, offset)| (*place, target, offset))
            }
            None => None,
        }
    })
}

fn endpoints(bus: &Bus) -> Vec<&SlotEntry> {
    bus.slots
        .iter()
        .flat_map(|entry| match &entry.below {
            Some(below) => endpoints(below),
            // The host bridge has none.
            None => Vec::from_iter((entry.function.config.u16(0) == 0x1234).then_some(entry)),
        })
        .collect()
}

fn passes(config: &ConfigSpace, io: bool, address: u64) -> bool {
    let within =
        |base: u64, limit: u64, unit: u64| (base / unit..=limit / unit).contains(&(address / unit));
    if io {
        let bits = |offset| u64::from(config.u8(offset) >> 4) << 12;
        return within(bits(0x1c), bits(0x1d), 0x1000);
    }
    let bits = |offset| u64::from(config.u16(offset) >> 4) << 20;
    let wide = |offset, upper| bits(offset) | u64::from(config.u32(upper)) << 32;
    within(bits(0x20), bits(0x22), 0x10_0000)
        || within(wide(0x24, 0x28), wide(0x26, 0x2c), 0x10_0000)
}

fn decodes(config: &ConfigSpace, io: bool, address: u64) -> Option<(&'static str, u64)> {
    let at = |base: u64, size| address.checked_sub(base / size * size).filter(|&at| at < size);
    if io {
        return at(config.u32(0x1c).into(), 0x20).map(|at| ("BAR 3", at));
    }
    let bar0 = u64::from(config.u32(0x10)) | u64::from(config.u32(0x14)) << 32;
    if let Some(at) = at(bar0, BAR0_SIZE) {
        return Some(
            [("table", MSIX.table_range()), ("pending", MSIX.pending_range())]
                .into_iter()
                .find(|(_, range)| range.contains(&at))
                .map_or(("BAR 0", at), |(name, range)| (name, at - range.start)),
        );
    }
    let rom = config.u32(0x30);
    at(config.u32(0x18).into(), 0x1000)
        .map(|at| ("BAR 2", at))
        .or_else(|| at(rom.into(), 0x800).filter(|_| rom & 1 != 0).map(|at| ("ROM", at)))
}

proptest! {
    #[test]
    fn maps_agree_with_registers(
        shapes in prop::collection::vec(shape(), 1..5),
        writes in prop::collection::vec(write(), 0..60),
        probes in prop::collection::vec(value(), 20),
    ) {
        let lines = [(); 4].map(|()| Arc::new(SharedLine::new(Arc::new(Line::default()))));
        let topology = Topology { root: shapes.iter().map(root_node).collect() };
        let mut root = Bus::root(topology, lines).unwrap();
        for Write { path, offset, data } in &writes {
            pick(&mut root, path).write(*offset, data);
        }
        let map = root.map();
        let walked: Vec<_> = endpoints(&root)
            .into_iter()
            .map(|SlotEntry { address, function, .. }| {
                let at = u64::from(function.config.u32(0x18)) + DOORBELL;
                (walk(&root, false, at) == Some((*address, "BAR 2", DOORBELL))).then_some(at)
            })
            .collect();
        let placed: Vec<_> = map.doorbells.iter().map(|placed| placed.address).collect();
        prop_assert_eq!(placed, walked);
        let ranges = map.memory.programmed.iter().chain(&map.io.programmed);
        let edges = ranges.flat_map(|stray| [stray.span.first, stray.span.last]);
        let probes = probes.into_iter().map(u64::from).chain(edges);
        for address in probes.flat_map(|address| [-1, 0, 1].map(|by| address.wrapping_add_signed(by))) {
            for (io, map) in [(false, &map.memory), (true, &map.io)] {
                let found = map.route(address);
                prop_assert_eq!(found.as_ref().map(owner), walk(&root, io, address), "{:#x}", address);
                if let (None, Some(stray)) = (found, map.stray(address)) {
                    prop_assert!(stray.span.contains(address));
                }
            }
        }
    }
}
