//! The registers at the start of every function (PCI Express Base 6.0, section 7.5.1.1).

use bitflags::bitflags;

use super::config_space::ConfigSpace;

/// Registers by offset; those common to all header types first.
pub(super) mod register {
    pub const VENDOR_ID: usize = 0x00;
    pub const DEVICE_ID: usize = 0x02;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION_ID: usize = 0x08;
    pub const CLASS_CODE: usize = 0x09;
    pub const CACHE_LINE_SIZE: usize = 0x0c;
    pub const HEADER_TYPE: usize = 0x0e;
    pub const CAPABILITIES_POINTER: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    pub const INTERRUPT_PIN: usize = 0x3d;

    // Type 0 (section 7.5.1.2).
    pub const BASE_ADDRESS: usize = 0x10;
    pub const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
    pub const SUBSYSTEM_ID: usize = 0x2e;
    pub const EXPANSION_ROM: usize = 0x30;

    // Type 1 (section 7.5.1.3).
    pub const PRIMARY_BUS: usize = 0x18;
    pub const SECONDARY_BUS: usize = 0x19;
    pub const SUBORDINATE_BUS: usize = 0x1a;
    pub const IO_BASE: usize = 0x1c;
    pub const IO_LIMIT: usize = 0x1d;
    pub const MEMORY_BASE: usize = 0x20;
    pub const MEMORY_LIMIT: usize = 0x22;
    pub const PREFETCHABLE_BASE: usize = 0x24;
    pub const PREFETCHABLE_LIMIT: usize = 0x26;
    pub const PREFETCHABLE_BASE_UPPER: usize = 0x28;
    pub const PREFETCHABLE_LIMIT_UPPER: usize = 0x2c;
    pub const BRIDGE_CONTROL: usize = 0x3e;
}

bitflags! {
    /// Command register (section 7.5.1.1.3).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Command: u16 {
        /// The function decodes its I/O ranges; a bridge, its I/O window.
        const IO = 1 << 0;
        /// The function decodes its memory ranges; a bridge, its memory windows.
        const MEMORY = 1 << 1;
        /// The function may make requests; a bridge may pass them on upstream.
        const MASTER = 1 << 2;
        /// Parity error response.
        const PARITY = 1 << 6;
        /// SERR# enable.
        const SERR = 1 << 8;
        /// The function does not interrupt with INTx.
        const INTX_DISABLE = 1 << 10;
    }

    /// Status register (section 7.5.1.1.4), as far as it is used here.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Status: u16 {
        const INTERRUPT = 1 << 3;
        const CAPABILITIES_LIST = 1 << 4;
    }
}

/// Header Type register (section 7.5.1.1.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum HeaderType {
    Endpoint = 0,
    Bridge = 1,
}

/// Bit of the Header Type register: the device has more than one function.
const MULTI_FUNCTION: u8 = 1 << 7;

/// The kind of a function (section 7.5.1.1.6; values: PCI Code and ID Assignment).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassCode {
    /// Base class.
    pub base: u8,
    /// Sub-class.
    pub sub: u8,
    /// Programming interface.
    pub interface: u8,
}

/// The registers by which a driver recognises a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code.
    pub class: ClassCode,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

impl ConfigSpace {
    /// The registers of a header that both types have, with those bits of COMMAND writable that every
    /// function uses.
    pub fn with_header(identity: &Identity, header_type: HeaderType) -> Self {
        let mut config = Self::new();
        let ClassCode { base, sub, interface } = identity.class;
        config.set(register::VENDOR_ID, &identity.vendor.to_le_bytes());
        config.set(register::DEVICE_ID, &identity.device.to_le_bytes());
        config.set(register::REVISION_ID, &[identity.revision]);
        config.set(register::CLASS_CODE, &[interface, sub, base]);
        config.set(register::HEADER_TYPE, &[header_type as u8]);
        config.set_status(Status::CAPABILITIES_LIST);
        config.allow_command(Command::MASTER | Command::PARITY | Command::SERR);
        config.allow(register::CACHE_LINE_SIZE, &[u8::MAX]);
        config.allow(register::INTERRUPT_LINE, &[u8::MAX]);
        config
    }

    pub fn command(&self) -> Command {
        Command::from_bits_truncate(self.u16(register::COMMAND))
    }

    /// Makes the bits of `command` writable, in addition to those that already are.
    pub fn allow_command(&mut self, command: Command) {
        self.allow(register::COMMAND, &command.bits().to_le_bytes());
    }

    pub fn set_status(&mut self, status: Status) {
        self.set(register::STATUS, &status.bits().to_le_bytes());
    }

    pub fn set_multi_function(&mut self) {
        let header_type = self.u8(register::HEADER_TYPE);
        self.set(register::HEADER_TYPE, &[header_type | MULTI_FUNCTION]);
    }
}
