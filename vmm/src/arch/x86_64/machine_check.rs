//! Machine checks: how a processor reports a memory error.
//!
//! KVM delivers a machine check to the guest (KVM_X86_SET_MCE). Its contents are chosen here so that Linux
//! takes it for an uncorrected memory error: it kills a process that caused it, and panics if the kernel did
//! (`mce_severity_intel()` and `mce_severity_amd()`, Linux 6.12). A guest that has not enabled machine checks
//! in CR4 gets a triple fault, as on a real machine.

use std::io;

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_x86_mce};
use kvm_ioctls::{Kvm, VcpuFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use crate::kvm::VcpuError;
use crate::violations::{GuestAccess, Operation};
use request::{KVM_X86_GET_MCE_CAP_SUPPORTED, KVM_X86_SET_MCE, KVM_X86_SETUP_MCE};

/// Ioctls that kvm-ioctls does not have.
mod request {
    use kvm_bindings::{KVMIO, kvm_x86_mce};
    use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

    ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);
    ioctl_ior_nr!(KVM_X86_GET_MCE_CAP_SUPPORTED, KVMIO, 0x9d, u64);
    ioctl_iow_nr!(KVM_X86_SET_MCE, KVMIO, 0x9e, kvm_x86_mce);
}

/// The vendor of a processor, which determines its machine-check architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// AMD, and Hygon.
    Amd,
    /// Intel, and all other vendors.
    Intel,
}

/// IA32_MCG_CAP (Intel SDM, volume 3, section 17.3.1.1).
mod mcg_cap {
    pub const BANKS: u64 = 2;
    pub const CTL_P: u64 = 1 << 8;
    pub const SER_P: u64 = 1 << 24;
    pub const LMCE_P: u64 = 1 << 27;
}

/// The machine-check architecture of a machine's vCPUs.
#[derive(Debug, Clone, Copy)]
pub struct MachineChecks {
    vendor: Vendor,
    capabilities: u64,
}

impl MachineChecks {
    /// The capabilities that `kvm` supports for processors of `vendor`.
    pub fn new(kvm: &Kvm, vendor: Vendor) -> Result<Self, VcpuError> {
        let mut supported = 0;
        // SAFETY: the ioctl writes one u64, and its argument is one.
        let result =
            unsafe { ioctl_with_mut_ref(kvm, KVM_X86_GET_MCE_CAP_SUPPORTED(), &mut supported) };
        check("KVM_X86_GET_MCE_CAP_SUPPORTED", result)?;
        let wanted = match vendor {
            Vendor::Amd => mcg_cap::CTL_P,
            Vendor::Intel => mcg_cap::CTL_P | mcg_cap::SER_P | mcg_cap::LMCE_P,
        };
        Ok(Self { vendor, capabilities: supported & wanted | mcg_cap::BANKS })
    }

    /// Sets up the machine-check registers of `vcpu`, whose CPUID must be set. `has_vmx` is whether that has
    /// VMX.
    pub fn set_up(&self, vcpu: &VcpuFd, has_vmx: bool) -> Result<(), VcpuError> {
        // SAFETY: the ioctl reads one u64, and its argument is one.
        let result = unsafe { ioctl_with_ref(vcpu, KVM_X86_SETUP_MCE(), &self.capabilities) };
        check("KVM_X86_SETUP_MCE", result)?;
        if self.capabilities & mcg_cap::LMCE_P != 0 {
            enable_local_machine_checks(vcpu, has_vmx)?;
        }
        Ok(())
    }

    /// Raises a machine check for `access` in `vcpu`. `precise` is whether the instruction pointer is that of
    /// the instruction, which can then be executed again.
    pub fn raise(
        &self,
        vcpu: &VcpuFd,
        access: &GuestAccess,
        precise: bool,
    ) -> Result<(), VcpuError> {
        let event = self.event(access, precise);
        // SAFETY: the ioctl reads a kvm_x86_mce, and its argument is one.
        let result = unsafe { ioctl_with_ref(vcpu, KVM_X86_SET_MCE(), &event) };
        check("KVM_X86_SET_MCE", result)
    }

