//! The probe's registers, by range. All are little-endian and may be accessed at any width.
//!
//! No behaviour here: only layouts. Between the registers there is nothing: reads give zeros,
//! writes vanish. An access belongs to the group of registers that it starts in.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// "mo" in ASCII. PCI-SIG has not assigned this vendor ID.
pub const VENDOR: u16 = 0x6d6f;
/// "at" in ASCII.
pub const DEVICE: u16 = 0x6174;
/// What [`Signature::magic`] reads: "moat" in ASCII.
pub const MAGIC: u32 = u32::from_le_bytes(*b"moat");
/// What [`Signature::version`] reads: the version of this layout.
pub const VERSION: u32 = 1;
/// MSI-X vectors.
pub const VECTORS: u16 = 8;

/// BAR 0, 32-bit memory: the registers.
pub mod bar0 {
    /// Bytes.
    pub const SIZE: u64 = 0x2000;
    /// [`Report`](super::Report), read-only.
    pub const REPORT: u64 = 0;
    /// [`Control`](super::Control).
    pub const CONTROL: u64 = 0x100;
    /// Bytes without a meaning.
    pub const SCRATCH: u64 = 0x200;
    /// Bytes of scratch area.
    pub const SCRATCH_SIZE: usize = 0x200;
    /// A ring of [`LogEntry`](super::LogEntry), read-only. Accesses that start here are counted,
    /// but not logged, so that reads of the log do not fill it.
    pub const LOG: u64 = 0x800;
    /// Entries of the log.
    pub const LOG_ENTRIES: usize = 64;
    /// What the DMA engine reads into and writes from.
    pub const BUFFER: u64 = 0x1000;
    /// Bytes of buffer.
    pub const BUFFER_SIZE: usize = 0x1000;
}

/// BAR 4, 32-bit memory: the MSI-X structures.
pub mod bar4 {
    /// Bytes.
    pub const SIZE: u64 = 0x1000;
    /// MSI-X table.
    pub const TABLE: u32 = 0;
    /// Pending Bit Array.
    pub const PENDING: u32 = 0x800;
    /// [`Signature`](super::Signature), read-only: identifies the range, whose other contents are the
    /// root complex's.
    pub const SIGNATURE: u64 = 0xc00;
}

/// BAR 5, I/O ports.
pub mod bar5 {
    /// Ports.
    pub const SIZE: u64 = 0x10;
    /// [`Signature`](super::Signature), read-only.
    pub const SIGNATURE: u64 = 0;
    /// Four bytes without a meaning.
    pub const SCRATCH: u64 = 8;
    /// [`Control::interrupt`](super::Control::interrupt), for when memory is not decoded.
    pub const INTERRUPT: u64 = 0xc;
}

/// Which device this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct Signature {
    /// [`MAGIC`].
    pub magic: U32,
    /// [`VERSION`].
    pub version: U32,
}

impl Signature {
    /// The only one.
    pub const PROBE: Self = Self { magic: U32::new(MAGIC), version: U32::new(VERSION) };
}

/// Accesses to a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct Accesses {
    /// Reads.
    pub reads: U64,
    /// Writes.
    pub writes: U64,
}

/// The device's status. The counts start at 0 with the machine, and resets do not change them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct Report {
    /// 0x00: which device this is.
    pub signature: Signature,
    /// 0x08: the state of the DMA engine: [`dma_status`].
    pub dma_status: U32,
    /// 0x0c: reserved.
    pub reserved: U32,
    /// 0x10: transfers that succeeded.
    pub dma_completed: U64,
    /// 0x18: transfers that faulted.
    pub dma_faulted: U64,
    /// 0x20: Function Level Resets.
    pub function_level_resets: U64,
    /// 0x28: hot resets.
    pub hot_resets: U64,
    /// 0x30: resets on the way from D3hot to D0.
    pub power_management_resets: U64,
    /// 0x38: accesses logged, which is the last one's [`LogEntry::sequence`].
    pub logged: U64,
    /// 0x40 + 16 n: accesses to BAR n, this one included.
    pub accesses: [Accesses; 6],
}

/// The device's commands. All can be read back. A register marked "acts" does so when its lowest byte
/// is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Control {
    /// 0x00: acts. Raises the MSI-X vector of this number, if there is one.
    pub interrupt: U32,
    /// 0x04: acts. Bit 0 is the level of INTx.
    pub intx: U32,
    /// 0x08: bus address of the next DMA transfer.
    pub dma_address: U64,
    /// 0x10: its length in bytes, from 1 to the buffer's.
    pub dma_length: U32,
    /// 0x14: bits 7:0 are the byte to fill with.
    pub dma_fill: U32,
    /// 0x18: the MSI-X vector to raise when a transfer ends, well or not; [`NO_VECTOR`] at first.
    pub dma_vector: U32,
    /// 0x1c: acts. Starts a transfer with these registers as they are: [`dma_command`]. Does
    /// nothing while one is under way.
    pub dma_command: U32,
}

/// Not a valid vector.
pub const NO_VECTOR: u32 = u32::MAX;

impl Control {
    /// As a reset leaves it.
    pub const RESET: Self = Self {
        interrupt: U32::ZERO,
        intx: U32::ZERO,
        dma_address: U64::ZERO,
        dma_length: U32::ZERO,
        dma_fill: U32::ZERO,
        dma_vector: U32::new(NO_VECTOR),
        dma_command: U32::ZERO,
    };
}

/// Values of [`Control::dma_command`].
pub mod dma_command {
    /// From memory into the buffer.
    pub const READ: u32 = 1;
    /// From the buffer to memory.
    pub const WRITE: u32 = 2;
    /// The same byte all over memory. The buffer is left alone.
    pub const FILL: u32 = 3;
}

/// Values of [`Report::dma_status`].
pub mod dma_status {
    /// No transfer since the last reset.
    pub const IDLE: u32 = 0;
    /// A transfer is under way.
    pub const BUSY: u32 = 1;
    /// The last one succeeded.
    pub const DONE: u32 = 2;
    /// There is no such command.
    pub const FAULT_COMMAND: u32 = 0x101;
    /// The length is zero or more than the buffer's.
    pub const FAULT_LENGTH: u32 = 0x102;
    /// The function is not a bus master.
    pub const FAULT_BUS_MASTER: u32 = 0x103;
    /// The device may not access all of that memory. A part may have been transferred.
    pub const FAULT_ADDRESS: u32 = 0x104;
}

/// An access in the log, which has number [`sequence`](Self::sequence) modulo the ring's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct LogEntry {
    /// 0x00: counts from 1 on. An entry with 0 has not been used.
    pub sequence: U64,
    /// 0x08: bytes from the start of the range.
    pub offset: U64,
    /// 0x10: what was read or written, as far as it fits.
    pub value: U64,
    /// 0x18: bytes accessed.
    pub size: U32,
    /// 0x1c: number of the BAR.
    pub bar: u8,
    /// 0x1d: 0 for a read, 1 for a write.
    pub direction: u8,
    /// 0x1e: reserved.
    pub reserved: [u8; 2],
}
