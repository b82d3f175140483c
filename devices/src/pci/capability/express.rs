//! The PCI Express capability (PCI Express Base 6.0, section 7.5.3).
//!
//! Links run at 2.5 GT/s, one lane wide, and are up if there is a device at the other end.

use bitflags::bitflags;

use super::{CapabilityList, id};
use crate::pci::config_space::ConfigSpace;

const SIZE: usize = 0x3c;
/// Offset of the capability in every function: at the end of conventional configuration space.
pub(super) const OFFSET: usize = ConfigSpace::CONVENTIONAL_SIZE - SIZE;

const CAPABILITIES: usize = OFFSET + 0x02;
const DEVICE_CAPABILITIES: usize = OFFSET + 0x04;
const DEVICE_CONTROL: usize = OFFSET + 0x08;
const LINK_CAPABILITIES: usize = OFFSET + 0x0c;
const LINK_CONTROL: usize = OFFSET + 0x10;
const LINK_STATUS: usize = OFFSET + 0x12;
const ROOT_CONTROL: usize = OFFSET + 0x1c;
const DEVICE_CAPABILITIES_2: usize = OFFSET + 0x24;
const DEVICE_CONTROL_2: usize = OFFSET + 0x28;
const LINK_CAPABILITIES_2: usize = OFFSET + 0x2c;
const LINK_CONTROL_2: usize = OFFSET + 0x30;

/// PCI Express Capabilities (section 7.5.3.2): the capability's version. The type is above it.
const VERSION: u16 = 2;
const PORT_TYPE_SHIFT: u16 = 4;
/// Root Control (section 7.5.3.12): enables system errors and PME interrupts, of which the machine has
/// neither.
const ROOT_CONTROL_WRITABLE: u16 = 0xf;
/// Device Capabilities 2 and Device Control 2 (sections 7.5.3.15 and 7.5.3.16).
const COMPLETION_TIMEOUT_DISABLE: u16 = 1 << 4;
/// Link Capabilities 2 (section 7.5.3.18): the only supported speed.
const SUPPORTED_2_5_GT: u32 = 1 << 1;
/// Link Control 2 (section 7.5.3.19): the target speed.
const TARGET_2_5_GT: u16 = 1;

/// What a function is: Device/Port Type (section 7.5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(in crate::pci) enum PortType {
    Endpoint = 0,
    RootPort = 4,
    /// A PCI Express to PCI bridge.
    Bridge = 7,
    IntegratedEndpoint = 9,
}

bitflags! {
    /// Device Capabilities register (section 7.5.3.3).
    #[derive(Clone, Copy)]
    struct DeviceCapabilities: u32 {
        const ROLE_BASED_ERROR_REPORTING = 1 << 15;
        const FUNCTION_LEVEL_RESET = 1 << 28;
    }

    /// Device Control register (section 7.5.3.4).
    #[derive(Clone, Copy)]
    struct DeviceControl: u16 {
        const ERROR_REPORTING = 0xf;
        const RELAXED_ORDERING = 1 << 4;
        const MAX_PAYLOAD_SIZE = 7 << 5;
        const NO_SNOOP = 1 << 11;
        const MAX_READ_REQUEST_SIZE = 7 << 12;
        const MAX_READ_REQUEST_512 = 2 << 12;
        const INITIATE_FUNCTION_LEVEL_RESET = 1 << 15;
    }

    /// Link Capabilities register (section 7.5.3.6).
    #[derive(Clone, Copy)]
    struct LinkCapabilities: u32 {
        const SPEED_2_5_GT = 1;
        const WIDTH_1 = 1 << 4;
        const ACTIVE_REPORTING = 1 << 20;
        const ASPM_OPTIONALITY = 1 << 22;
    }

    /// Link Control register (section 7.5.3.7).
    #[derive(Clone, Copy)]
    struct LinkControl: u16 {
        const ASPM = 0b11;
        const COMMON_CLOCK = 1 << 6;
        const EXTENDED_SYNCH = 1 << 7;
    }

    /// Link Status register (section 7.5.3.8).
    #[derive(Clone, Copy)]
    struct LinkStatus: u16 {
        const SPEED_2_5_GT = 1;
        const WIDTH_1 = 1 << 4;
        const SLOT_CLOCK = 1 << 12;
        const ACTIVE = 1 << 13;
    }
}

