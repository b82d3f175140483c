//! Which requests a bridge forwards, downstream and upstream (PCI Express Base 6.0, section 7.5.1.3;
//! PCI-to-PCI Bridge 1.2, section 3.2.5 and chapter 4).

use std::ops::RangeInclusive;

use bitflags::bitflags;

use super::address_map::Span;
use super::capability::power;
use super::config_space::ConfigSpace;
use super::header::{Command, register};
use super::{FunctionAddress, PowerState, Slot};

bitflags! {
    /// Bridge Control register (section 7.5.1.3.13), as far as the guest may write it.
    #[derive(Clone, Copy)]
    pub(super) struct BridgeControl: u16 {
        const PARITY = 1 << 0;
        const SERR = 1 << 1;
        const SECONDARY_BUS_RESET = 1 << 6;
    }
}

/// Memory windows start and end at multiples of 1 MiB, I/O windows at multiples of 4 KiB. Base
/// and limit registers hold the address bits above that, less those of an empty register.
const MEMORY_SHIFT: u32 = 16;
pub(super) const MEMORY_ADDRESS: u16 = 0xfff0;
const MEMORY_REST: u64 = 0xf_ffff;
const IO_SHIFT: u32 = 8;
pub(super) const IO_ADDRESS: u8 = 0xf0;
const IO_REST: u64 = 0xfff;
/// Low bits of the prefetchable window's registers: addresses have 64 bits.
pub(super) const PREFETCHABLE_64_BIT: u16 = 1;

/// What kind of functions a bus is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum BusKind {
    Root,
    Link,
    Conventional,
}

/// Which IDs the requests of the functions on a bus carry once they get to the root complex.
#[derive(Clone, Copy)]
pub(super) enum Requesters {
    /// The functions' own addresses, with this bus number.
    Own(u8),
    /// All the same: a bridge from conventional PCI, where requests carry no ID, has taken ownership of
    /// them. It inserts function 0 of its secondary bus (PCI Express to PCI/PCI-X Bridge 1.0,
    /// section 2.3; `pci_for_each_dma_alias()` of Linux 6.12).
    Bridge(FunctionAddress),
}

impl Requesters {
    pub fn id(self, slot: Slot) -> FunctionAddress {
        match self {
            Self::Own(bus) => FunctionAddress::new(bus, slot),
            Self::Bridge(address) => address,
        }
    }
}

/// Which accesses get to a bus from upstream, and which of its requests get there.
pub(super) struct Reach {
    /// Disjoint ranges of memory.
    pub memory: Vec<Span>,
    /// Disjoint ranges of I/O ports.
    pub io: Vec<Span>,
    /// Whether requests of the functions on it get upstream.
    pub bus_master: bool,
    /// The IDs that those requests carry.
    pub requesters: Requesters,
}

impl Reach {
    /// Bus 0.
    pub fn root() -> Self {
        let requesters = Requesters::Own(0);
        Self { memory: vec![Span::ALL], io: vec![Span::ALL], bus_master: true, requesters }
    }

    /// What gets through the bridge with the registers `config` to the bus of `kind` below.
    pub fn through(&self, config: &ConfigSpace, kind: BusKind) -> Self {
        let secondary = config.u8(register::SECONDARY_BUS);
        let requesters = match (self.requesters, kind) {
            // The bridge nearest to the root complex determines the ID.
            (Requesters::Bridge(_), _) => self.requesters,
            (_, BusKind::Conventional) => {
                Requesters::Bridge(FunctionAddress::from(u16::from(secondary) << 8))
            }
            (_, BusKind::Root | BusKind::Link) => Requesters::Own(secondary),
        };
        if !forwards(config) {
            return Self { memory: Vec::new(), io: Vec::new(), bus_master: false, requesters };
        }
        let command = config.command();
        let memory =
            if command.contains(Command::MEMORY) { memory_windows(config) } else { vec![] };
        let io = if command.contains(Command::IO) { vec![io_window(config)] } else { vec![] };
        Self {
            memory: intersect(&self.memory, &memory),
            io: intersect(&self.io, &io),
            bus_master: self.bus_master && command.contains(Command::MASTER),
            requesters,
        }
    }
}

fn intersect(spans: &[Span], others: &[Span]) -> Vec<Span> {
    spans.iter().flat_map(|span| others.iter().filter_map(|other| span.intersect(other))).collect()
}

/// Whether the bus below is running: the bridge is awake and does not hold the bus in reset.
fn forwards(config: &ConfigSpace) -> bool {
    power::state(config) == PowerState::D0 && !holds_reset(config)
}

/// Whether Secondary Bus Reset is set.
pub(super) fn holds_reset(config: &ConfigSpace) -> bool {
    BridgeControl::from_bits_truncate(config.u16(register::BRIDGE_CONTROL))
        .contains(BridgeControl::SECONDARY_BUS_RESET)
}

/// The numbers of the bus below and of those behind it, from the secondary to the subordinate bus,
/// if configuration requests get there.
pub(super) fn bus_numbers(config: &ConfigSpace) -> Option<RangeInclusive<u8>> {
    forwards(config)
        .then(|| config.u8(register::SECONDARY_BUS)..=config.u8(register::SUBORDINATE_BUS))
}

fn memory_windows(config: &ConfigSpace) -> Vec<Span> {
    let address = |offset| u64::from(config.u16(offset) & MEMORY_ADDRESS) << MEMORY_SHIFT;
    let upper = |offset| u64::from(config.u32(offset)) << 32;
    let window = |base: u64, limit: u64| Span { first: base, last: limit | MEMORY_REST };
    let memory = window(address(register::MEMORY_BASE), address(register::MEMORY_LIMIT));
    let prefetchable = window(
        upper(register::PREFETCHABLE_BASE_UPPER) | address(register::PREFETCHABLE_BASE),
        upper(register::PREFETCHABLE_LIMIT_UPPER) | address(register::PREFETCHABLE_LIMIT),
    );
    // Two windows that overlap are merged into one.
    if memory.intersect(&prefetchable).is_some() {
        vec![memory.hull(&prefetchable)]
    } else {
        vec![memory, prefetchable]
    }
}

fn io_window(config: &ConfigSpace) -> Span {
    let address = |offset| u64::from(config.u8(offset) & IO_ADDRESS) << IO_SHIFT;
    Span { first: address(register::IO_BASE), last: address(register::IO_LIMIT) | IO_REST }
}
