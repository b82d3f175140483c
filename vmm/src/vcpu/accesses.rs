//! Finds the instruction that made an access, and the memory that an instruction accesses.

use devices::pci::AddressSpace;
use iced_x86::{
    Formatter, GasFormatter, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register,
};
use kvm_bindings::kvm_regs;

use super::stopped::StoppedVcpu;
use crate::violations::{Accessor, GuestAccess, Operation};

/// A range of memory that an instruction accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryOperand {
    /// Linear address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// Whether it is read, before anything is written.
    pub is_read: bool,
    /// Whether it is written.
    pub is_written: bool,
}

/// Whether a vCPU's registers are from before or after an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    Before,
    /// After its write, or after one element of a string instruction.
    After,
}

impl StoppedVcpu<'_> {
    /// The instruction that makes `access`, with which KVM_RUN has just exited.
    ///
    /// At a read, the instruction pointer is still at the instruction, which KVM completes once it has the
    /// data. At a write, it is at the next one: KVM has completed the instruction already
    /// (`x86_emulate_instruction()`, Linux 6.12). So the instruction that wrote is one that ends there and
    /// has a written operand at that address. If several do, they differ in prefixes, and the longest is
    /// taken. A string instruction with more elements to do is itself the next one. At an access to a port,
    /// the instruction pointer is always still at the instruction.
    fn instruction_behind(&self, access: &GuestAccess) -> Option<Instruction> {
        let next = self.regs.rip;
        match (access.space, access.operation) {
            (AddressSpace::Memory, Operation::Write) => {
                let wrote = |instruction: &Instruction| self.has_written(instruction, access);
                let repeated = self.decode(next).ok().filter(|next| is_string(next) && wrote(next));
                repeated.or_else(|| self.decode_before(next).find(wrote))
            }
            (AddressSpace::Memory, Operation::Read) | (AddressSpace::Io, _) => {
                self.decode(next).ok()
            }
            (AddressSpace::Memory, Operation::Fetch) => None,
        }
    }

    /// What makes `access`, with which KVM_RUN has just exited.
    pub fn accessor(&self, vcpu: u32, access: &GuestAccess) -> Accessor {
        self.accessor_at(vcpu, self.instruction_behind(access).as_ref())
    }

    /// The registers with which the instruction that makes `access` can be executed again after KVM has
    /// completed it; none if they are unknown.
    pub fn restart(&self, access: &GuestAccess) -> Option<kvm_regs> {
        if access.operation == Operation::Read {
            return Some(self.regs);
        }
        let instruction = self.instruction_behind(access)?;
        let mut factory = InstructionInfoFactory::new();
        let mut registers = factory.info(&instruction).used_registers().iter();
        let keeps_registers = registers.all(|register| register.access() == OpAccess::Read);
        keeps_registers.then_some(kvm_regs { rip: instruction.ip(), ..self.regs })
    }

    /// An accessor at `instruction`; None if the instruction cannot be read.
    pub fn accessor_at(&self, vcpu: u32, instruction: Option<&Instruction>) -> Accessor {
        let instruction_pointer = instruction.map_or(self.regs.rip, Instruction::ip);
        Accessor {
            vcpu,
            instruction_pointer,
            symbol: self.symbol(instruction_pointer),
            privilege: self.privilege(),
            cr3: self.sregs.cr3,
            instruction: instruction.map(disassembled),
        }
    }

    /// The memory that `instruction`, which is the next to be executed, will access.
    pub fn operands(&self, instruction: &Instruction) -> Vec<MemoryOperand> {
        self.operands_at(instruction, Moment::Before)
    }

    fn has_written(&self, instruction: &Instruction, access: &GuestAccess) -> bool {
        self.operands_at(instruction, Moment::After).iter().any(|operand| {
            // KVM exits for the parts of a wide operand one by one. A part in the next page may be at any
            // physical address, and is not found.
            let offset = || access.address.checked_sub(self.translate(operand.address)?);
            operand.is_written
                && offset().is_some_and(|offset| offset + u64::from(access.size) <= operand.size)
        })
    }

    fn operands_at(&self, instruction: &Instruction, moment: Moment) -> Vec<MemoryOperand> {
        let mut factory = InstructionInfoFactory::new();
        let operands = factory.info(instruction).used_memory().iter().filter_map(|memory| {
            let (is_read, is_written) = match memory.access() {
                OpAccess::None | OpAccess::NoMemAccess => return None,
                OpAccess::Read | OpAccess::CondRead => (true, false),
                OpAccess::Write | OpAccess::CondWrite => (false, true),
                OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
            };
            let register = |register, _, _| self.register_at(register, instruction, moment);
            let address = memory.try_virtual_address(0, register)?;
            // For a repeated string instruction, the size of one element. For some instructions, such as
            // XSAVE, the size is unknown.
            let size = match memory.memory_size().size() {
                0 => instruction.memory_size().size().max(1),
                size => size,
            };
            Some(MemoryOperand { address, size: size as u64, is_read, is_written })
        });
        operands.collect()
    }

    /// The value of `register` before `instruction`, if the vCPU's registers are from `moment`.
    fn register_at(
        &self,
        register: Register,
        instruction: &Instruction,
        moment: Moment,
    ) -> Option<u64> {
        const DIRECTION_FLAG: u64 = 1 << 10;
        let value = self.register(register)?;
        if moment == Moment::Before {
            return Some(value);
        }
        let moved = match register.full_register() {
            Register::RSP => i64::from(instruction.stack_pointer_increment()),
            Register::RSI | Register::RDI if is_string(instruction) => {
                let size = instruction.memory_size().size() as i64;
                if self.regs.rflags & DIRECTION_FLAG == 0 { size } else { -size }
            }
            _ => 0,
        };
        Some(value.wrapping_sub_signed(moved))
    }
}

/// Whether `instruction` is a string instruction that writes at RDI.
fn is_string(instruction: &Instruction) -> bool {
    matches!(instruction.op0_kind(), OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI)
}

fn disassembled(instruction: &Instruction) -> String {
    let mut text = String::new();
    GasFormatter::new().format(instruction, &mut text);
    text
}
