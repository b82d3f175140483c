//! A vCPU out of KVM_RUN: its registers, and memory through its page tables.

use std::iter;

use iced_x86::{Decoder, DecoderOptions, Instruction, Register};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::GuestAddress;

use crate::board::buses::GuestBuses;
use crate::board::memory_device::UnpluggedMemoryAccess;
use crate::kvm::VcpuError;
use crate::symbols;
use crate::violations::{GuestAccess, Privilege};

/// Bytes in the smallest page.
const PAGE: u64 = 4096;

/// An instruction has no more bytes than this (Intel SDM, volume 2, section 2.3.11).
const LONGEST_INSTRUCTION: usize = 15;

/// A vCPU out of KVM_RUN.
pub struct StoppedVcpu<'a> {
    fd: &'a VcpuFd,
    buses: &'a GuestBuses,
    /// Its general registers.
    pub regs: kvm_regs,
    /// Its segments and control registers.
    pub sregs: kvm_sregs,
}

impl<'a> StoppedVcpu<'a> {
    /// Reads the registers of `fd`, which the calling thread runs.
    pub fn new(fd: &'a VcpuFd, buses: &'a GuestBuses) -> Result<Self, VcpuError> {
        let regs = fd.get_regs().map_err(VcpuError::ioctl("KVM_GET_REGS"))?;
        let sregs = fd.get_sregs().map_err(VcpuError::ioctl("KVM_GET_SREGS"))?;
        Ok(Self { fd, buses, regs, sregs })
    }

    /// Its privilege. The current privilege level is that of the stack segment.
    pub fn privilege(&self) -> Privilege {
        if self.sregs.ss.dpl == 3 { Privilege::User } else { Privilege::Kernel }
    }

    /// 16, 32 or 64, from its code segment.
    fn bitness(&self) -> u32 {
        match (self.sregs.cs.l, self.sregs.cs.db) {
            (1, _) => 64,
            (_, 1) => 32,
            _ => 16,
        }
    }

    /// The linear address of an instruction.
    pub fn code_address(&self, instruction_pointer: u64) -> u64 {
        self.segment_base(&self.sregs.cs).wrapping_add(instruction_pointer)
    }

    /// The guest physical address of `linear` by the page tables; none if it is not mapped.
    ///
    /// KVM_TRANSLATE translates with the kernel's privilege: with SMAP it refuses pages of user space. So it
    /// is used outside of long mode only.
    pub fn translate(&self, linear: u64) -> Option<u64> {
        const LONG_MODE_ACTIVE: u64 = 1 << 10;
        if self.sregs.efer & LONG_MODE_ACTIVE != 0 {
            return self.walk(linear);
        }
        let translation = self.fd.translate_gva(linear).ok()?;
        (translation.valid != 0).then_some(translation.physical_address)
    }

    /// Intel SDM, volume 3, section 5.5: "4-level paging and 5-level paging".
    fn walk(&self, linear: u64) -> Option<u64> {
        const FIVE_LEVELS: u64 = 1 << 12;
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        const PRESENT: u64 = 1 << 0;
        const PAGE_SIZE: u64 = 1 << 7;
        let levels = if self.sregs.cr4 & FIVE_LEVELS != 0 { 5 } else { 4 };
        let mut table = self.sregs.cr3 & ADDRESS;
        for level in (0..levels).rev() {
            let shift = 12 + 9 * level;
            let mut entry = [0; 8];
            if !self.buses.peek(table + (linear >> shift & 0x1ff) * 8, &mut entry) {
                return None;
            }
            let entry = u64::from_le_bytes(entry);
            if entry & PRESENT == 0 {
                return None;
            }
            if level == 0 || entry & PAGE_SIZE != 0 {
                let in_page = (1 << shift) - 1;
                return Some(entry & ADDRESS & !in_page | linear & in_page);
            }
            table = entry & ADDRESS;
        }
        None
    }

    /// Up to `count` bytes of memory from `linear` on, fewer if some are not mapped to memory.
    fn read(&self, linear: u64, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (address, size) in pages(linear, count as u64) {
            let mut piece = vec![0; size as usize];
            let peek = |physical| self.buses.peek(physical, &mut piece);
            if !self.translate(address).is_some_and(peek) {
                break;
            }
            bytes.append(&mut piece);
        }
        bytes
    }