    fn event(&self, access: &GuestAccess, precise: bool) -> kvm_x86_mce {
        // IA32_MCG_STATUS.
        const RESTART_POINTER_VALID: u64 = 1 << 0;
        const ERROR_POINTER_VALID: u64 = 1 << 1;
        const IN_PROGRESS: u64 = 1 << 2;
        const LOCAL: u64 = 1 << 3;
        // IA32_MCi_STATUS.
        const VALID: u64 = 1 << 63;
        const UNCORRECTED: u64 = 1 << 61;
        const ENABLED: u64 = 1 << 60;
        const MISC_VALID: u64 = 1 << 59;
        const ADDRESS_VALID: u64 = 1 << 58;
        const SIGNALLED: u64 = 1 << 56;
        const ACTION_REQUIRED: u64 = 1 << 55;
        const AMD_POISON: u64 = 1 << 43;
        // IA32_MCi_MISC: the address is a physical one, with all bits valid.
        const PHYSICAL_ADDRESS: u64 = 2 << 6;
        // "Cache hierarchy errors", level 0: the kinds of request and transaction.
        let code = match access.operation {
            Operation::Read => 0x134,
            Operation::Write => 0x144,
            Operation::Fetch => 0x150,
        };
        let pointer = if precise { RESTART_POINTER_VALID | ERROR_POINTER_VALID } else { 0 };
        let is_local = self.capabilities & mcg_cap::LMCE_P != 0;
        let local = if is_local { LOCAL } else { 0 };
        // The banks of the data and instruction units, in the vendor's order.
        let (specific, misc, data_bank) = match self.vendor {
            Vendor::Amd => (AMD_POISON, 0, 0),
            Vendor::Intel => (SIGNALLED | ACTION_REQUIRED | MISC_VALID, PHYSICAL_ADDRESS, 1),
        };
        let is_fetch = access.operation == Operation::Fetch;
        kvm_x86_mce {
            status: VALID | UNCORRECTED | ENABLED | ADDRESS_VALID | specific | code,
            addr: access.address,
            misc,
            mcg_status: IN_PROGRESS | pointer | local,
            bank: if is_fetch { 1 - data_bank } else { data_bank },
            ..Default::default()
        }
    }
}

/// Enables local machine checks, as firmware does: they are delivered to one vCPU only. Otherwise Linux has
/// all vCPUs rendezvous at each machine check.
fn enable_local_machine_checks(vcpu: &VcpuFd, has_vmx: bool) -> Result<(), VcpuError> {
    const IA32_FEATURE_CONTROL: u32 = 0x3a;
    const LOCKED: u64 = 1 << 0;
    const VMX_OUTSIDE_SMX: u64 = 1 << 2;
    const LOCAL_MACHINE_CHECKS: u64 = 1 << 20;
    let vmx = if has_vmx { VMX_OUTSIDE_SMX } else { 0 };
    let data = LOCKED | LOCAL_MACHINE_CHECKS | vmx;
    let entry = kvm_msr_entry { index: IA32_FEATURE_CONTROL, data, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry]).expect("one MSR is not too many");
    match vcpu.set_msrs(&msrs).map_err(VcpuError::ioctl("KVM_SET_MSRS"))? {
        1 => Ok(()),
        _ => Err(VcpuError::MsrRefused(IA32_FEATURE_CONTROL)),
    }
}

fn check(name: &'static str, result: libc::c_int) -> Result<(), VcpuError> {
    if result < 0 {
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        return Err(VcpuError::ioctl(name)(kvm_ioctls::Error::new(errno)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::pci::AddressSpace;

    fn event(vendor: Vendor, operation: Operation, precise: bool) -> kvm_x86_mce {
        let capabilities = match vendor {
            Vendor::Amd => mcg_cap::BANKS,
            Vendor::Intel => mcg_cap::BANKS | mcg_cap::LMCE_P,
        };
        let checks = MachineChecks { vendor, capabilities };
        let space = AddressSpace::Memory;
        let access = GuestAccess { space, address: 0x1_4000_0123, size: 8, operation, value: None };
        checks.event(&access, precise)
    }

    #[test]
    fn intel_gets_a_local_recoverable_error() {
        let read = event(Vendor::Intel, Operation::Read, true);
        // VAL, UC, EN, MISCV, ADDRV, S, AR; data load. MCIP, EIPV, RIPV, LMCE_S.
        assert_eq!((read.status, read.mcg_status), (0xbd80_0000_0000_0134, 0xf));
        assert_eq!((read.bank, read.addr, read.misc), (1, 0x1_4000_0123, 0x80));
        let fetch = event(Vendor::Intel, Operation::Fetch, true);
        assert_eq!((fetch.status & 0xffff, fetch.bank), (0x150, 0));
    }

    #[test]
    fn amd_gets_a_poison_error() {
        let write = event(Vendor::Amd, Operation::Write, false);
        // VAL, UC, EN, ADDRV, Poison; data write. MCIP, and nothing of the instruction.
        assert_eq!((write.status, write.mcg_status), (0xb400_0800_0000_0144, 0x4));
        assert_eq!((write.bank, write.addr), (0, 0x1_4000_0123));
        assert_eq!(event(Vendor::Amd, Operation::Fetch, true).bank, 1);
    }
}
