//! F17: a function that user space uses is not taken away from it.

use testvm::{
    PAGE,
    guest::{GuestError, VfioDevice, VfioInterrupt, Width, Writing},
    vm::Vm,
};

use crate::{
    framework::{Case, CaseResult, Profile, Recorder, Requirement, Scenario},
    suites::iommu_group::members::{VFIO_PCI, alone, with_user},
};

/// F17: a write to `unbind` of vfio-pci waits until no process has the function open or mapped, a forked
/// child included. VFIO asks the user to release it every 10 seconds, by an eventfd: after it has asked,
/// the write is certain to wait. Control: when no process has the function, the write ends.
pub fn unbind(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let function = alone(vm)?;
    function.bind(VFIO_PCI)?;
    with_user(vm, |user| {
        let device = VfioDevice::open(user, &function)?;
        let asked = user.create_event_fd()?;
        device.enable_interrupts(VfioInterrupt::Request, &[&asked])?;
        let mapping = device.map(vm.vmm().endpoints().idle.bar, PAGE)?;
        let child = mapping.start_polling(0, Width::Long)?;
        with_user(vm, |other| {
            let unbinding = other
                .start_write(&function.file("driver/unbind"), function.address().to_string())?;
            t.when("open");
            t.check("VFIO asks for it", "yes", yes_if(asked.wait()? > 0))?;
            t.check("unbind", "waits", waits_or_not(&unbinding)?)?;
            device.close()?;
            mapping.munmap()?;
            // It may have asked once more before.
            asked.count()?;
            t.when("closed, mapped by a child");
            t.check("VFIO asks for it", "yes", yes_if(asked.wait()? > 0))?;
            t.check("unbind", "waits", waits_or_not(&unbinding)?)?;
            child.stop()?;
            let ended = if unbinding.ends()? { "ends" } else { "waits" };
            t.when("closed, no longer mapped");
            t.control("unbind", "ends", ended)?;
            let bound = if function.is_bound()? { "bound" } else { "not bound" };
            t.control("function", "not bound", bound)
        })
    })?;
    Ok(None)
}

fn yes_if(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

fn waits_or_not(unbinding: &Writing) -> Result<&'static str, GuestError> {
    Ok(if unbinding.has_ended()? { "has ended" } else { "waits" })
}

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[Scenario {
    id: "F17",
    title: "a function that user space uses by VFIO is not taken from it",
    requires: &[Requirement::Vfio],
    cases: &[Case::Last(Profile::Iommu, unbind)],
}];
