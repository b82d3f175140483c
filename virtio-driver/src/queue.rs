//! A split virtqueue from the driver's side (virtio 1.3, section 2.7).

use crate::Bus;

/// Flags of a descriptor (section 2.7.5), and of the used ring (section 2.7.8).
#[allow(missing_docs)]
pub mod flags {
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;

    pub const NO_NOTIFY: u16 = 1;
}

/// One descriptor's worth of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Descriptor flags.
    pub flags: u16,
}

impl Buffer {
    /// The device reads it.
    pub const fn readable(address: u64, len: u32) -> Self {
        Self { address, len, flags: 0 }
    }

    /// The device writes to it.
    pub const fn writable(address: u64, len: u32) -> Self {
        Self { address, len, flags: flags::WRITE }
    }

    /// A table of `count` descriptors.
    pub const fn table(address: u64, count: u32) -> Self {
        Self { address, len: count * 16, flags: flags::INDIRECT }
    }

    /// The same, but another one follows it.
    pub const fn followed(self) -> Self {
        Self { flags: self.flags | flags::NEXT, ..self }
    }

    /// The same bytes in descriptors of one byte each.
    pub fn split(self) -> impl Iterator<Item = Self> {
        (0..self.len).map(move |i| Self { address: self.address + u64::from(i), len: 1, ..self })
    }
}

/// The addresses of a queue's parts.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Rings {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

impl Rings {
    /// A queue of 128 descriptors with all its parts at `base`.
    pub const fn at(base: u64) -> Self {
        let (available, used) = (base + 0x1000, base + 0x2000);
        Self { size: 128, descriptors: base, available, used }
    }
}

impl Default for Rings {
    fn default() -> Self {
        Self::at(0x1_0000)
    }
}

/// An entry of the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// First descriptor of the chain.
    pub head: u16,
    /// Bytes that the device wrote, as it reports them.
    pub len: u32,
}

/// A queue, and the driver's position in its rings.
#[derive(Debug, Clone)]
pub struct Virtqueue {
    rings: Rings,
    next_descriptor: u16,
    available_index: u16,
    used_index: u16,
}

impl Virtqueue {
    /// A new queue.
    pub const fn new(rings: Rings) -> Self {
        Self { rings, next_descriptor: 0, available_index: 0, used_index: 0 }
    }

    /// Where it is.
    pub fn rings(&self) -> Rings {
        self.rings
    }

    /// Writes one descriptor of a table; `next` has an effect if the buffer's flags have NEXT.
    pub fn write_descriptor(
        memory: &mut impl Bus,
        table: u64,
        index: u16,
        buffer: Buffer,
        next: u16,
    ) {
        let Buffer { address, len, flags } = buffer;
        let rest = u64::from(next) << 48 | u64::from(flags) << 32 | u64::from(len);
        let bytes = [address, rest].map(u64::to_le_bytes);
        memory.write(table + 16 * u64::from(index), bytes.as_flattened());
    }

    /// Chains `buffers` in the descriptors `first..` of the table at `table`.
    pub fn write_table(memory: &mut impl Bus, table: u64, first: u16, buffers: &[Buffer]) {
        for (i, buffer) in buffers.iter().enumerate() {
            let index = first + i as u16;
            let last = i + 1 == buffers.len();
            let buffer = if last { *buffer } else { buffer.followed() };
            Self::write_descriptor(memory, table, index, buffer, index.wrapping_add(1));
        }
    }

    /// Writes a chain of `buffers` into the descriptor table and returns its head. At most as many
    /// descriptors as the table has may be under way.
    pub fn write_chain(&mut self, memory: &mut impl Bus, buffers: &[Buffer]) -> u16 {
        let count = buffers.len() as u16;
        if self.next_descriptor + count > self.rings.size {
            self.next_descriptor = 0;
        }
        let head = self.next_descriptor;
        Self::write_table(memory, self.rings.descriptors, head, buffers);
        self.next_descriptor += count;
        head
    }

    /// Where the available ring has the chain that is made available as number `index`, modulo 2^16.
    pub fn available_entry(&self, index: u16) -> u64 {
        self.rings.available + 4 + 2 * u64::from(index % self.rings.size)
    }

    /// Where the used ring has the chain that is used as number `index`, modulo 2^16.
    pub fn used_entry(&self, index: u16) -> u64 {
        self.rings.used + 4 + 8 * u64::from(index % self.rings.size)
    }

    /// Makes the chain at `head` available.
    pub fn publish(&mut self, memory: &mut impl Bus, head: u16) {
        memory.write(self.available_entry(self.available_index), &head.to_le_bytes());
        self.set_available_index(memory, self.available_index.wrapping_add(1));
    }

    /// Writes the available ring's index.
    pub fn set_available_index(&mut self, memory: &mut impl Bus, index: u16) {
        self.available_index = index;
        memory.write(self.rings.available + 2, &index.to_le_bytes());
    }

    /// The guest itself has made `count` more chains available, and has seen them used.
    pub fn advance(&mut self, count: u16) {
        self.available_index = self.available_index.wrapping_add(count);
        self.used_index = self.used_index.wrapping_add(count);
    }

    /// How many chains the driver has made available, modulo 2^16.
    pub fn available_index(&self) -> u16 {
        self.available_index
    }

    /// Whether the driver has seen all chains used that it made available.
    pub fn is_idle(&self) -> bool {
        self.available_index == self.used_index
    }

    /// The next used entry, if there is another.
    pub fn next_used(&mut self, memory: &mut impl Bus) -> Option<Used> {
        let mut end = [0; 2];
        memory.read(self.rings.used + 2, &mut end);
        if self.used_index == u16::from_le_bytes(end) {
            return None;
        }
        let mut entry = [0; 8];
        memory.read(self.used_entry(self.used_index), &mut entry);
        self.used_index = self.used_index.wrapping_add(1);
        let entry = u64::from_le_bytes(entry);
        let head = (entry as u32).try_into().expect("the head of a chain has 16 bits");
        Some(Used { head, len: (entry >> 32) as u32 })
    }
}
