//! The functions that come with the root complex: the host bridge, root ports, and bridges to conventional
//! PCI.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use super::capability::power::{self, SoftReset};
use super::capability::{AccessControl, CapabilityList};
use super::completer::Completer;
use super::config_space::ConfigSpace;
use super::header::{Command, HeaderType, register};
use super::reach::{BridgeControl, IO_ADDRESS, MEMORY_ADDRESS, PREFETCHABLE_64_BIT};
use super::{
    BarIndex, ClassCode, Function, FunctionBuilder, FunctionState, Identity, InterruptPin,
    PciDevice, ResetKind,
};

/// The host bridge and the bridges are the generic ones that have device IDs under Red Hat's vendor ID.
/// Linux recognises them by class alone.
const RED_HAT: u16 = 0x1b36;
const HOST_BRIDGE: u16 = 0x0008;
const ROOT_PORT: u16 = 0x000c;
const TO_CONVENTIONAL_BRIDGE: u16 = 0x000e;

/// Sub-classes of bridges (PCI Code and ID Assignment, section 1.7).
const BRIDGE_CLASS: u8 = 0x06;
const HOST: u8 = 0x00;
const PCI_TO_PCI: u8 = 0x04;

/// A device without behaviour besides its registers.
struct RegistersOnly;

impl PciDevice for RegistersOnly {
    fn read_bar(&mut self, _bar: BarIndex, _offset: u64, _data: &mut [u8]) {}
    fn write_bar(&mut self, _bar: BarIndex, _offset: u64, _data: &[u8]) {}
    fn reset(&mut self, _kind: ResetKind) {}
}

fn identity(device: u16, sub: u8) -> Identity {
    Identity {
        vendor: RED_HAT,
        device,
        revision: 0,
        class: ClassCode { base: BRIDGE_CLASS, sub, interface: 0 },
        subsystem_vendor: RED_HAT,
        subsystem: device,
    }
}

/// The host bridge, the root complex's own function at 00:00.0.
pub(super) fn host_bridge() -> Function {
    FunctionBuilder::new(identity(HOST_BRIDGE, HOST)).build(Arc::new(Mutex::new(RegistersOnly)))
}

/// A root port.
pub(super) fn root_port(access_control: bool) -> Function {
    let mut function = bridge(identity(ROOT_PORT, PCI_TO_PCI));
    // Never asserted. Where the machine leaves PME to Linux, its port driver requires an interrupt pin.
    function.config.set(register::INTERRUPT_PIN, &[InterruptPin::A as u8]);
    function.config.allow_command(Command::INTX_DISABLE);
    if access_control {
        AccessControl::ROOT_PORT.add(&mut function.config);
    }
    function
}

/// A bridge to conventional PCI.
pub(super) fn conventional_bridge() -> Function {
    bridge(identity(TO_CONVENTIONAL_BRIDGE, PCI_TO_PCI))
}

/// A function with a type 1 header. No bus numbers, all windows closed: bases above limits.
fn bridge(identity: Identity) -> Function {
    let mut config = ConfigSpace::with_header(&identity, HeaderType::Bridge);
    config.allow_command(Command::IO | Command::MEMORY);
    config.allow(register::PRIMARY_BUS, &[u8::MAX; 3]);

    config.set(register::IO_BASE, &[IO_ADDRESS]);
    config.allow(register::IO_BASE, &[IO_ADDRESS; 2]);
    let address = MEMORY_ADDRESS.to_le_bytes();
    config.set(register::MEMORY_BASE, &address);
    config.allow(register::MEMORY_BASE, &address);
    config.allow(register::MEMORY_LIMIT, &address);
    config.set(register::PREFETCHABLE_BASE, &(MEMORY_ADDRESS | PREFETCHABLE_64_BIT).to_le_bytes());
    config.set(register::PREFETCHABLE_LIMIT, &PREFETCHABLE_64_BIT.to_le_bytes());
    config.allow(register::PREFETCHABLE_BASE, &address);
    config.allow(register::PREFETCHABLE_LIMIT, &address);
    config.allow(register::PREFETCHABLE_BASE_UPPER, &[u8::MAX; 8]);
    config.allow(register::BRIDGE_CONTROL, &BridgeControl::all().bits().to_le_bytes());

    let mut capabilities = CapabilityList::new();
    // A bridge that lost its bus numbers would make everything below it unreachable.
    power::add(&mut capabilities, &mut config, SoftReset::No);
    let completer = Completer {
        state: Arc::new(FunctionState::default()),
        device: Arc::new(Mutex::new(RegistersOnly)),
        msix: None,
        intx: None,
        rom: Vec::new(),
    };
    Function {
        config,
        capabilities,
        ranges: Vec::new(),
        msix: None,
        device_bytes: Vec::new(),
        doorbell: None,
        completer: Arc::new(completer),
    }
}

/// Gives a bridge bus numbers, as firmware does.
pub(super) fn set_bus_numbers(config: &mut ConfigSpace, primary: u8, buses: &RangeInclusive<u8>) {
    config.set(register::PRIMARY_BUS, &[primary, *buses.start(), *buses.end()]);
}
