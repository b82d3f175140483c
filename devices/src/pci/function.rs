//! A function in its slot: accesses to its registers, and the address ranges that they place.

use std::ops::Range;
use std::sync::Arc;

use log::trace;

use super::address_map::{AddressMap, DecodeMap, Span, Stray};
use super::bar::BaseRange;
use super::capability::express::{self, PortType};
use super::capability::{CapabilityList, MsixCapability, power};
use super::completer::{Completer, Target};
use super::config_space::ConfigSpace;
use super::doorbell::{DoorbellRegister, PlacedDoorbell};
use super::header::{Command, Status, register};
use super::intx::SharedLine;
use super::reach::Reach;
use super::{
    AddressSpace, BarKind, BaseRegister, Counters, FunctionAddress, MsixLayout, PowerState,
    RefusalReason, ResetKind,
};
use crate::lock;

/// A function. All of its state is in its registers.
pub struct Function {
    pub(super) config: ConfigSpace,
    pub(super) capabilities: CapabilityList,
    pub(super) ranges: Vec<RangeRegisters>,
    pub(super) msix: Option<MsixRegisters>,
    pub(super) device_bytes: Vec<DeviceBytes>,
    pub(super) doorbell: Option<DoorbellRegister>,
    pub(super) completer: Arc<Completer>,
}

/// A range and its history.
#[derive(Clone, Copy)]
pub(super) struct RangeRegisters {
    range: BaseRange,
    last_decoded: Option<Span>,
    /// What happened to it since it was last decoded.
    was_reset: bool,
}

impl RangeRegisters {
    pub fn new(range: BaseRange) -> Self {
        Self { range, last_decoded: None, was_reset: false }
    }
}

/// Where MSI-X has its registers and its structures.
pub(super) struct MsixRegisters {
    pub capability: MsixCapability,
    pub layout: MsixLayout,
}

/// Which bytes of a vendor-specific capability are the device's own.
pub(super) struct DeviceBytes {
    pub capability: Range<usize>,
    pub own: Range<usize>,
}

/// An access to a device's own bytes, which can wait until the registers' lock is gone.
pub(super) struct DeviceBytesAccess {
    completer: Arc<Completer>,
    capability: Vec<u8>,
    offset: usize,
}

impl DeviceBytesAccess {
    pub fn read(&self, data: &mut [u8]) {
        lock(&self.completer.device).read_capability(&self.capability, self.offset, data);
    }

    pub fn write(&self, data: &[u8]) {
        lock(&self.completer.device).write_capability(&self.capability, self.offset, data);
    }
}

/// What has to follow a write to registers.
pub(super) struct Written {
    /// Whether the map of addresses has to be made anew.
    pub changed: bool,
    /// The functions whose registers were reset, so that the rest of each has to be reset too.
    pub resets: Vec<Reset>,
    pub device_bytes: Option<DeviceBytesAccess>,
}

/// For [`Completer::reset`].
pub(super) type Reset = (Arc<Completer>, ResetKind);

/// Where a function is put.
pub(super) struct Placement<'a> {
    pub address: FunctionAddress,
    /// What the function is on PCI Express; none on a conventional bus.
    pub port_type: Option<PortType>,
    /// Whether there is a device at the other end of the function's link.
    pub linked: bool,
    pub multi_function: bool,
    /// The lines that the pins of device 0 of the bus are wired to.
    pub lines: &'a [Arc<SharedLine>; 4],
}

impl Function {
    /// Gives it a name, which its status reports.
    pub fn named(self, name: String) -> Self {
        self.completer.state.set_name(name);
        self
    }

    /// Fills in the registers that depend on where the function is. A reset restores this state.
    pub(super) fn place(&mut self, placement: &Placement) {
        let Placement { address, port_type, linked, multi_function, lines } = *placement;
        self.completer.state.set_address(address);
        match port_type {
            Some(port_type) => {
                express::add(&mut self.capabilities, &mut self.config, port_type, linked);
            }
            None => self.config.make_conventional(),
        }
        if multi_function {
            self.config.set_multi_function();
        }
        if let Some(intx) = &self.completer.intx {
            // Pins count from 1 (PCI-to-PCI Bridge 1.2, section 9.1).
            let pin = usize::from(self.config.u8(register::INTERRUPT_PIN)) - 1;
            let line = (usize::from(address.slot.device()) + pin) % lines.len();
            intx.connect(Arc::clone(&lines[line]));
        }
        self.config.seal();
    }

