//! Base address registers (PCI Express Base 6.0, section 7.5.1.2.1) and the expansion ROM's
//! (section 7.5.1.2.4).
//!
//! The low bits of an address, below the size of the range, are read-only zeros. That is how a driver
//! finds out the size: it writes all ones and reads back which bits are set. This needs no code of its
//! own: for a moment, the range is programmed to be at the end of the address space.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::address_map::Span;
use super::config_space::ConfigSpace;
use super::header::{Command, register};

/// Which of the six base address registers of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum BarIndex {
    /// At 0x10.
    Bar0,
    /// At 0x14.
    Bar1,
    /// At 0x18.
    Bar2,
    /// At 0x1c.
    Bar3,
    /// At 0x20.
    Bar4,
    /// At 0x24.
    Bar5,
}

impl BarIndex {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Bar0, Self::Bar1, Self::Bar2, Self::Bar3, Self::Bar4, Self::Bar5];

    /// The one with this number.
    pub fn new(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The one after it, which holds the upper half of a 64-bit address.
    pub fn next(self) -> Option<Self> {
        Self::new(self as u8 + 1)
    }
}

/// Whether a range is memory or I/O ports, and where it may be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere. Takes two registers.
    Memory64,
    /// Prefetchable memory anywhere. Takes two registers.
    Memory64Prefetchable,
    /// I/O ports.
    Io,
}

impl BarKind {
    /// The valid sizes. The specification allows I/O ranges of 256 ports at most.
    pub(super) fn sizes(self) -> RangeInclusive<u64> {
        match self {
            Self::Memory32 => 16..=1 << 31,
            Self::Memory64 | Self::Memory64Prefetchable => 16..=1 << 63,
            Self::Io => 4..=256,
        }
    }

    pub(super) fn is_64_bit(self) -> bool {
        matches!(self, Self::Memory64 | Self::Memory64Prefetchable)
    }

    /// The read-only low bits that encode the kind of range.
    fn type_bits(self) -> u32 {
        match self {
            Self::Memory32 => 0b0000,
            Self::Io => 0b0001,
            Self::Memory64 => 0b0100,
            Self::Memory64Prefetchable => 0b1100,
        }
    }
}

/// A register that gives a function a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BaseRegister {
    /// A base address register.
    Bar(BarIndex),
    /// The expansion ROM base address register.
    ExpansionRom,
}

impl BaseRegister {
    fn offset(self) -> usize {
        match self {
            Self::Bar(index) => register::BASE_ADDRESS + 4 * index as usize,
            Self::ExpansionRom => register::EXPANSION_ROM,
        }
    }
}

impl fmt::Display for BaseRegister {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Bar(index) => write!(f, "BAR {}", *index as u8),
            Self::ExpansionRom => f.write_str("expansion ROM"),
        }
    }
}

/// One of the two spaces that addresses are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressSpace {
    /// Memory.
    Memory,
    /// I/O ports.
    Io,
}

/// A range of addresses. The function's registers define where it is and whether it is decoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct BaseRange {
    pub register: BaseRegister,
    pub kind: BarKind,
    /// A power of two, one of [`BarKind::sizes`].
    pub size: u64,
}

impl BaseRange {
    /// The sizes that an expansion ROM can have.
    pub const ROM_SIZES: RangeInclusive<u64> = 1 << 11..=1 << 24;
    /// Expansion ROM Enable.
    const ROM_ENABLE: u32 = 1;

    /// Puts the register's read-only bits into `config`, and lets the guest write the others.
    pub fn add(&self, config: &mut ConfigSpace) {
        let offset = self.register.offset();
        let address_bits = !(self.size - 1);
        let enable = match self.register {
            BaseRegister::Bar(_) => 0,
            BaseRegister::ExpansionRom => Self::ROM_ENABLE,
        };
        config.set(offset, &self.kind.type_bits().to_le_bytes());
        if self.kind.is_64_bit() {
            config.allow(offset, &address_bits.to_le_bytes());
        } else {
            config.allow(offset, &(address_bits as u32 | enable).to_le_bytes());
        }
        config.allow_command(match self.space() {
            AddressSpace::Memory => Command::MEMORY,
            AddressSpace::Io => Command::IO,
        });
    }

