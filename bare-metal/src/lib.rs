//! A bare-metal guest, `program.s`: an ELF file that boots by PVH, and the host's end of its mailbox.
//!
//! The guest's commands are written to its RAM, which has to be in a file that is shared with its VMM;
//! a byte on its second serial port starts them. It is for tests and benchmarks, so all failures are
//! panics.

pub mod virtio_mem;

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::{fs::FileExt, net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

std::arch::global_asm!(
    ".pushsection .rodata",
    include_str!("program.s"),
    ".code64",
    ".popsection",
    options(att_syntax)
);

unsafe extern "C" {
    static moat_program_start: u8;
    static moat_program_end: u8;
}

const LOAD_ADDRESS: u64 = 0x20_0000;

/// The timeout for a guest's commands. In an emulated host on a busy machine one was seen to take more than a minute.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Where the control blocks of the hammering processors lie.
const CONTROL: u64 = 0x40_0000;

fn code() -> &'static [u8] {
    let start = &raw const moat_program_start;
    let length = (&raw const moat_program_end).addr() - start.addr();
    // SAFETY: both symbols are labels in one section that is never written, the second after the
    // first, so everything between them is initialised and lives as long as the program.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// Writes the program to `path` as an ELF executable with a PVH entry point.
pub fn write_elf(path: &Path) {
    const NOTE_OFFSET: u64 = 0x100;
    const CODE_OFFSET: u64 = 0x1000;
    let code = code();
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // e_type EXEC, e_machine x86-64, e_version.
    elf.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    elf.extend(1_u32.to_le_bytes());
    // e_entry, e_phoff, e_shoff.
    elf.extend([LOAD_ADDRESS, 64, 0].map(u64::to_le_bytes).concat());
    elf.extend(0_u32.to_le_bytes());
    // e_ehsize, e_phentsize, e_phnum, and no sections.
    elf.extend([64_u16, 56, 2, 64, 0, 0].map(u16::to_le_bytes).concat());
    let mut header = |kind: u32, flags: u32, offset: u64, address: u64, size: u64| {
        elf.extend([kind, flags].map(u32::to_le_bytes).concat());
        elf.extend([offset, address, address, size, size, 4].map(u64::to_le_bytes).concat());
    };
    header(1, 7, CODE_OFFSET, LOAD_ADDRESS, code.len() as u64);
    header(4, 4, NOTE_OFFSET, 0, 20);
    elf.resize(NOTE_OFFSET as usize, 0);
    // XEN_ELFNOTE_PHYS32_ENTRY: name size, descriptor size, type, name, entry.
    elf.extend([4_u32, 4, 18].map(u32::to_le_bytes).concat());
    elf.extend(b"Xen\0");
    elf.extend((LOAD_ADDRESS as u32).to_le_bytes());
    elf.resize(CODE_OFFSET as usize, 0);
    elf.extend(code);
    fs::write(path, elf).expect("the program's file can be written");
}

/// The address of the mailbox: the number of commands, and 8 bytes further the first one.
const MAILBOX: u64 = 0x60_0000;
/// The most commands in the mailbox at once.
const MAILBOX_COMMANDS: usize = 4096;

/// The bytes that the guest sends: when it has started, and when it has carried out all commands.
const READY: u8 = b'R';
const DONE: u8 = b'D';

/// The operation of a command, as numbered in `program.s`.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(u8)]
enum Operation {
    Read,
    Write,
    Fill,
    Verify,
    Out,
    Copy,
    StoreString,
    Call,
    AddVector,
    StoreVector,
    DriveQueue,
    ReadTsc,
}

/// A command in the mailbox. The guest writes the result over the value.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Command {
    operation: Operation,
    width: u8,
    padding: [u8; 6],
    address: u64,
    value: u64,
}

impl Command {
    fn new(operation: Operation, width: u8, address: u64, value: u64) -> Self {
        Self { operation, width, padding: [0; 6], address, value }
    }
}

/// The host's end of a running program.
pub struct Program {
    stream: UnixStream,
    ram: File,
    /// Posted commands, which are sent with the next one.
    posted: Vec<Command>,
}

/// The counters of a hammering processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hammered {
    /// How often it has been through its range.
    pub rounds: u64,
    /// How often it read a value that it had not written.
    pub errors: u64,
}

/// An exception on the boot processor. The machine-check registers are valid only for #MC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// 6 for #UD, 18 for #MC.
    pub vector: u64,
    /// Address of the instruction that caused it.
    pub instruction_pointer: u64,
    /// IA32_MCG_STATUS.
    pub mcg_status: u64,
    /// STATUS and ADDR.
    pub banks: [(u64, u64); 2],
}

/// A virtqueue with chains whose heads are in the available ring already.
#[derive(Debug, Clone, Copy)]
pub struct Queue {
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// Where the device is notified.
    pub notify: u64,
    /// Bytes that are written there: 2 or 4.
    pub notify_width: u8,
    /// What is written there: the queue's number.
    pub number: u16,
}

