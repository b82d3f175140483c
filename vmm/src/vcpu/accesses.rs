//! Which instruction accesses what, and where.

use devices::pci::AddressSpace;
use iced_x86::{
    Formatter, GasFormatter, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register,
};
use kvm_bindings::kvm_regs;

use super::stopped::StoppedVcpu;
use crate::violations::{Accessor, GuestAccess, Operation};

/// A piece of memory that an instruction accesses.
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

/// When a vCPU stands at an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    Before,
    /// Once it has written, or a string instruction has done one of its elements.
    After,
}

impl StoppedVcpu<'_> {
    /// The instruction that makes `access`, of which KVM has just told.
    ///
    /// At a read the instruction pointer is still that of the instruction: KVM goes on with it once
    /// it has the data. At a write it is the next one's: KVM has no more to do then
    /// (`x86_emulate_instruction()`, Linux 6.12). The instruction that wrote ends there and has an
    /// operand at just that address. Of several the longest is taken: they differ in prefixes. A
    /// string instruction with more elements to do is itself the next one. At a port KVM always
    /// waits.
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

    /// Who makes `access`, of which KVM has just told.
    pub fn accessor(&self, vcpu: u32, access: &GuestAccess) -> Accessor {
        self.accessor_at(vcpu, self.instruction_behind(access).as_ref())
    }

    /// The registers with which the instruction that makes `access` can be done again, once KVM is
    /// through with it; none if that is not known.
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

    /// A vCPU that is at `instruction`, or at one that cannot be read.
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

    /// What `instruction`, which is about to be executed, will access.
    pub fn operands(&self, instruction: &Instruction) -> Vec<MemoryOperand> {
        self.operands_at(instruction, Moment::Before)
    }

    fn has_written(&self, instruction: &Instruction, access: &GuestAccess) -> bool {
        self.operands_at(instruction, Moment::After).iter().any(|operand| {
            // KVM tells of the parts of a wide operand one by one. Those beyond a page's end may
            // be anywhere, and are not found.
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
            // That of a repeated string instruction is told by its elements, and that of some, such
            // as XSAVE, by nothing in the instruction.
            let size = match memory.memory_size().size() {
                0 => instruction.memory_size().size().max(1),
                size => size,
            };
            Some(MemoryOperand { address, size: size as u64, is_read, is_written })
        });
        operands.collect()
    }

    /// What `register` holds before `instruction`, seen from `moment`.
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

/// Whether `instruction` goes through memory by RDI.
fn is_string(instruction: &Instruction) -> bool {
    matches!(instruction.op0_kind(), OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI)
}

fn disassembled(instruction: &Instruction) -> String {
    let mut text = String::new();
    GasFormatter::new().format(instruction, &mut text);
    text
}
