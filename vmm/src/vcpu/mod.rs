//! vCPUs: running them, and handling their exits.

mod accesses;
mod stopped;
mod unemulated;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED, kvm_regs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

pub use unemulated::enable_emulation_failures;

use crate::arch::x86_64::machine_check::MachineChecks;
use crate::board::buses::GuestBuses;
use crate::exit::Ending;
use crate::kvm::VcpuError;
use crate::quiesce::{Entered, KickTarget, VcpuGate};
use crate::violations::{Consequence, GuestAccess};
use stopped::StoppedVcpu;

/// What a vCPU's thread does after one round of KVM_RUN.
enum Round {
    Continue,
    End(Ending),
}

/// A machine check to be raised once KVM has completed the instruction that caused it.
struct PendingMachineCheck {
    access: GuestAccess,
    /// The registers with which the instruction can be executed again, if they are known.
    restart: Option<kvm_regs>,
}

/// A vCPU and all it needs to run.
pub struct Vcpu {
    /// Its number, and its APIC id.
    pub index: u32,
    /// Its descriptor.
    pub fd: VcpuFd,
    /// What it can access.
    pub buses: Arc<GuestBuses>,
    /// Stops it.
    pub gate: Arc<VcpuGate>,
    /// Set when the latest kick found it halted with interrupts off, which only another vCPU can end.
    pub halted: Arc<AtomicBool>,
    /// Raises machine checks in it, if a device's policy is to do so.
    pub machine_checks: Option<MachineChecks>,
}

impl Vcpu {
    /// Runs guest code until the machine ends. Returns why, if this vCPU is the cause.
    pub fn run(&mut self) -> Option<Ending> {
        let target = KickTarget::new(&mut self.fd);
        let gate = Arc::clone(&self.gate);
        let buses = Arc::clone(&self.buses);
        let mut pending = None;
        loop {
            let entered = gate.enter(self.index as usize, target.kicker())?;
            let round = match pending.take() {
                None => self.round(entered, &buses, &mut pending),
                Some(check) => self.finish_instruction(entered, &buses, check, &mut pending),
            };
            match round {
                Ok(Round::Continue) => {}
                Ok(Round::End(ending)) => return Some(ending),
                Err(error) => return Some(self.failure(&error.to_string())),
            }
        }
    }

    /// Runs KVM_RUN once and handles its exit. Drops `entered` before it calls any device.
    fn round(
        &mut self,
        entered: Entered<'_>,
        buses: &GuestBuses,
        pending: &mut Option<PendingMachineCheck>,
    ) -> Result<Round, VcpuError> {
        let changes = buses.slots.changes();
        let exit = self.fd.run();
        if let Err(error) = &exit
            && matches!(error.errno(), libc::EINTR | libc::EAGAIN)
        {
            let halted = self.is_halted_for_good();
            self.halted.store(halted, Ordering::Relaxed);
            return Ok(Round::Continue);
        }
        drop(entered);
        let stray = match exit {
            Ok(VcpuExit::IoIn(port, data)) => buses.read_port(port, data),
            Ok(VcpuExit::IoOut(port, data)) => buses.write_port(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => buses.read_memory(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => buses.write_memory(address, data),
            Ok(VcpuExit::Shutdown) => return Ok(Round::End(Ending::TripleFault)),
            Ok(VcpuExit::InternalError) => return self.internal_error(buses),
            Ok(exit) => {
                let what = format!("{exit:?}");
                return Ok(Round::End(self.failure(&what)));
            }
            Err(error) if error.errno() == libc::EFAULT => return Ok(self.refused_memory(changes)),
            Err(error) => return Ok(Round::End(self.failure(&format!("KVM_RUN: {error}")))),
        };
        // The access may have revoked a device's access to memory. The device must not use it any more once
        // the guest continues.
        buses.leases.settle();
        let Some(access) = stray else {
            return Ok(Round::Continue);
        };
        let vcpu = StoppedVcpu::new(&self.fd, buses)?;
        Ok(match access.record(|access| vcpu.accessor(self.index, access)) {
            Consequence::None => Round::Continue,
            Consequence::Stop(violation) => Round::End(Ending::Violation(violation)),
            Consequence::MachineCheck(access) => {
                *pending = Some(PendingMachineCheck { restart: vcpu.restart(&access), access });
                Round::Continue
            }
        })
    }

    /// Has KVM complete the instruction that caused a machine check, and nothing after it, and raises the
    /// machine check. That may take several rounds. They belong to the same violation, so their accesses are
    /// not recorded again.
    fn finish_instruction(
        &mut self,
        entered: Entered<'_>,
        buses: &GuestBuses,
        check: PendingMachineCheck,
        pending: &mut Option<PendingMachineCheck>,
    ) -> Result<Round, VcpuError> {
        self.fd.set_kvm_immediate_exit(1);
        let exit = self.fd.run();
        drop(entered);
        match exit {
            Ok(VcpuExit::MmioRead(address, data)) => drop(buses.read_memory(address, data)),
            Ok(VcpuExit::MmioWrite(address, data)) => drop(buses.write_memory(address, data)),
            Err(error) if error.errno() == libc::EINTR => {
                if let Some(restart) = &check.restart {
                    self.fd.set_regs(restart).map_err(VcpuError::ioctl("KVM_SET_REGS"))?;
                }
                self.raise_machine_check(&check.access, check.restart.is_some())?;
                return Ok(Round::Continue);
            }
            Ok(exit) => {
                let what = format!("{exit:?}");
                return Ok(Round::End(self.failure(&what)));
            }
            Err(error) => return Ok(Round::End(self.failure(&format!("KVM_RUN: {error}")))),
        }
        *pending = Some(check);
        Ok(Round::Continue)
    }

    fn raise_machine_check(&self, access: &GuestAccess, precise: bool) -> Result<(), VcpuError> {
        let mut checks = self.machine_checks.iter();
        checks.try_for_each(|checks| checks.raise(&self.fd, access, precise))
    }

    /// Handles EFAULT: the memory in a slot is not accessible. `changes` is the slots' count from before
    /// KVM_RUN.
    fn refused_memory(&self, changes: u64) -> Round {
        match self.buses.withdraw_unplugged() {
            // It was an unplugged block, and the guest repeats the access, now as an MMIO exit. The same if
            // another thread has withdrawn or plugged the block meanwhile.
            Ok(withdrawn) if withdrawn || self.buses.slots.changes() != changes => Round::Continue,
            Ok(_) => Round::End(self.failure("KVM_RUN: the host has no memory for the guest")),
            Err(error) => Round::End(Ending::MachineError(error.to_string())),
        }
    }

    fn failure(&self, what: &str) -> Ending {
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        Ending::VcpuError(format!("vCPU {} at {rip:#x}: {what}", self.index))
    }

    /// Whether only another vCPU can wake this one: it waits for its start (INIT or the start-up IPI), or has
    /// halted with interrupts off. KVM handles HLT without an exit.
    fn is_halted_for_good(&self) -> bool {
        const INTERRUPTS_ENABLED: u64 = 1 << 9;
        match self.fd.get_mp_state() {
            Ok(state)
                if [KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED]
                    .contains(&state.mp_state) =>
            {
                true
            }
            Ok(state) if state.mp_state == KVM_MP_STATE_HALTED => {
                self.fd.get_regs().is_ok_and(|regs| regs.rflags & INTERRUPTS_ENABLED == 0)
            }
            _ => false,
        }
    }
}
