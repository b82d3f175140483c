//! Instructions that touch unplugged memory, and that KVM's emulator does not know.
//!
//! KVM does an access to what no memory slot covers by emulating the instruction. Of vector
//! instructions its emulator knows little but moves, and it cannot fetch instructions from there.
//! It gives up then (KVM_EXIT_INTERNAL_ERROR), and the access has to be found in the instruction.

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

/// Has KVM tell of all that it cannot emulate, and not make #UD of what user space does. KVM before
/// Linux 5.14 cannot.
pub fn enable_emulation_failures(vm: &VmFd) -> Result<(), VcpuError> {
    let cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE;
    if vm.check_extension_raw(cap.into()) <= 0 {
        return Ok(());
    }
    let enable = kvm_enable_cap { cap, args: [1, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&enable).map_err(VcpuError::ioctl("KVM_ENABLE_CAP"))
}

/// Where the instruction that a vCPU stands at fails for want of memory.
struct Fault<'a> {
    access: UnpluggedMemoryAccess<'a>,
    /// None if it is itself in unplugged memory.
    instruction: Option<Instruction>,
}

impl Vcpu {
    /// What becomes of a vCPU that KVM cannot run on.
    ///
    /// If the instruction fails on an unplugged block, that is a violation like any other, and the
    /// vCPU goes on as a processor would that reads ones and loses writes: all ones are no
    /// instruction, so a fetch is an invalid opcode; any other instruction is stepped over, and
    /// leaves registers as they are.
    pub(super) fn internal_error(&mut self, buses: &GuestBuses) -> Result<Round, VcpuError> {
        let run = self.fd.get_kvm_run();
        // SAFETY: KVM has just left with KVM_EXIT_INTERNAL_ERROR, for which this is the member.
        let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
        let failure = || Round::End(self.failure(&format!("KVM_EXIT_INTERNAL_ERROR {suberror}")));
        if suberror != KVM_INTERNAL_ERROR_EMULATION {
            return Ok(failure());
        }
        let vcpu = StoppedVcpu::new(&self.fd, buses)?;
        // User space must not end the machine. KVM does this by itself if it is not told to leave
        // it to us.
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
                // Where it would have gone is what it should have read.
                Some(_) => return give_up(),
            },
        }
        Ok(Round::Continue)
    }
}

/// Has the vCPU take the exception `vector` next, or none, whatever KVM has in mind.
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
    /// Where the instruction at the instruction pointer fails, if that is an unplugged block.
    fn fault(&self) -> Option<Fault<'a>> {
        let fault = |what, instruction| Some(Fault { access: self.unplugged(what)?, instruction });
        match self.decode(self.regs.rip) {
            Ok(instruction) => self
                .operands(&instruction)
                .iter()
                .flat_map(|operand| self.pieces(operand))
                .find_map(|what| fault(what, Some(instruction))),
            Err(there) => {
                let missing = self.regs.rip.wrapping_add(there as u64);
                let address = self.translate(self.code_address(missing))?;
                let what = memory_access(address, 1, Operation::Fetch);
                fault(what, None)
            }
        }
    }

    /// What `operand` is page by page, since each page may be anywhere.
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