impl Program {
    /// The destination of [`Self::copy`].
    pub const COPY: u64 = 0x52_0000;

    /// Waits for the program at the other end of `stream`, with its RAM in the file `ram`, to be ready.
    pub fn connect(mut stream: UnixStream, ram: &Path) -> Self {
        stream.set_read_timeout(Some(TIMEOUT)).expect("a minute is a valid timeout");
        assert_eq!(listen(&mut stream), READY);
        let mut options = OpenOptions::new();
        let ram = options.read(true).write(true).open(ram).expect("the machine's RAM is a file");
        Self { stream, ram, posted: Vec::new() }
    }

    /// Has the guest start all posted commands. Returns their number.
    fn begin(&mut self) -> usize {
        let commands = std::mem::take(&mut self.posted);
        self.write_ram(MAILBOX, &(commands.len() as u64).to_le_bytes());
        self.write_ram(MAILBOX + 8, commands.as_bytes());
        self.stream.write_all(&[0]).expect("the guest's second serial port is connected");
        commands.len()
    }

    /// Has the guest carry out all posted commands. Returns the result of each.
    fn run(&mut self) -> Vec<u64> {
        let mut answered = vec![Answered::new_zeroed(); self.begin()];
        assert_eq!(listen(&mut self.stream), DONE);
        self.read_ram(MAILBOX + 8, answered.as_mut_bytes());
        answered.into_iter().map(|command| command.result).collect()
    }

    /// Has the guest carry out a command, after all posted ones.
    fn command(&mut self, operation: Operation, width: u8, address: u64, value: u64) -> u64 {
        let [result] = self.commands([Command::new(operation, width, address, value)]);
        result
    }

    fn commands<const N: usize>(&mut self, commands: [Command; N]) -> [u64; N] {
        self.posted.extend(commands);
        let results = self.run();
        *results.last_chunk().expect("each command has a result")
    }

    /// Posts a write of `width` bytes: it is sent with the next command, without waiting for an answer,
    /// which makes many writes much faster.
    pub fn post(&mut self, width: u8, address: u64, value: u64) {
        // Keeps room for a command that is not posted.
        if self.posted.len() == MAILBOX_COMMANDS / 2 {
            self.run();
        }
        self.posted.push(Command::new(Operation::Write, width, address, value));
    }

    /// Reads `width` bytes.
    pub fn read(&mut self, width: u8, address: u64) -> u64 {
        self.command(Operation::Read, width, address, 0)
    }

    /// Reads several places, (width, address) each, one after the other.
    pub fn read_each<const N: usize>(&mut self, places: [(u8, u64); N]) -> [u64; N] {
        const { assert!(N <= MAILBOX_COMMANDS / 2) };
        self.commands(
            places.map(|(width, address)| Command::new(Operation::Read, width, address, 0)),
        )
    }

    /// Writes `width` bytes.
    pub fn write(&mut self, width: u8, address: u64, value: u64) {
        self.command(Operation::Write, width, address, value);
    }

    /// Reads RAM without the guest.
    pub fn read_ram(&self, address: u64, bytes: &mut [u8]) {
        self.ram.read_exact_at(bytes, address).expect("the guest's RAM can be read");
    }

    /// Writes RAM without the guest.
    pub fn write_ram(&self, address: u64, bytes: &[u8]) {
        self.ram.write_all_at(bytes, address).expect("the guest's RAM can be written");
    }

    /// Reads the boot processor's time-stamp counter.
    pub fn read_tsc(&mut self) -> u64 {
        self.command(Operation::ReadTsc, 8, 0, 0)
    }

    /// Marks every 512th byte of a range with its address.
    pub fn fill(&mut self, address: u64, size: u64) {
        self.command(Operation::Fill, 0, address, size);
    }

    /// How many marks of a range differ from what [`Self::fill`] wrote.
    pub fn verify(&mut self, address: u64, size: u64) -> u64 {
        self.command(Operation::Verify, 0, address, size)
    }

    /// Copies 8-byte words by `rep movsq` to [`Self::COPY`].
    pub fn copy(&mut self, address: u64, quads: u64) {
        self.command(Operation::Copy, 8, address, quads);
    }

    /// Fills 8-byte words with the address of the first, by `rep stosq`.
    pub fn store_string(&mut self, address: u64, quads: u64) {
        self.command(Operation::StoreString, 8, address, quads);
    }

    /// Calls the code at `address`.
    pub fn call(&mut self, address: u64) {
        self.command(Operation::Call, 8, address, 0);
    }

    /// Reads 16 bytes by `paddq`, which KVM cannot emulate. Returns the first 8 of them.
    pub fn add_vector(&mut self, address: u64) -> u64 {
        self.command(Operation::AddVector, 16, address, 0)
    }

    /// Writes 8 bytes by `movlps`, which KVM cannot emulate.
    pub fn store_vector(&mut self, address: u64) {
        self.command(Operation::StoreVector, 8, address, 0);
    }

