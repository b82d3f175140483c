//! VM21 and VM22: which configurations lack the protection, and which policy goes further.

use testvm::{
    guest::Errno,
    kernel::{GuestKernel, KernelConfig},
    vm::{Vm, VmError},
};

use crate::{
    framework::{Case, CaseResult, Finding, Profile, Recorder, Requirement, Scenario},
    suites::virtio_mem::dev_mem::DevMem,
};

/// VM21: VIRTIO_MEM depends on EXCLUSIVE_SYSTEM_RAM, which depends on `!DEVMEM || STRICT_DEVMEM`
/// ("virtio-mem: disallow mapping virtio-mem memory via /dev/mem").
/// Control: the kernel's own configuration, in which both are on.
pub fn strict_or_absent(kernel: &GuestKernel, t: &mut Recorder) -> Result<(), VmError> {
    let virtio_mem = |config: Option<&KernelConfig>| match config {
        Some(config) if config.is_on("VIRTIO_MEM") => "on",
        Some(_) => "off",
        None => "no such configuration",
    };
    let other = |name| virtio_mem(kernel.other_configs().get(name));
    t.when("STRICT_DEVMEM=n");
    t.check("VIRTIO_MEM", "off", other("strict-devmem-off"))?;
    t.when("DEVMEM=n");
    t.check("VIRTIO_MEM", "on", other("devmem-off"))?;
    let own = virtio_mem(kernel.config());
    t.when("DEVMEM=y, STRICT_DEVMEM=y");
    t.control("VIRTIO_MEM", "on", own)
}

/// VM22: `open_port()` asks `security_locked_down(LOCKDOWN_DEV_MEM)`: EPERM.
pub fn dev_mem_under_lockdown(vm: &Vm, t: &mut Recorder) -> CaseResult {
    t.when("lockdown=integrity");
    t.check("open /dev/mem", Errno::EPERM, DevMem::open(&vm.guest).map(drop))?;
    Ok(None)
}

/// VM22, control: without it, OK.
pub fn dev_mem_without_lockdown(vm: &Vm, t: &mut Recorder) -> CaseResult {
    t.control("open /dev/mem", Finding::Done, DevMem::open(&vm.guest).map(drop))?;
    Ok(None)
}

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "VM21",
        title: "a kernel has virtio-mem only if its /dev/mem is strict or absent",
        requires: &[Requirement::OtherConfigs],
        cases: &[Case::OfKernel(strict_or_absent)],
    },
    Scenario {
        id: "VM22",
        title: "lockdown closes /dev/mem",
        requires: &[Requirement::DevMem, Requirement::Lockdown],
        cases: &[
            Case::InGuest(Profile::Plain, dev_mem_without_lockdown),
            Case::InGuest(Profile::Lockdown, dev_mem_under_lockdown),
        ],
    },
];