    /// `access` as one to an unplugged block, if it is to one.
    pub fn unplugged(&self, access: GuestAccess) -> Option<UnpluggedMemoryAccess<'a>> {
        let is_memory = self.buses.peek(access.address, &mut [0]);
        if is_memory { None } else { self.buses.unplugged(access) }
    }

    /// The symbol of the guest's kernel for the code at `address`.
    pub fn symbol(&self, address: u64) -> Option<String> {
        let translate = |linear| self.translate(linear).map(GuestAddress);
        self.buses.symbols.as_ref()?.resolve(symbols::lstar(self.fd)?, translate, address)
    }

    /// The instruction at `instruction_pointer`; on an error, how many bytes of it could be read.
    pub fn decode(&self, instruction_pointer: u64) -> Result<Instruction, usize> {
        let code = self.read(self.code_address(instruction_pointer), LONGEST_INSTRUCTION);
        decode(self.bitness(), instruction_pointer, &code).ok_or(code.len())
    }

    /// All instructions that end right before `instruction_pointer`, the longest first.
    pub fn decode_before(&self, instruction_pointer: u64) -> impl Iterator<Item = Instruction> {
        let read = |length: usize| {
            let start = instruction_pointer.wrapping_sub(length as u64);
            Some(self.read(self.code_address(start), length)).filter(|code| code.len() == length)
        };
        // Back to the start of the page if the page before cannot be read.
        let in_page = (self.code_address(instruction_pointer) % PAGE) as usize;
        let code = read(LONGEST_INSTRUCTION).or_else(|| read(LONGEST_INSTRUCTION.min(in_page)));
        let code = code.unwrap_or_default();
        let bitness = self.bitness();
        (0..code.len()).filter_map(move |skipped| {
            let code = &code[skipped..];
            let start = instruction_pointer.wrapping_sub(code.len() as u64);
            decode(bitness, start, code).filter(|instruction| instruction.len() == code.len())
        })
    }

    /// The value of a general register or the base of a segment; none for any other register.
    pub fn register(&self, register: Register) -> Option<u64> {
        let (regs, sregs) = (&self.regs, &self.sregs);
        let value = match register.full_register() {
            Register::RAX => regs.rax,
            Register::RBX => regs.rbx,
            Register::RCX => regs.rcx,
            Register::RDX => regs.rdx,
            Register::RSI => regs.rsi,
            Register::RDI => regs.rdi,
            Register::RSP => regs.rsp,
            Register::RBP => regs.rbp,
            Register::R8 => regs.r8,
            Register::R9 => regs.r9,
            Register::R10 => regs.r10,
            Register::R11 => regs.r11,
            Register::R12 => regs.r12,
            Register::R13 => regs.r13,
            Register::R14 => regs.r14,
            Register::R15 => regs.r15,
            Register::CS => return Some(self.segment_base(&sregs.cs)),
            Register::DS => return Some(self.segment_base(&sregs.ds)),
            Register::ES => return Some(self.segment_base(&sregs.es)),
            Register::SS => return Some(self.segment_base(&sregs.ss)),
            Register::FS => return Some(sregs.fs.base),
            Register::GS => return Some(sregs.gs.base),
            _ => return None,
        };
        Some(if register.size() == 8 { value } else { value & ((1 << (register.size() * 8)) - 1) })
    }

    /// The base of a segment other than FS and GS, which is 0 in 64-bit mode.
    fn segment_base(&self, segment: &kvm_segment) -> u64 {
        if self.bitness() == 64 { 0 } else { segment.base }
    }
}

/// Splits `size` bytes from `address` on at page boundaries: addresses and sizes.
pub fn pages(address: u64, size: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut done = 0;
    iter::from_fn(move || {
        let address = address.wrapping_add(done);
        let in_page = (PAGE - address % PAGE).min(size - done);
        done += in_page;
        (in_page > 0).then_some((address, in_page))
    })
}

fn decode(bitness: u32, instruction_pointer: u64, code: &[u8]) -> Option<Instruction> {
    let mut decoder = Decoder::with_ip(bitness, code, instruction_pointer, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then_some(instruction)
}
