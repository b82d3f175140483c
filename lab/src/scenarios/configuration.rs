//! VM21 and VM22: who may have a kernel without the protection, and policy that goes further.

use super::{Told, dev_mem::DevMem};
use crate::{
    guest::Errno,
    kernel::{GuestKernel, KernelConfig},
    report::{Finding, Observations},
    vm::{Vm, VmError},
};

/// VM21: VIRTIO_MEM depends on EXCLUSIVE_SYSTEM_RAM, which depends on `!DEVMEM || STRICT_DEVMEM`
/// ("virtio-mem: disallow mapping virtio-mem memory via /dev/mem").
/// Control: the kernel's own configuration, in which both are on.
pub fn strict_or_absent(kernel: &GuestKernel, seen: &mut Observations) -> Result<(), VmError> {
    let virtio_mem = |config: Option<&KernelConfig>| match config {
        Some(config) if config.is_on("VIRTIO_MEM") => "on",
        Some(_) => "off",
        None => "no such configuration",
    };
    let other = |name| virtio_mem(kernel.other_configs().get(name));
    seen.check("STRICT_DEVMEM=n: VIRTIO_MEM", "off", other("strict-devmem-off"))?;
    seen.check("DEVMEM=n: VIRTIO_MEM", "on", other("devmem-off"))?;
    let own = virtio_mem(kernel.config());
    Ok(seen.control("DEVMEM=y, STRICT_DEVMEM=y: VIRTIO_MEM", "on", own)?)
}

/// VM22: `open_port()` asks `security_locked_down(LOCKDOWN_DEV_MEM)`: EPERM.
pub fn dev_mem_under_lockdown(vm: &Vm, seen: &mut Observations) -> Told {
    seen.check(
        "lockdown=integrity: open /dev/mem",
        Errno::EPERM,
        DevMem::open(&vm.guest).map(drop),
    )?;
    Ok(None)
}

/// VM22, control: without it, OK.
pub fn dev_mem_without_lockdown(vm: &Vm, seen: &mut Observations) -> Told {
    seen.control("open /dev/mem", Finding::Done, DevMem::open(&vm.guest).map(drop))?;
    Ok(None)
}
