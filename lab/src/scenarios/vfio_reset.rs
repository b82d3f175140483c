//! F10 and F11: resets that the user of a function asks VFIO for.

use super::{
    PAGE, Told,
    assigned::{COMMAND, INTX_DISABLE, MEMORY, with_assigned},
    vfio_memory::TORN_DOWN,
};
use crate::{
    guest::{Denial, VfioInterrupt::MsiX, Width},
    report::{Finding, Observations, Protection},
    vm::Vm,
};

/// F10: after a reset the user has the function as before, but for what a reset clears: the same mapping
/// works, and the same interrupts. Where memory was not decoded it is not.
/// Controls: what was written before the reset reads before, and not after.
pub fn reset(vm: &Vm, seen: &mut Observations) -> Told {
    const MARK: u32 = 0x600d_c0de;
    with_assigned(vm, |assigned| {
        let held = assigned.map_and_use()?;
        let scratch = || held.peek_u32(assigned.scratch());
        let table = assigned.msix_table()?;
        let held_table = assigned.device.map(table.bar, PAGE)?;
        let message_address = || held_table.peek_u32(table.offset);
        let event = assigned.user.create_event_fd()?;
        assigned.device.enable_interrupts(MsiX, &[&event])?;
        // Turning MSI-X on, the kernel disables INTx, and VFIO puts the register back as it was. After a
        // reset only the kernel has its say.
        let command = || Ok(assigned.physical_command()? & !INTX_DISABLE);
        let (address, command_before) = (message_address()?, command()?);
        held.poke_u32(assigned.scratch(), MARK)?;
        seen.control("before: what was written", MARK, scratch())?;
        seen.check("reset", Finding::Done, assigned.device.reset())?;
        seen.control("after: what was written", 0_u32, scratch())?;
        seen.check("after: load", assigned.identity(), assigned.load(&held))?;
        seen.check("after: command register", command_before, command())?;
        seen.check("after: message address", address, message_address())?;
        held.poke_u32(INTERRUPT, 0)?;
        seen.check("after, raised: events", 1_u64, event.wait())?;
        assigned.disable_memory()?;
        seen.check("not decoded: reset", Finding::Done, assigned.device.reset())?;
        seen.check("not decoded, reset: memory", "not decoded", assigned.decoding()?)?;
        let (tried, load) = ("not decoded, reset: load", assigned.load(&held));
        Ok(seen.check_with(TORN_DOWN, tried, Denial::SIGBUS, Finding::Done, load)?)
    })
}

/// docs/probe.md: raises a vector.
const INTERRUPT: u64 = 0x100;

/// F11: who uses a mapping all the while a reset lasts makes no access until it is over.
/// Control: decoding is turned off behind VFIO's back, and accesses do go astray.
pub fn used_in_a_reset(vm: &Vm, seen: &mut Observations) -> Told {
    const STRAY: &str = "accesses that reach nothing";
    with_assigned(vm, |assigned| {
        let held = assigned.map_and_use()?;
        let refused = || assigned.accesses(vm).map(|accesses| accesses.refused);
        let before = refused();
        let polling = held.start_polling(0, Width::Long)?;
        assigned.device.reset()?;
        seen.check("used in a reset: the user", Finding::Done, Ok(polling.stop()?))?;
        let since = || Some(refused()? - before?);
        if !seen.lacks(Protection::VfioZap) {
            seen.check_count(format!("used in a reset: {STRAY}"), 0, since())?;
        }
        let before = refused();
        let command = assigned.physical_command()?;
        let polling = held.start_polling(0, Width::Long)?;
        assigned.function.write_config(COMMAND, &(command & !MEMORY).to_le_bytes())?;
        polling.stop()?;
        assigned.function.write_config(COMMAND, &command.to_le_bytes())?;
        let some = if refused() > before { "some" } else { "none" };
        Ok(seen.control(format!("turned off behind VFIO's back: {STRAY}"), "some", some)?)
    })
}
