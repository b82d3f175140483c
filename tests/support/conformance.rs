//! What can be tested of a virtio-mem device without Linux: each row of `docs/virtio-mem.md` that a
//! bare-metal driver can observe, as questions with the answers that the specification wants.

use std::fmt::Debug;
use std::ops::Range;
use std::time::Duration;

use bare_metal::Program;
use bare_metal::virtio_mem::{
    Answer, Completion, Driver, NO_ANSWER, PLUG, QUEUE_SIZE, REQUEST, RESPONSE, STATE, State,
    UNPLUG, UNPLUG_ALL, answer, chain, write_descriptor, write_request,
};
use virtio_driver::{Buffer, Register, Registers};

use super::{GIB, MIB};

/// Bytes of the region.
pub const REGION: u64 = GIB;
/// Bytes requested when a row begins.
pub const REQUESTED: u64 = 64 * MIB;
/// How long a device may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A device, and a function that changes its requested size.
pub struct Device {
    pub program: Program,
    pub registers: Registers,
    pub request: Box<dyn FnMut(u64)>,
}

/// A question, the answer that the specification wants, and the device's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub row: &'static str,
    pub question: &'static str,
    pub wanted: String,
    pub got: String,
}

/// A row's id, and its questions.
type Row = (&'static str, fn(&mut Interview));

/// Asks everything.
pub fn interview(device: Device) -> Vec<Answered> {
    const ROWS: &[Row] = &[
        ("C1", |s| {
            let size = s.config(BLOCK_SIZE);
            s.ask("block_size", 2 * MIB, size);
        }),
        ("C2", |s| {
            let fields = [ADDRESS, REGION_SIZE, USABLE_SIZE, PLUGGED_SIZE, REQUESTED_SIZE];
            let rests = fields.map(|field| s.config(field) % s.driver.block_size);
            s.ask("sizes and address modulo block_size", [0; 5], rests);
        }),
        ("C4", |s| {
            s.plug(0, 3);
            s.unplug(1, 1);
            let plugged = s.config(PLUGGED_SIZE);
            s.ask("plugged_size with 2 blocks plugged", 2 * s.driver.block_size, plugged);
        }),
        ("C6", |s| {
            let before = s.config(USABLE_SIZE);
            s.request(0);
            let after = s.config(USABLE_SIZE);
            s.ask("usable_region_size when less is requested", before, after);
        }),
        ("C7", |s| {
            // Some devices change the generation only after the configuration was read.
            s.config(REQUESTED_SIZE);
            let generation = s.generation();
            s.interrupt_status();
            s.request(2 * REQUESTED);
            let changed = s.generation() != generation;
            s.ask("a new generation when more is requested", true, changed);
            let interrupt = s.interrupt_status() & CONFIGURATION_CHANGED;
            s.ask("an interrupt when more is requested", CONFIGURATION_CHANGED, interrupt);
            let requested = s.config(REQUESTED_SIZE);
            s.ask("requested_size", 2 * REQUESTED, requested);
        }),
        ("C8", |s| {
            s.config(REQUESTED_SIZE);
            let generation = s.generation();
            s.interrupt_status();
            s.plug(0, 1);
            let changed = s.generation() != generation;
            s.ask("a new generation when blocks are plugged", false, changed);
            let interrupt = s.interrupt_status() & CONFIGURATION_CHANGED;
            s.ask("an interrupt when blocks are plugged", 0, interrupt);
        }),
        ("C9", |s| {
            let whole = s.config_bytes(8);
            for (width, question) in [(4, "read by 4 bytes"), (2, "by 2"), (1, "by 1")] {
                let bytes = s.config_bytes(width);
                s.ask(question, &whole, &bytes);
            }
            let past = s.config(CONFIG_SIZE);
            s.ask("past the end", 0, past);
            s.device.program.write(8, s.driver.registers.config() + REQUESTED_SIZE, u64::MAX);
            let requested = s.config(REQUESTED_SIZE);
            s.ask("requested_size after the driver wrote to it", REQUESTED, requested);
        }),
        ("C11", |s| {
            let usable = s.config(USABLE_SIZE);
            s.ask("usable_region_size", REQUESTED + 256 * MIB, usable);
        }),
        ("I2", |s| {
            s.plug(0, 2);
            let marked = s.driver.block(1);
            s.device.program.write(8, marked, 0x1234);
            s.reset();
            let state = s.driver.state(&mut s.device.program, 0, 2);
            s.ask("blocks after a device reset", State::Plugged, state);
            let contents = s.device.program.read(8, marked);
            s.ask("their contents", 0x1234, contents);
        }),
        ("I4", |s| {
            let registers = s.device.registers;
            let driver = Driver::start_on(&mut s.device.program, registers, false);
            s.ask("FEATURES_OK without UNPLUGGED_INACCESSIBLE", true, driver.is_some());
        }),
        ("P1", |s| s.ask_unaligned(PLUG)),
        ("P2", |s| s.ask_no_blocks(PLUG)),
        ("P3", |s| {
            s.ask_beyond(PLUG);
            let below = |s: &mut Interview| s.driver.address - 2 * MIB;
            s.ask_request("below the region", PLUG, below, 1, Answer::Error);
        }),
        ("P4", |s| s.ask_wrapping(PLUG)),
        ("P5", |s| {
            s.plug(1, 1);
            s.ask_request("the last is plugged", PLUG, |s| s.driver.block(0), 2, Answer::Error);
            let state = s.driver.state(&mut s.device.program, 0, 1);
            s.ask("and the first stays as it was", State::Unplugged, state);
        }),
        ("P6", |s| {
            let blocks = (REQUESTED / s.driver.block_size) as u16;
            s.ask_request(
                "more than requested",
                PLUG,
                |s| s.driver.block(0),
                blocks + 1,
                Answer::Nack,
            );
            s.ask_request("as much", PLUG, |s| s.driver.block(0), blocks, Answer::Ack);
        }),
        ("P8", |s| {
            s.plug(0, 2);
            let (first, last) = (s.driver.block(0), s.driver.block(2) - 8);
            let zeros = [first, last].map(|address| s.device.program.read(8, address));
            s.ask("plugged memory", [0, 0], zeros);
            for (width, value) in [(1, 0x11), (2, 0x2222), (4, 0x4444_4444), (8, 0x8888_8888)] {
                s.device.program.write(width, last - 8, value);
                let read = s.device.program.read(width, last - 8);
                s.ask("what was written to it", value, read);
            }
        }),
        ("P9", |s| {
            let address = s.driver.block(0);
            write_request(&mut s.device.program, REQUEST, PLUG | 0xabab_abab_abab_0000, address, 1);
            s.device.program.write(8, REQUEST + 16, 0xcdcd_cdcd_cdcd_0001);
            s.device.program.write(8, REQUEST + 24, u64::MAX);
            s.offer(
                "padding and more bytes",
                &[Buffer::readable(REQUEST, 32), Buffer::writable(RESPONSE, 10)],
                USED_10,
            );
            s.ask_response("their answer", Answer::Ack);
        }),
        ("U1", |s| s.ask_unaligned(UNPLUG)),
        ("U2", |s| s.ask_no_blocks(UNPLUG)),
        ("U3", |s| s.ask_beyond(UNPLUG)),
        ("U4", |s| s.ask_wrapping(UNPLUG)),
        ("U5", |s| {
            s.plug(0, 1);
            s.ask_request("the last is unplugged", UNPLUG, |s| s.driver.block(0), 2, Answer::Error);
            let state = s.driver.state(&mut s.device.program, 0, 1);
            s.ask("and the first stays as it was", State::Plugged, state);
        }),
        ("U8", |s| {
            s.plug(0, 8);
            s.ask_hole("out of the middle", 8, 3..5);
        }),
        ("U9", |s| {
            for first in [0, 4, 8] {
                s.plug(first, 4);
            }
            s.ask_hole("across three PLUGs", 12, 2..10);
        }),
        ("U10", |s| {
            s.plug(0, 4);
            s.ask_request(
                "less plugged than requested",
                UNPLUG,
                |s| s.driver.block(0),
                1,
                Answer::Ack,
            );
        }),
        ("A1", |s| {
            s.plug(0, 4);
            s.ask_request("UNPLUG_ALL", UNPLUG_ALL, |_| 0, 0, Answer::Ack);
            let plugged = s.config(PLUGGED_SIZE);
            s.ask("plugged_size", 0, plugged);
        }),
        ("A2", |s| s.ask_request("UNPLUG_ALL, nothing plugged", UNPLUG_ALL, |_| 0, 0, Answer::Ack)),
        ("A3", |s| {
            s.ask_request("UNPLUG_ALL with arguments", UNPLUG_ALL, |_| 0x1234_5678, 9, Answer::Ack)
        }),
        ("A4", |s| {
            s.request(0);
            s.ask_request("UNPLUG_ALL, nothing requested", UNPLUG_ALL, |_| 0, 0, Answer::Ack);
            let usable = s.config(USABLE_SIZE);
            s.ask("usable_region_size after it", 256 * MIB, usable);
        }),
        ("S1", |s| s.ask_unaligned(STATE)),
        ("S2", |s| s.ask_no_blocks(STATE)),
        ("S3", |s| s.ask_beyond(STATE)),
        ("S4", |s| s.ask_wrapping(STATE)),
        ("S5", |s| {
            s.plug(0, 2);
            s.ask_state("all plugged", 0, 2, State::Plugged);
        }),
        ("S6", |s| {
            s.plug(0, 1);
            s.ask_state("all unplugged", 1, 2, State::Unplugged);
        }),
        ("S7", |s| {
            s.plug(0, 1);
            s.ask_state("some of each", 0, 2, State::Mixed);
        }),
        ("X2", |s| {
            s.plug(1, 1);
            let unplugged = s.driver.block(0);
            let read = s.device.program.read(8, unplugged);
            s.ask("read of an unplugged block", u64::MAX, read);
            s.device.program.write(8, unplugged, 0x1234);
            let read = s.device.program.read(8, unplugged);
            s.ask("and after a write to it", u64::MAX, read);
            let outside = s.driver.address + REGION - 8;
            let read = s.device.program.read(8, outside);
            s.ask("read outside the usable region", u64::MAX, read);
        }),
        ("X4", |s| {
            s.plug(0, 1);
            let block = s.driver.block(0);
            s.device.program.write(8, block, 0x1234);
            s.unplug(0, 1);
            s.plug(0, 1);
            let read = s.device.program.read(8, block);
            s.ask("memory that is plugged again", 0, read);
        }),
        ("Q1", |s| {
            let plug = |s: &mut Interview| {
                let address = s.driver.block(0);
                write_request(&mut s.device.program, REQUEST, PLUG, address, 1);
            };
            plug(s);
            s.offer("no room for an answer", &[Buffer::readable(REQUEST, 24)], Completion::Used(0));
            s.reset();
            s.offer(
                "too little room",
                &[Buffer::readable(REQUEST, 24), Buffer::writable(RESPONSE, 9)],
                Completion::Used(0),
            );
            s.reset();
            s.ask_state("and nothing was done", 0, 1, State::Unplugged);
            s.offer("no request", &[Buffer::writable(RESPONSE, 10)], USED_10);
            s.ask_response("its answer", Answer::Error);
            s.reset();
            s.offer(
                "half a request",
                &[Buffer::readable(REQUEST, 12), Buffer::writable(RESPONSE, 10)],
                USED_10,
            );
            s.ask_response("its answer", Answer::Error);
            s.reset();
            plug(s);
            let pieces = [
                Buffer::readable(REQUEST, 3),
                Buffer::readable(REQUEST + 3, 21),
                Buffer::writable(RESPONSE, 4),
                Buffer::writable(RESPONSE + 4, 6),
            ];
            s.offer("a request in pieces", &pieces, USED_10);
            s.ask_response("its answer", Answer::Ack);
            let nowhere = 0x6000_0000;
            s.offer(
                "a request that is nowhere",
                &[Buffer::readable(nowhere, 24), Buffer::writable(RESPONSE, 10)],
                USED_10,
            );
            s.ask_response("its answer", Answer::Error);
            s.reset();
            s.offer(
                "an answer that goes nowhere",
                &[Buffer::readable(REQUEST, 24), Buffer::writable(nowhere, 10)],
                Completion::Used(0),
            );
            s.reset();
            // A descriptor whose next one is itself.
            let endless = Buffer::readable(REQUEST, 24).followed();
            write_descriptor(&mut s.device.program, 0, endless, 0);
            s.driver.make_available(&mut s.device.program, 0);
            s.driver.kick(&mut s.device.program);
            let outcome = s.driver.completion(&mut s.device.program, TIMEOUT);
            s.ask("a chain without an end", true, outcome != Completion::Nothing);
            s.reset();
            s.driver.make_available(&mut s.device.program, QUEUE_SIZE);
            s.driver.kick(&mut s.device.program);
            let outcome = s.driver.completion(&mut s.device.program, TIMEOUT);
            s.ask("a descriptor beyond the queue", Completion::NeedsReset, outcome);
        }),
        ("Q2", |s| s.ask_request("an unknown type", 4, |s| s.driver.block(0), 1, Answer::Error)),
        ("Q3", |s| {
            let place = |n: u16| u64::from(n) * 32;
            for n in 0..8 {
                let request = REQUEST + 0x100 + place(n);
                let [read, written] = chain(request, RESPONSE + 0x100 + place(n));
                let address = s.driver.block(n.into());
                write_request(&mut s.device.program, request, PLUG, address, 1);
                write_descriptor(&mut s.device.program, 2 * n, read.followed(), 2 * n + 1);
                write_descriptor(&mut s.device.program, 2 * n + 1, written, 0);
                s.driver.make_available(&mut s.device.program, 2 * n);
            }
            s.driver.kick(&mut s.device.program);
            let outcome = s.driver.completion(&mut s.device.program, TIMEOUT);
            s.ask("the last of eight in a kick", USED_10, outcome);
            let acknowledged = (0..8)
                .filter(|n| {
                    answer(&mut s.device.program, RESPONSE + 0x100 + place(*n)) == Answer::Ack
                })
                .count();
            s.ask("how many of them are acknowledged", 8, acknowledged);
            s.driver.kick(&mut s.device.program);
            s.ask_state("after a kick with nothing in it", 0, 8, State::Plugged);
        }),
    ];
    let mut interview = Interview::new(device);
    for (row, ask) in ROWS {
        interview.begin(row);
        ask(&mut interview);
    }
    interview.answered
}

// Offsets in the configuration.
const BLOCK_SIZE: u64 = 0;
const ADDRESS: u64 = 16;
const REGION_SIZE: u64 = 24;
const USABLE_SIZE: u64 = 32;
const PLUGGED_SIZE: u64 = 40;
const REQUESTED_SIZE: u64 = 48;
const CONFIG_SIZE: u64 = 56;

/// A bit of the interrupt status.
const CONFIGURATION_CHANGED: u64 = 2;
/// A response was written.
const USED_10: Completion = Completion::Used(10);

struct Interview {
    device: Device,
    driver: Driver,
    row: &'static str,
    answered: Vec<Answered>,
}

impl Interview {
    fn new(mut device: Device) -> Self {
        let driver = Driver::start_on(&mut device.program, device.registers, true)
            .expect("the device takes UNPLUGGED_INACCESSIBLE");
        Self { device, driver, row: "", answered: Vec::new() }
    }

    /// Brings the device into the state in which a row begins: nothing plugged, and [`REQUESTED`] requested.
    fn begin(&mut self, row: &'static str) {
        self.row = row;
        self.reset();
        self.request(REQUESTED);
        assert_eq!(self.driver.unplug_all(&mut self.device.program), Answer::Ack);
    }

    fn reset(&mut self) {
        self.driver = Driver::start_on(&mut self.device.program, self.device.registers, true)
            .expect("the device takes UNPLUGGED_INACCESSIBLE");
    }

    fn ask<T: Debug>(&mut self, question: &'static str, wanted: T, got: T) {
        self.record(question, format!("{wanted:x?}"), format!("{got:x?}"));
    }

    fn record(&mut self, question: &'static str, wanted: String, got: String) {
        self.answered.push(Answered { row: self.row, question, wanted, got });
    }

    fn ask_request(
        &mut self,
        question: &'static str,
        kind: u64,
        address: impl FnOnce(&mut Self) -> u64,
        count: u16,
        wanted: Answer,
    ) {
        let address = address(self);
        write_request(&mut self.device.program, REQUEST, kind, address, count);
        let chain = chain(REQUEST, RESPONSE);
        match self.driver.offer(&mut self.device.program, &chain, TIMEOUT) {
            Completion::Used(_) => self.ask_response(question, wanted),
            outcome => {
                self.record(question, format!("{wanted:?}"), format!("{outcome:?}"));
                self.reset();
            }
        }
    }

    fn ask_unaligned(&mut self, kind: u64) {
        self.ask_request("unaligned", kind, |s| s.driver.block(0) + 4096, 1, Answer::Error);
    }

    fn ask_no_blocks(&mut self, kind: u64) {
        self.ask_request("no blocks", kind, |s| s.driver.block(0), 0, Answer::Error);
    }

    fn ask_beyond(&mut self, kind: u64) {
        let end = |s: &mut Self| s.driver.address + s.config(USABLE_SIZE);
        self.ask_request("beyond usable_region_size", kind, end, 1, Answer::Error);
    }

    /// Two blocks of which the second would be the first of all memory.
    fn ask_wrapping(&mut self, kind: u64) {
        let last = 0_u64.wrapping_sub(2 * MIB);
        self.ask_request("wraps around", kind, |_| last, 2, Answer::Error);
    }

    /// Unplugs `hole` of the first `plugged` blocks, and looks at its neighbours.
    fn ask_hole(&mut self, question: &'static str, plugged: u64, hole: Range<u64>) {
        let (start, size) = (self.driver.block(0), self.driver.block_size);
        self.device.program.fill(start, plugged * size);
        let count = (hole.end - hole.start) as u16;
        self.ask_request(question, UNPLUG, |s| s.driver.block(hole.start), count, Answer::Ack);
        let wrong = [0..hole.start, hole.end..plugged].map(|blocks| {
            let (first, count) = (blocks.start, blocks.end - blocks.start);
            self.device.program.verify(start + first * size, count * size)
        });
        self.ask("wrong marks in its neighbours", [0, 0], wrong);
    }

    fn ask_state(&mut self, question: &'static str, first: u64, count: u16, wanted: State) {
        let state = self.driver.state(&mut self.device.program, first, count);
        self.ask(question, wanted, state);
    }

    /// Offers a chain, after clearing the response so that an answer is this chain's.
    fn offer(&mut self, question: &'static str, chain: &[Buffer], wanted: Completion) {
        self.device.program.write(2, RESPONSE, NO_ANSWER);
        let outcome = self.driver.offer(&mut self.device.program, chain, TIMEOUT);
        self.ask(question, wanted, outcome);
    }

    fn ask_response(&mut self, question: &'static str, wanted: Answer) {
        let got = match self.device.program.read(2, RESPONSE) {
            NO_ANSWER => "none".to_owned(),
            _ => format!("{:?}", answer(&mut self.device.program, RESPONSE)),
        };
        self.record(question, format!("{wanted:?}"), got);
    }

    fn plug(&mut self, first: u64, count: u16) {
        assert_eq!(self.driver.plug(&mut self.device.program, first, count), Answer::Ack);
    }

    fn unplug(&mut self, first: u64, count: u16) {
        assert_eq!(self.driver.unplug(&mut self.device.program, first, count), Answer::Ack);
    }

    fn request(&mut self, bytes: u64) {
        (self.device.request)(bytes);
    }

    fn config(&mut self, offset: u64) -> u64 {
        self.device.program.read(8, self.driver.registers.config() + offset)
    }

    fn config_bytes(&mut self, width: u8) -> Vec<u8> {
        let base = self.driver.registers.config();
        let mut bytes = Vec::new();
        for offset in (0..CONFIG_SIZE).step_by(width.into()) {
            let value = self.device.program.read(width, base + offset).to_le_bytes();
            bytes.extend_from_slice(&value[..width.into()]);
        }
        bytes
    }

    fn generation(&mut self) -> u64 {
        self.driver.registers.read(&mut self.device.program, Register::ConfigGeneration)
    }

    /// Reads the interrupt status, and clears it.
    fn interrupt_status(&mut self) -> u64 {
        self.driver.take_interrupt_status(&mut self.device.program).into()
    }
}
