//! F17: a function that user space uses is not taken away from it.

use super::{
    PAGE, Told,
    groups::{VFIO_PCI, alone, with_user},
};
use crate::{
    guest::{GuestError, VfioDevice, VfioInterrupt, Width, Writing},
    report::Observations,
    vm::Vm,
};

/// F17: who takes vfio-pci away from a function waits until nobody has it open or mapped, a forked child
/// included. VFIO asks for it as often as every 10 seconds, so that a user who listens can give it back:
/// after it has asked, waiting is certain. Control: when nobody has it, the wait is over.
pub fn unbind(vm: &Vm, seen: &mut Observations) -> Told {
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
            seen.check("open: VFIO asks for it", "yes", yes_if(asked.wait()? > 0))?;
            seen.check("open: unbind", "waits", waits_or_not(&unbinding)?)?;
            device.close()?;
            mapping.munmap()?;
            // It may have asked once more before.
            asked.count()?;
            let tried = "closed, mapped by a child: VFIO asks for it";
            seen.check(tried, "yes", yes_if(asked.wait()? > 0))?;
            seen.check("closed, mapped by a child: unbind", "waits", waits_or_not(&unbinding)?)?;
            child.stop()?;
            let ended = if unbinding.ends()? { "ends" } else { "waits" };
            seen.control("closed, no longer mapped: unbind", "ends", ended)?;
            let bound = if function.is_bound()? { "bound" } else { "not bound" };
            Ok(seen.control("closed, no longer mapped: function", "not bound", bound)?)
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
