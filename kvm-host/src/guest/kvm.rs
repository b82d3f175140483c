//! The KVM machines that the emulated host always has.

use anyhow::Context;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// Makes two machines, to be held for as long as the emulated host runs.
///
/// When the first KVM machine comes or the last one goes, the kernel patches its scheduler, and an
/// emulated CPU may run the half-patched code for ever. KVM does the same to itself for the first CPU
/// without a local APIC, and for the first whose APIC is off. So one of each is always there.
pub fn hold_machines() -> anyhow::Result<[(VmFd, VcpuFd); 2]> {
    let make = |has_apic| {
        let machine = Kvm::new()?.create_vm()?;
        if has_apic {
            machine.create_irq_chip()?;
        }
        let cpu = machine.create_vcpu(0)?;
        Ok::<_, kvm_ioctls::Error>((machine, cpu))
    };
    Ok([
        make(false).context("the emulated host has no usable KVM")?,
        make(true).context("the emulated host's KVM makes no interrupt controller")?,
    ])
}
