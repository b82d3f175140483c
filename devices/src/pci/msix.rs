//! MSI-X: the table of messages and the bits of those that are pending (PCI Express Base 6.0, sections
//! 6.1.4 and 7.7.2).

use std::ops::Range;
use std::sync::{Arc, Mutex};

use bitflags::bitflags;

use super::{BarIndex, Message, MessageSink};
use crate::lock;

bitflags! {
    /// Message Control register (section 7.7.2.2), less the table's size.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub(super) struct MessageControl: u16 {
        const FUNCTION_MASK = 1 << 14;
        const ENABLE = 1 << 15;
    }
}

/// Where a function's MSI-X structures are: both in one memory BAR, the rest of which belongs to the
/// device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixLayout {
    /// The BAR.
    pub bar: BarIndex,
    /// Entries of the table, 1 to 2048.
    pub vectors: u16,
    /// Where the table starts in the BAR, a multiple of 8.
    pub table: u32,
    /// Where the Pending Bit Array starts in the BAR, a multiple of 8.
    pub pending: u32,
}

impl MsixLayout {
    const MAX_VECTORS: u16 = 2048;

    /// The table's part of the BAR.
    pub fn table_range(&self) -> Range<u64> {
        let start = u64::from(self.table);
        start..start + u64::from(self.vectors) * Entry::SIZE as u64
    }

    /// The Pending Bit Array's part of the BAR.
    pub fn pending_range(&self) -> Range<u64> {
        let start = u64::from(self.pending);
        start..start + u64::from(self.vectors.div_ceil(64)) * 8
    }

    /// Whether both structures are valid in a BAR of `size` bytes.
    pub(super) fn fits(&self, size: u64) -> bool {
        let (table, pending) = (self.table_range(), self.pending_range());
        (1..=Self::MAX_VECTORS).contains(&self.vectors)
            && [self.table, self.pending].iter().all(|offset| offset.is_multiple_of(8))
            && [&table, &pending].iter().all(|range| range.end <= size)
            && (table.end <= pending.start || pending.end <= table.start)
    }
}

/// A table entry's bytes (sections 7.7.2.5 to 7.7.2.8).
#[derive(Clone, Copy)]
struct Entry([u8; Self::SIZE]);

impl Entry {
    const SIZE: usize = 16;
    const VECTOR_CONTROL: usize = 12;
    const MASK: u8 = 1;
    const INITIAL: Self = {
        let mut bytes = [0; Self::SIZE];
        bytes[Self::VECTOR_CONTROL] = Self::MASK;
        Self(bytes)
    };

    fn is_masked(&self) -> bool {
        self.0[Self::VECTOR_CONTROL] & Self::MASK != 0
    }

    fn write(&mut self, offset: usize, byte: u8) {
        self.0[offset] = match offset {
            Self::VECTOR_CONTROL => byte & Self::MASK,
            offset if offset > Self::VECTOR_CONTROL => 0,
            _ => byte,
        };
    }

    fn message(&self) -> Message {
        let [a, b, c, d, e, f, g, h, data @ ..] = self.0;
        let [i, j, k, l, ..] = data;
        Message {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            data: u32::from_le_bytes([i, j, k, l]),
        }
    }
}

/// A function's message-signalled interrupts, shared by its registers and its device model.
pub struct Msix {
    sink: Arc<dyn MessageSink>,
    state: Mutex<State>,
}

struct State {
    control: MessageControl,
    bus_master: bool,
    table: Vec<Entry>,
    /// The Pending Bit Array as the guest reads it.
    pending: Vec<u8>,
}

impl State {
    fn is_open(&self) -> bool {
        self.control == MessageControl::ENABLE && self.bus_master
    }

    /// Sends the pending messages of `vectors` that are not masked, if MSI-X is enabled and the
    /// function is a bus master.
    fn deliver(&mut self, vectors: Range<usize>, sink: &dyn MessageSink) {
        if !self.is_open() {
            return;
        }
        for vector in vectors {
            let (byte, bit) = (vector / 8, 1 << (vector % 8));
            if self.pending[byte] & bit != 0 && !self.table[vector].is_masked() {
                self.pending[byte] &= !bit;
                sink.send(self.table[vector].message());
            }
        }
    }
}

impl Msix {
    pub(super) fn new(layout: &MsixLayout, sink: Arc<dyn MessageSink>) -> Self {
        let pending = layout.pending_range();
        let state = Mutex::new(State {
            control: MessageControl::empty(),
            bus_master: false,
            table: vec![Entry::INITIAL; layout.vectors.into()],
            pending: vec![0; (pending.end - pending.start) as usize],
        });
        Self { sink, state }
    }

    /// Sends `vector`'s message, at once or when the vector is unmasked, MSI-X enabled and the
    /// function a bus master. A vector that does not exist sends nothing.
    pub fn raise(&self, vector: u16) {
        let vector = usize::from(vector);
        let mut state = lock(&self.state);
        if vector < state.table.len() {
            state.pending[vector / 8] |= 1 << (vector % 8);
            state.deliver(vector..vector + 1, &*self.sink);
        }
    }

    /// Whether the driver uses MSI-X, so that INTx is not asserted.
    pub fn is_enabled(&self) -> bool {
        lock(&self.state).control.contains(MessageControl::ENABLE)
    }

    /// The number of vectors.
    pub fn vectors(&self) -> u16 {
        // At most 2048, as the layout requires.
        lock(&self.state).table.len() as u16
    }

    pub(super) fn set_control(&self, control: MessageControl, bus_master: bool) {
        let mut state = lock(&self.state);
        let was_open = state.is_open();
        state.control = control;
        state.bus_master = bus_master;
        if !was_open {
            let vectors = 0..state.table.len();
            state.deliver(vectors, &*self.sink);
        }
    }

    /// Resets the table and the pending bits. The function resets the registers.
    pub(super) fn reset(&self) {
        let mut state = lock(&self.state);
        state.table.fill(Entry::INITIAL);
        state.pending.fill(0);
    }

    pub(super) fn read_table(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        for (offset, byte) in (offset as usize..).zip(data) {
            *byte = state.table.get(offset / Entry::SIZE).map_or(0, |e| e.0[offset % Entry::SIZE]);
        }
    }

    pub(super) fn write_table(&self, offset: u64, data: &[u8]) {
        let mut state = lock(&self.state);
        let start = offset as usize;
        for (offset, &byte) in (start..).zip(data) {
            if let Some(entry) = state.table.get_mut(offset / Entry::SIZE) {
                entry.write(offset % Entry::SIZE, byte);
            }
        }
        let end = (start + data.len()).div_ceil(Entry::SIZE).min(state.table.len());
        state.deliver(start / Entry::SIZE..end, &*self.sink);
    }

    pub(super) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        for (offset, byte) in (offset as usize..).zip(data) {
            *byte = state.pending.get(offset).copied().unwrap_or(0);
        }
    }
}