    pub(super) fn power_state(&self) -> PowerState {
        power::state(&self.config)
    }

    /// The guest reads registers. For the device's own bytes, returns the access to be made to the
    /// device.
    pub(super) fn read(&mut self, offset: usize, data: &mut [u8]) -> Option<DeviceBytesAccess> {
        let mut status = Status::CAPABILITIES_LIST;
        status.set(Status::INTERRUPT, self.completer.intx.as_ref().is_some_and(|i| i.level()));
        self.config.set_status(status);
        self.config.read(offset, data);
        self.device_bytes(offset, data.len())
    }

    /// The guest writes registers.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) -> Written {
        trace!("{}: config {offset:#x} <- {data:02x?}", self.completer.state);
        let power_state = self.power_state();
        let changed = self.config.write(offset, data);
        let reset = if express::wants_reset(&self.config) {
            Some(ResetKind::FunctionLevel)
        } else if power::written(&mut self.config, power_state) {
            Some(ResetKind::PowerManagement)
        } else {
            None
        };
        let resets = reset.map(|kind| self.reset(kind)).into_iter().collect();
        Written { changed, resets, device_bytes: self.device_bytes(offset, data.len()) }
    }

    fn device_bytes(&self, offset: usize, length: usize) -> Option<DeviceBytesAccess> {
        let end = offset.checked_add(length)?;
        let bytes = self
            .device_bytes
            .iter()
            .find(|bytes| bytes.own.start <= offset && end <= bytes.own.end)?;
        Some(DeviceBytesAccess {
            completer: Arc::clone(&self.completer),
            capability: self.config.get(bytes.capability.clone()).to_vec(),
            offset: offset - bytes.capability.start,
        })
    }

    /// Resets the registers. The caller then resets the rest of the function.
    pub(super) fn reset(&mut self, kind: ResetKind) -> Reset {
        self.config.reset();
        for range in &mut self.ranges {
            range.was_reset = range.last_decoded.is_some();
        }
        (Arc::clone(&self.completer), kind)
    }

    /// Updates everything that depends on the registers, and enters the function's ranges into `map` as
    /// far as accesses get here.
    pub(super) fn decode(&mut self, address: FunctionAddress, reach: &Reach, map: &mut DecodeMap) {
        let command = self.config.command();
        let power_state = self.power_state();
        let awake = power_state == PowerState::D0;
        let bus_master = awake && reach.bus_master && command.contains(Command::MASTER);
        let Completer { state, msix, intx, .. } = &*self.completer;
        state.set_power_state(power_state);
        state.set_requester_id(reach.requesters.id(address.slot));
        state.set_bus_master(bus_master);
        if let (Some(registers), Some(msix)) = (&self.msix, msix) {
            msix.set_control(registers.capability.control(&self.config), bus_master);
        }
        if let Some(intx) = intx {
            let msix_enabled = msix.as_ref().is_some_and(|msix| msix.is_enabled());
            intx.permit(awake && !msix_enabled && !command.contains(Command::INTX_DISABLE));
        }
        for index in 0..self.ranges.len() {
            self.decode_range(index, address, reach, map);
        }
        if let Some(register) = &self.doorbell {
            let doorbell = Arc::clone(&register.doorbell);
            let address = self.doorbell_address(register, &map.memory);
            map.doorbells.push(PlacedDoorbell { doorbell, address });
        }
    }

    /// The address at which writes get to the doorbell. A function that comes later cannot claim it.
    fn doorbell_address(&self, register: &DoorbellRegister, map: &AddressMap) -> Option<u64> {
        let DoorbellRegister { bar, offset, .. } = *register;
        let mut ranges = self.ranges.iter().map(|registers| registers.range);
        let range = ranges.find(|range| range.register == BaseRegister::Bar(bar))?;
        let address = range.programmed(&self.config).first + offset;
        let route = map.route(address)?;
        let ours = Arc::ptr_eq(&route.completer, &self.completer)
            && matches!(route.target, Target::Device(index) if index == bar)
            && route.offset == offset;
        ours.then_some(address)
    }

    fn decode_range(
        &mut self,
        index: usize,
        address: FunctionAddress,
        reach: &Reach,
        map: &mut DecodeMap,
    ) {
        let RangeRegisters { range, .. } = self.ranges[index];
        let (map, windows) = match range.space() {
            AddressSpace::Memory => (&mut map.memory, &reach.memory),
            AddressSpace::Io => (&mut map.io, &reach.io),
        };
        let awake = self.power_state() == PowerState::D0;
        let enabled = awake && range.is_enabled(&self.config);
        let span = range.programmed(&self.config);
        let visible: Vec<Span> = windows
            .iter()
            .filter(|_| enabled)
            .filter_map(|window| window.intersect(&span))
            .collect();

        for (offsets, target) in self.targets(&range) {
            let base = span.first + offsets.start;
            let part = Span { first: base, last: span.first + (offsets.end - 1) };
            for piece in visible.iter().filter_map(|visible| visible.intersect(&part)) {
                map.claim(piece, base, &self.completer, &target);
            }
        }

        let history = &mut self.ranges[index];
        if !visible.is_empty() {
            history.last_decoded = Some(span);
            history.was_reset = false;
        }
        let reason = if history.was_reset {
            RefusalReason::Reset
        } else if !awake {
            RefusalReason::LowPower
        } else if !enabled {
            RefusalReason::DecodingOff
        } else {
            RefusalReason::NotForwarded
        };
        let stray = |span| Stray {
            span,
            completer: Arc::clone(&self.completer),
            function: address,
            register: range.register,
            reason,
        };
        // A register that was never written does not claim the addresses from 0 on.
        if span.first != 0 {
            map.programmed.push(stray(span));
        }
        map.remembered.extend(history.last_decoded.map(stray));
    }

    /// What answers in a range, by offset. Where two overlap, the first counts.
    fn targets(&self, range: &BaseRange) -> Vec<(Range<u64>, Target)> {
        let index = match range.register {
            BaseRegister::Bar(index) => index,
            BaseRegister::ExpansionRom => return vec![(0..range.size, Target::Rom)],
        };
        let mut targets = Vec::new();
        if let (Some(MsixRegisters { layout, .. }), Some(msix)) = (&self.msix, &self.completer.msix)
            && layout.bar == index
        {
            targets.push((layout.table_range(), Target::MsixTable(Arc::clone(msix))));
            targets.push((layout.pending_range(), Target::MsixPending(Arc::clone(msix))));
        }
        targets.push((0..range.size, Target::Device(index)));
        targets
    }

    /// The function's status.
    pub(super) fn status(&self, address: FunctionAddress) -> FunctionStatus {
        let awake = self.power_state() == PowerState::D0;
        let ranges = self.ranges.iter().map(|RangeRegisters { range, .. }| RangeStatus {
            register: range.register,
            kind: range.kind,
            address: range.programmed(&self.config).first,
            size: range.size,
            enabled: awake && range.is_enabled(&self.config),
        });
        FunctionStatus {
            address,
            vendor: self.config.u16(register::VENDOR_ID),
            device: self.config.u16(register::DEVICE_ID),
            command: self.config.command(),
            power_state: self.power_state(),
            ranges: ranges.collect(),
            counters: self.completer.state.counters(),
            name: self.completer.state.name().map(str::to_owned),
        }
    }
}

/// A function's status, from its registers as they are now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionStatus {
    /// The name that the machine has given to it; bridges have none.
    pub name: Option<String>,
    /// Where the function was when the machine was built.
    pub address: FunctionAddress,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Command register.
    pub command: Command,
    /// Power state.
    pub power_state: PowerState,
    /// Its ranges.
    pub ranges: Vec<RangeStatus>,
    /// Counters of accesses and resets.
    pub counters: Counters,
}

/// A range's status, from its registers as they are now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeStatus {
    /// The register that gives the function the range.
    pub register: BaseRegister,
    /// Memory or I/O ports.
    pub kind: BarKind,
    /// Its first address, 0 where none has been given to it.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Whether the function decodes accesses to the range that reach it.
    pub enabled: bool,
}