    /// Makes the next `count` chains of a queue available, one by one: notifies the device of each, and
    /// waits until it is used. Returns how many were.
    pub fn drive_queue(&mut self, queue: &Queue, count: u16) -> u64 {
        const PARAMETERS: u64 = 0x53_0000;
        let Queue { available, used, notify, notify_width, number } = *queue;
        self.write_ram(PARAMETERS, [available, used, notify, number.into()].as_bytes());
        self.command(Operation::DriveQueue, notify_width, PARAMETERS, count.into())
    }

    /// The exception that ended the last command, if one did.
    pub fn take_exception(&mut self) -> Option<Exception> {
        const EXCEPTION: u64 = 0x3f_e000;
        let words = self.read_each::<7>(std::array::from_fn(|n| (8, EXCEPTION + n as u64 * 8)));
        let [vector, instruction_pointer, mcg_status, status0, address0, status1, address1] = words;
        self.post(8, EXCEPTION, 0);
        (vector != 0).then_some(Exception {
            vector,
            instruction_pointer,
            mcg_status,
            banks: [(status0, address0), (status1, address1)],
        })
    }

    /// Writes `text` to the first serial port.
    pub fn print(&mut self, text: &[u8]) {
        const SERIAL_1: u64 = 0x3f8;
        for piece in text.chunks(MAILBOX_COMMANDS / 2) {
            let print = |byte: &u8| Command::new(Operation::Out, 1, SERIAL_1, (*byte).into());
            self.posted.extend(piece.iter().map(print));
            self.run();
        }
    }

    /// Writes a byte to a port without waiting for an answer: the write may end the machine.
    pub fn out_and_end(mut self, port: u16, value: u8) {
        self.posted.push(Command::new(Operation::Out, 1, port.into(), value.into()));
        self.begin();
    }

    /// Writes 8 bytes, likewise.
    pub fn write_and_end(mut self, address: u64, value: u64) {
        self.post(8, address, value);
        self.begin();
    }

    /// Resets the machine, which starts again, and waits until this program has.
    pub fn reset(&mut self) {
        const RESET_PORT: u64 = 0x602;
        self.posted.push(Command::new(Operation::Out, 1, RESET_PORT, 1));
        self.begin();
        // The guest may still report that the command is done.
        while listen(&mut self.stream) != READY {}
    }

    /// Starts all other processors by INIT and SIPI.
    pub fn start_processors(&mut self) {
        const LOCAL_APIC: u64 = 0xfee0_0000;
        const SPURIOUS: u64 = LOCAL_APIC + 0xf0;
        const COMMAND: u64 = LOCAL_APIC + 0x300;
        self.post(4, SPURIOUS, 0x1ff);
        self.post(4, COMMAND, 0x000c_4500);
        self.write(4, COMMAND, 0x000c_4610);
    }

    /// Has processor `n` (the first that was started is 0) hammer a range that has been filled: read
    /// and rewrite all marks, over and over.
    pub fn hammer(&mut self, n: u64, address: u64, size: u64) {
        let block = CONTROL + 64 * n;
        self.post(8, block, address);
        self.post(8, block + 8, size);
        self.write(8, block + 16, 1);
    }

    /// How often processor `n` has been through its range, read without the guest.
    pub fn hammer_rounds(&self, n: u64) -> u64 {
        let mut rounds = 0_u64;
        self.read_ram(CONTROL + 64 * n + 24, rounds.as_mut_bytes());
        rounds
    }

    /// Waits until processor `n` has been through its range once more. Returns its counters.
    pub fn wait_for_hammer(&mut self, n: u64) -> Hammered {
        let before = self.hammered(n).rounds;
        let start = Instant::now();
        loop {
            let hammered = self.hammered(n);
            if hammered.rounds > before {
                return hammered;
            }
            assert!(
                start.elapsed() < TIMEOUT,
                "timed out after {TIMEOUT:?} waiting until processor {n} completes a round"
            );
        }
    }

    /// The counters of processor `n`.
    fn hammered(&mut self, n: u64) -> Hammered {
        let block = CONTROL + 64 * n;
        let [rounds, errors] = self.read_each([(8, block + 24), (8, block + 32)]);
        Hammered { rounds, errors }
    }
}

/// The next byte that the guest sends.
fn listen(stream: &mut UnixStream) -> u8 {
    let mut byte = [0];
    stream.read_exact(&mut byte).expect("the guest answers on its second serial port in time");
    byte[0]
}

/// A command that the guest has carried out.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Answered {
    command: [u64; 2],
    result: u64,
}

#[cfg(test)]
mod tests {
    #[test]
    fn labels_are_local_except_for_the_programs_bounds() {
        let labels = include_str!("program.s").lines().filter_map(|line| {
            let (label, _) = line.split_once(':')?;
            label.starts_with(|first: char| first.is_ascii_alphabetic()).then_some(label)
        });
        let labels: Vec<_> = labels.collect();
        assert_eq!(labels, ["moat_program_start", "moat_program_end"]);
    }
}