/// Adds the capability of a function of type `port_type`. `linked` is whether there is a device at the
/// other end of its link, if it has one.
pub(in crate::pci) fn add(
    list: &mut CapabilityList,
    config: &mut ConfigSpace,
    port_type: PortType,
    linked: bool,
) {
    list.link(config, id::PCI_EXPRESS, OFFSET);
    let capabilities = VERSION | (port_type as u16) << PORT_TYPE_SHIFT;
    config.set(CAPABILITIES, &capabilities.to_le_bytes());
    add_device(config, port_type);
    // A function that is integrated into the root complex has no link.
    if port_type != PortType::IntegratedEndpoint {
        add_link(config, port_type, linked);
    }
    if port_type == PortType::RootPort {
        config.allow(ROOT_CONTROL, &ROOT_CONTROL_WRITABLE.to_le_bytes());
    }
}

fn add_device(config: &mut ConfigSpace, port_type: PortType) {
    let mut capabilities = DeviceCapabilities::ROLE_BASED_ERROR_REPORTING;
    let mut writable = DeviceControl::all() - DeviceControl::INITIATE_FUNCTION_LEVEL_RESET;
    if matches!(port_type, PortType::Endpoint | PortType::IntegratedEndpoint) {
        capabilities |= DeviceCapabilities::FUNCTION_LEVEL_RESET;
        writable |= DeviceControl::INITIATE_FUNCTION_LEVEL_RESET;
    }
    let control = DeviceControl::RELAXED_ORDERING
        | DeviceControl::NO_SNOOP
        | DeviceControl::MAX_READ_REQUEST_512;
    config.set(DEVICE_CAPABILITIES, &capabilities.bits().to_le_bytes());
    config.set(DEVICE_CONTROL, &control.bits().to_le_bytes());
    config.allow(DEVICE_CONTROL, &writable.bits().to_le_bytes());
    config.set(DEVICE_CAPABILITIES_2, &COMPLETION_TIMEOUT_DISABLE.to_le_bytes());
    config.allow(DEVICE_CONTROL_2, &COMPLETION_TIMEOUT_DISABLE.to_le_bytes());
}

fn add_link(config: &mut ConfigSpace, port_type: PortType, linked: bool) {
    let mut capabilities = LinkCapabilities::SPEED_2_5_GT
        | LinkCapabilities::WIDTH_1
        | LinkCapabilities::ASPM_OPTIONALITY;
    let mut status = LinkStatus::SLOT_CLOCK;
    if linked {
        status |= LinkStatus::SPEED_2_5_GT | LinkStatus::WIDTH_1;
    }
    if port_type == PortType::RootPort {
        capabilities |= LinkCapabilities::ACTIVE_REPORTING;
        status.set(LinkStatus::ACTIVE, linked);
    }
    config.set(LINK_CAPABILITIES, &capabilities.bits().to_le_bytes());
    config.allow(LINK_CONTROL, &LinkControl::all().bits().to_le_bytes());
    config.set(LINK_STATUS, &status.bits().to_le_bytes());
    config.set(LINK_CAPABILITIES_2, &SUPPORTED_2_5_GT.to_le_bytes());
    config.set(LINK_CONTROL_2, &TARGET_2_5_GT.to_le_bytes());
}

/// Whether the guest has just requested a Function Level Reset. Clears the bit. A function without such
/// a reset has no bit to write.
pub(in crate::pci) fn wants_reset(config: &ConfigSpace) -> bool {
    DeviceControl::from_bits_truncate(config.u16(DEVICE_CONTROL))
        .contains(DeviceControl::INITIATE_FUNCTION_LEVEL_RESET)
}
