//! Base address registers (PCI Express Base 6.0, section 7.5.1.2.1) and the expansion ROM's
//! (section 7.5.1.2.4).
//!
//! A register's low bits are read-only as far as the range is long, which is how a driver finds
//! out the size: it writes all ones and reads back where they stayed.

use std::fmt;

/// Which of the six base address registers of a type 0 header.
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

    /// The one whose number is `index`.
    pub fn new(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }

    /// The one after, whose register holds the upper half of a 64-bit address.
    pub fn next(self) -> Option<Self> {
        Self::new(self as u8 + 1)
    }
}

/// Where a range may be placed, and what reading it may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes two registers.
    Memory64,
    /// Memory anywhere, without side effects of reading; takes two registers.
    Memory64Prefetchable,
    /// I/O ports.
    Io,
}

/// A register that gives a function a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BaseRegister {
    /// A base address register.
    Bar(BarIndex),
    /// The expansion ROM base address register.
    ExpansionRom,
}

impl fmt::Display for BaseRegister {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Bar(index) => write!(f, "BAR {}", *index as u8),
            Self::ExpansionRom => f.write_str("expansion ROM"),
        }
    }
}
