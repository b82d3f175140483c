//! The bare-metal guest of `payload.s`: an ELF file that boots by PVH, and the host's end of its
//! commands.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

std::arch::global_asm!(
    ".pushsection .rodata",
    include_str!("payload.s"),
    ".code64",
    ".popsection",
    options(att_syntax)
);

unsafe extern "C" {
    static moat_payload_start: u8;
    static moat_payload_end: u8;
}

const LOAD_ADDRESS: u64 = 0x20_0000;

/// Where the control blocks of the hammering processors lie.
const CONTROL: u64 = 0x40_0000;

fn code() -> &'static [u8] {
    let start = &raw const moat_payload_start;
    let length = (&raw const moat_payload_end).addr() - start.addr();
    // SAFETY: both symbols are labels in one section that is never written, the second after the
    // first, so everything between them is initialised and lives as long as the program.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// Writes the payload to `path` as an ELF executable with a PVH entry point.
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
    std::fs::write(path, elf).unwrap();
}

/// Bytes in a command.
const COMMAND_BYTES: usize = 18;

/// The host's end of a running payload.
pub struct Payload {
    stream: UnixStream,
    /// Commands that will go with the next one.
    posted: Vec<u8>,
}

/// What a hammering processor has to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hammered {
    pub rounds: u64,
    pub errors: u64,
}

/// What the boot processor met. What is of a machine check is only good for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    pub vector: u64,
    pub instruction_pointer: u64,
    pub mcg_status: u64,
    /// STATUS and ADDR.
    pub banks: [(u64, u64); 2],
}

impl Payload {
    /// Where a copy goes.
    pub const COPY: u64 = 0x52_0000;

    /// Waits for the payload at the other end of `stream` to be ready.
    pub fn connect(mut stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut ready = [0];
        stream.read_exact(&mut ready).expect("the payload starts");
        assert_eq!(ready, [b'R']);
        Self { stream, posted: Vec::new() }
    }

    fn command(&mut self, operation: u8, width: u8, address: u64, value: u64) -> u64 {
        let posted = self.posted.len() / COMMAND_BYTES;
        self.send(operation, width, address, value);
        let mut result = [0; 8];
        for _ in 0..=posted {
            self.stream.read_exact(&mut result).expect("the payload answers");
        }
        u64::from_le_bytes(result)
    }

    fn send(&mut self, operation: u8, width: u8, address: u64, value: u64) {
        self.push(operation, width, address, value);
        let bytes = std::mem::take(&mut self.posted);
        self.stream.write_all(&bytes).expect("the payload listens");
    }

    fn push(&mut self, operation: u8, width: u8, address: u64, value: u64) {
        self.posted.extend([operation, width]);
        self.posted.extend([address, value].map(u64::to_le_bytes).concat());
    }

    /// Writes `width` bytes before whatever else is done, but not at once: no answer is waited for,
    /// which makes many writes much faster.
    pub fn post(&mut self, width: u8, address: u64, value: u64) {
        self.push(1, width, address, value);
    }

    /// Reads `width` bytes.
    pub fn read(&mut self, width: u8, address: u64) -> u64 {
        self.command(0, width, address, 0)
    }

    /// Writes `width` bytes.
    pub fn write(&mut self, width: u8, address: u64, value: u64) {
        self.command(1, width, address, value);
    }

    /// Writes bytes, eight at a time where it can.
    pub fn write_bytes(&mut self, address: u64, bytes: &[u8]) {
        let (quads, rest) = bytes.as_chunks::<8>();
        for (address, quad) in (address..).step_by(8).zip(quads) {
            self.write(8, address, u64::from_le_bytes(*quad));
        }
        for (address, byte) in (address + quads.len() as u64 * 8..).zip(rest) {
            self.write(1, address, (*byte).into());
        }
    }

    /// Marks every 512th byte of a range with its address.
    pub fn fill(&mut self, address: u64, size: u64) {
        self.command(2, 0, address, size);
    }

    /// How many marks of a range are not what [`Self::fill`] wrote.
    pub fn verify(&mut self, address: u64, size: u64) -> u64 {
        self.command(3, 0, address, size)
    }

    /// Copies quads by `rep movsq`. What was read is at [`Self::COPY`].
    pub fn copy(&mut self, address: u64, quads: u64) {
        self.command(5, 8, address, quads);
    }

    /// Fills quads with the address of the first, by `rep stosq`.
    pub fn store_string(&mut self, address: u64, quads: u64) {
        self.command(6, 8, address, quads);
    }

    /// Calls what is at `address`.
    pub fn call(&mut self, address: u64) {
        self.command(7, 8, address, 0);
    }

    /// Reads 16 bytes by `paddq`, which KVM cannot emulate. Gives the first 8 of them.
    pub fn add_vector(&mut self, address: u64) -> u64 {
        self.command(8, 16, address, 0)
    }

    /// Writes 8 bytes by `movlps`, which KVM cannot emulate.
    pub fn store_vector(&mut self, address: u64) {
        self.command(9, 8, address, 0);
    }

    /// The exception that ended the last command, if one did.
    pub fn take_exception(&mut self) -> Option<Exception> {
        const EXCEPTION: u64 = 0x3f_e000;
        let words: [u64; 7] = std::array::from_fn(|n| self.read(8, EXCEPTION + n as u64 * 8));
        let [vector, instruction_pointer, mcg_status, status0, address0, status1, address1] = words;
        self.write(8, EXCEPTION, 0);
        (vector != 0).then_some(Exception {
            vector,
            instruction_pointer,
            mcg_status,
            banks: [(status0, address0), (status1, address1)],
        })
    }

    /// Writes a byte to a port, without an answer to wait for: the machine may end of it.
    pub fn out_and_end(mut self, port: u16, value: u8) {
        self.send(4, 1, port.into(), value.into());
    }

    /// Writes 8 bytes, likewise.
    pub fn write_and_end(mut self, address: u64, value: u64) {
        self.send(1, 8, address, value);
    }

    /// Resets the machine, which starts again, and waits until this payload has.
    pub fn reset(&mut self) {
        const RESET_PORT: u64 = 0x602;
        self.send(4, 1, RESET_PORT, 1);
        // It may get as far as answering.
        let mut byte = [0];
        while byte != [b'R'] {
            self.stream.read_exact(&mut byte).expect("the payload starts again");
        }
    }

    /// Starts all other processors by INIT and SIPI.
    pub fn start_processors(&mut self) {
        const LOCAL_APIC: u64 = 0xfee0_0000;
        const SPURIOUS: u64 = LOCAL_APIC + 0xf0;
        const COMMAND: u64 = LOCAL_APIC + 0x300;
        self.write(4, SPURIOUS, 0x1ff);
        self.write(4, COMMAND, 0x000c_4500);
        self.write(4, COMMAND, 0x000c_4610);
    }

    /// Has processor `n` (the first that was started is 0) hammer a range that has been filled.
    pub fn hammer(&mut self, n: u64, address: u64, size: u64) {
        let block = CONTROL + 64 * n;
        self.write(8, block, address);
        self.write(8, block + 8, size);
        self.write(8, block + 16, 1);
    }

    /// What processor `n` has seen so far.
    pub fn hammered(&mut self, n: u64) -> Hammered {
        let block = CONTROL + 64 * n;
        Hammered { rounds: self.read(8, block + 24), errors: self.read(8, block + 32) }
    }
}