    pub fn space(&self) -> AddressSpace {
        if self.kind == BarKind::Io { AddressSpace::Io } else { AddressSpace::Memory }
    }

    /// Where the range is according to the registers.
    pub fn programmed(&self, config: &ConfigSpace) -> Span {
        let offset = self.register.offset();
        let low = u64::from(config.u32(offset));
        let high = if self.kind.is_64_bit() { u64::from(config.u32(offset + 4)) } else { 0 };
        Span::sized((high << 32 | low) & !(self.size - 1), self.size)
    }

    /// Whether COMMAND and, for a ROM, its own register let the function decode the range.
    pub fn is_enabled(&self, config: &ConfigSpace) -> bool {
        let command = config.command();
        let enabled_by_command = match self.space() {
            AddressSpace::Memory => command.contains(Command::MEMORY),
            AddressSpace::Io => command.contains(Command::IO),
        };
        let rom_disabled = self.register == BaseRegister::ExpansionRom
            && config.u32(self.register.offset()) & Self::ROM_ENABLE == 0;
        enabled_by_command && !rom_disabled
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::{ClassCode, HeaderType, Identity};
    use super::*;

    fn config(range: &BaseRange) -> ConfigSpace {
        let class = ClassCode { base: 0xff, sub: 0, interface: 0 };
        let identity = Identity {
            vendor: 1,
            device: 2,
            revision: 3,
            class,
            subsystem_vendor: 4,
            subsystem: 5,
        };
        let mut config = ConfigSpace::with_header(&identity, HeaderType::Endpoint);
        range.add(&mut config);
        config
    }

    fn bar(index: BarIndex, kind: BarKind, size: u64) -> BaseRange {
        BaseRange { register: BaseRegister::Bar(index), kind, size }
    }

    #[test]
    fn writing_all_ones_shows_the_size_and_the_kind() {
        for (kind, size, low, high) in [
            (BarKind::Memory32, 0x1000, 0xffff_f000_u32, 0_u32),
            (BarKind::Memory32, 1 << 31, 0x8000_0000, 0),
            (BarKind::Memory64, 16, 0xffff_fff4, 0xffff_ffff),
            (BarKind::Memory64Prefetchable, 1 << 33, 0xc, 0xffff_fffe),
            (BarKind::Memory64, 1 << 63, 0x4, 0x8000_0000),
            (BarKind::Io, 4, 0xffff_fffd, 0),
            (BarKind::Io, 256, 0xffff_ff01, 0),
        ] {
            let range = bar(BarIndex::Bar2, kind, size);
            let mut config = config(&range);
            config.write(0x18, &[0xff; 8]);
            assert_eq!((config.u32(0x18), config.u32(0x1c)), (low, high), "{kind:?} {size:#x}");
        }
    }

    #[test]
    fn registers_place_a_range_and_command_enables_it() {
        let range = bar(BarIndex::Bar0, BarKind::Memory64, 0x1000);
        let mut config = config(&range);
        config.write(0x10, &0x12_3456_7fff_u64.to_le_bytes());
        assert_eq!(range.programmed(&config), Span::sized(0x12_3456_7000, 0x1000));
        assert!(!range.is_enabled(&config));
        config.write(register::COMMAND, &[0xff]);
        assert!(range.is_enabled(&config));
        assert!(!config.command().contains(Command::IO), "there is no I/O range");
        config.write(0x10, &[0xff; 8]);
        assert_eq!(range.programmed(&config).last, u64::MAX);
    }

    #[test]
    fn a_rom_has_an_enable_bit_of_its_own() {
        let register = BaseRegister::ExpansionRom;
        let range = BaseRange { register, kind: BarKind::Memory32, size: 0x800 };
        let mut config = config(&range);
        config.write(register::COMMAND, &[0xff]);
        config.write(register::EXPANSION_ROM, &0xf000_0ffe_u32.to_le_bytes());
        assert!(!range.is_enabled(&config));
        config.write(register::EXPANSION_ROM, &[1]);
        assert!(range.is_enabled(&config));
        assert_eq!(range.programmed(&config), Span::sized(0xf000_0800, 0x800));
    }
}
