//! Instructions that access unplugged memory, and that KVM cannot emulate.
//!
//! KVM carries out an access that no memory slot covers by emulating the instruction. Its emulator supports
//! few vector instructions except moves, and cannot fetch instructions from such an address. Then KVM_RUN
//! exits with KVM_EXIT_INTERNAL_ERROR, and the access has to be found by decoding the instruction.

use devices::pci::AddressSpace;
use iced_x86::{FlowControl, Instruction};
use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_INTERNAL_ERROR_EMULATION, kvm_enable_cap, kvm_regs,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::accesses::MemoryOperand;
use super::stopped::{StoppedVcpu, pages};
use super::{Round, Vcpu};
use crate::board::buses::GuestBuses;
use crate::board::memory_device::UnpluggedMemoryAccess;
use crate::exit::Ending;
use crate::kvm::VcpuError;
use crate::violations::{Consequence, GuestAccess, Operation, Privilege};

/// Exception vector of an invalid opcode.
const INVALID_OPCODE: u8 = 6;

/// Has KVM exit for every instruction that it cannot emulate, instead of raising #UD if user space executes
/// it. Does nothing on KVM before Linux 5.14, which cannot do that.
pub fn enable_emulation_failures(vm: &VmFd) -> Result<(), VcpuError> {
    let cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE;
    if vm.check_extension_raw(cap.into()) <= 0 {
        return Ok(());
    }
    let enable = kvm_enable_cap { cap, args: [1, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&enable).map_err(VcpuError::ioctl("KVM_ENABLE_CAP"))
}

/// The access of a vCPU's current instruction to unplugged memory.
struct Fault<'a> {
    access: UnpluggedMemoryAccess<'a>,
    /// None if it is itself in unplugged memory.
    instruction: Option<Instruction>,
}

impl Vcpu {
    /// Handles KVM_EXIT_INTERNAL_ERROR.
    ///
    /// If the instruction accesses an unplugged block, that is a violation like any other, and the vCPU
    /// continues as if reads returned ones and writes were discarded: all ones are not an instruction, so a
    /// fetch raises #UD; any other instruction is skipped, and leaves registers as they are.
    pub(super) fn internal_error(&mut self, buses: &GuestBuses) -> Result<Round, VcpuError> {
        let run = self.fd.get_kvm_run();
        // SAFETY: KVM has just left with KVM_EXIT_INTERNAL_ERROR, for which this is the member.
        let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
        let failure = || Round::End(self.failure(&format!("KVM_EXIT_INTERNAL_ERROR {suberror}")));
        if suberror != KVM_INTERNAL_ERROR_EMULATION {
            return Ok(failure());
        }
        let vcpu = StoppedVcpu::new(&self.fd, buses)?;
        // User space must not end the machine: it gets #UD, as from KVM without
        // KVM_CAP_EXIT_ON_EMULATION_FAILURE.
        let give_up = || match vcpu.privilege() {
            Privilege::Kernel => Ok(failure()),
            Privilege::User => {
                set_exception(&self.fd, Some(INVALID_OPCODE)).map(|()| Round::Continue)
            }
        };
        let Some(Fault { access, instruction }) = vcpu.fault() else {
            return give_up();
        };
        match access.record(|_| vcpu.accessor_at(self.index, instruction.as_ref())) {
            Consequence::Stop(violation) => return Ok(Round::End(Ending::Violation(violation))),
            Consequence::MachineCheck(access) => {
                set_exception(&self.fd, None)?;
                self.raise_machine_check(&access, true)?;
            }
            Consequence::None => match instruction {
                None => set_exception(&self.fd, Some(INVALID_OPCODE))?,
                Some(instruction) if instruction.flow_control() == FlowControl::Next => {
                    let regs = kvm_regs { rip: instruction.next_ip(), ..vcpu.regs };
                    self.fd.set_regs(&regs).map_err(VcpuError::ioctl("KVM_SET_REGS"))?;
                    set_exception(&self.fd, None)?;
                }
                // A jump or call: its target would have been read from the unplugged block.
                Some(_) => return give_up(),
            },
        }
        Ok(Round::Continue)
    }
}

/// Has the vCPU take the exception `vector` next, or none, instead of the one that is pending in KVM.
fn set_exception(fd: &VcpuFd, vector: Option<u8>) -> Result<(), VcpuError> {
    let mut events = fd.get_vcpu_events().map_err(VcpuError::ioctl("KVM_GET_VCPU_EVENTS"))?;
    events.exception = Default::default();
    if let Some(vector) = vector {
        events.exception.injected = 1;
        events.exception.nr = vector;
    }
    fd.set_vcpu_events(&events).map_err(VcpuError::ioctl("KVM_SET_VCPU_EVENTS"))
}

impl<'a> StoppedVcpu<'a> {
    /// The access of the instruction at the instruction pointer to an unplugged block, if it has one.
    fn fault(&self) -> Option<Fault<'a>> {
        let fault =
            |access, instruction| Some(Fault { access: self.unplugged(access)?, instruction });
        match self.decode(self.regs.rip) {
            Ok(instruction) => self
                .operands(&instruction)
                .iter()
                .flat_map(|operand| self.pieces(operand))
                .find_map(|access| fault(access, Some(instruction))),
            Err(readable) => {
                let missing = self.regs.rip.wrapping_add(readable as u64);
                let address = self.translate(self.code_address(missing))?;
                let access = memory_access(address, 1, Operation::Fetch);
                fault(access, None)
            }
        }
    }

    /// The accesses to `operand` page by page, since each page may have any physical address.
    fn pieces(&self, operand: &MemoryOperand) -> Vec<GuestAccess> {
        let operation = if operand.is_read { Operation::Read } else { Operation::Write };
        let pieces = pages(operand.address, operand.size);
        let accesses = pieces.filter_map(|(linear, size)| {
            Some(memory_access(self.translate(linear)?, size as u32, operation))
        });
        accesses.collect()
    }
}

fn memory_access(address: u64, size: u32, operation: Operation) -> GuestAccess {
    GuestAccess { space: AddressSpace::Memory, address, size, operation, value: None }
}
