//! P4 to P10: what becomes of mappings of a BAR that are held when a driver claims it.
//!
//! "/dev/mem: Revoke mappings when a driver claims the region" (Linux 5.8), and "resource: Move
//! devmem revoke code to resource framework" and its like (5.12), which brought sysfs and procfs
//! under it. `revoke_iomem()` leaves out what the policy allows anyhow: with `iomem=relaxed` the
//! mappings survive, which is the control.

use super::{
    PAGE, Told,
    bar_exclusion::check_claimed,
    bars::{Bar, Way},
    dev_mem::DevMem,
};
use crate::{
    guest::{Denial, GuestError, Mapping, Sharing, Width},
    report::{Finding, Observations},
    vm::{Vm, VmError},
};

/// P4: the complaint in the thread of this work: a process that holds the BAR by way of sysfs gets
/// SIGBUS, for reads and for writes, again and again.
pub fn held_by_sysfs(vm: &Vm, seen: &mut Observations) -> Told {
    held(vm, seen, Way::Sysfs)?;
    if Bar::driven(vm)?.ways()?.contains(&Way::WriteCombining) {
        held(vm, seen, Way::WriteCombining)?;
    }
    Ok(None)
}

/// P5: the same by /dev/mem.
pub fn held_by_dev_mem(vm: &Vm, seen: &mut Observations) -> Told {
    held(vm, seen, Way::DevMem).map(|()| None)
}

/// P6: the same by procfs.
pub fn held_by_procfs(vm: &Vm, seen: &mut Observations) -> Told {
    held(vm, seen, Way::Procfs).map(|()| None)
}

/// Controls: before the driver claims the BAR, OK; relaxed, OK.
fn held(vm: &Vm, seen: &mut Observations, way: Way) -> Result<(), VmError> {
    let bar = Bar::driven(vm)?;
    let (held, name) = (bar.map(way)?, way.name());
    seen.control(format!("before bind, by {name}: read"), bar.identity(), bar.read(&held))?;
    seen.control(format!("before bind, by {name}: write"), Finding::Done, bar.write(&held))?;
    bar.claim()?;
    let before = bar.accesses(vm);
    for again in ["", ", again"] {
        let tried = format!("held across bind, by {name}: read{again}");
        check_held(seen, way, tried, bar.identity(), bar.read(&held))?;
        let tried = format!("held across bind, by {name}: write{again}");
        check_held(seen, way, tried, Finding::Done, bar.write(&held))?;
    }
    if is_torn_down(seen, way) {
        let tried = format!("held across bind, by {name}: accesses that the host sees");
        seen.check_count(tried, 0, accesses_since(&bar, vm, before))?;
    }
    bar.release()?;
    Ok(())
}

/// What becomes of a held mapping, and of one that survives.
fn check_held<T>(
    seen: &mut Observations,
    way: Way,
    tried: impl Into<String>,
    otherwise: Finding,
    observed: Result<T, GuestError>,
) -> Result<(), GuestError>
where
    Finding: From<T>,
{
    check_claimed(seen, way.torn_down_by(), tried, Denial::SIGBUS, otherwise, observed)
}

fn is_torn_down(seen: &Observations, way: Way) -> bool {
    !seen.is_relaxed() && !way.torn_down_by().iter().any(|&protection| seen.lacks(protection))
}

fn accesses_since(bar: &Bar, vm: &Vm, before: Option<u64>) -> Option<u64> {
    Some(bar.accesses(vm)? - before?)
}

/// P7: a child that was forked before the driver came, and uses the BAR all the while by a mapping
/// that it inherited, dies of SIGBUS. Controls: it used the BAR before; relaxed, it lives.
pub fn inherited(vm: &Vm, seen: &mut Observations) -> Told {
    let way = Way::Sysfs;
    let bar = Bar::driven(vm)?;
    let held = bar.map(way)?;
    let polling = held.start_polling(0, Width::Long)?;
    bar.claim()?;
    let polled = polling.stop()?;
    let accesses = if polled.accesses > 0 { "some" } else { "none" };
    seen.control("before bind: accesses of a child that polls", "some", accesses)?;
    let tried = "held across bind: a child that polls";
    check_held(seen, way, tried, Finding::Done, Ok(polled))?;
    bar.release()?;
    Ok(None)
}

/// P8: of one mapping that covers two BARs only the claimed one is torn down. Control: the other.
pub fn two_bars(vm: &Vm, seen: &mut Observations) -> Told {
    let (claimed, idle) = (Bar::driven(vm)?, Bar::idle(vm)?);
    let start = claimed.range.start.min(idle.range.start);
    let end = claimed.range.end.max(idle.range.end);
    let held = DevMem::open(&vm.guest)?.map_pages(start, (end - start) / PAGE)?;
    claimed.claim()?;
    let tried = "one mapping of two BARs, held across bind: read, claimed one";
    let read = claimed.read_at(&held, claimed.range.start - start);
    check_held(seen, Way::DevMem, tried, claimed.identity(), read)?;
    let tried = "one mapping of two BARs, held across bind: read, idle one";
    let read = idle.read_at(&held, idle.range.start - start);
    seen.control(tried, idle.identity(), read)?;
    claimed.release()?;
    Ok(None)
}

/// P9: a page of a private mapping that the process has written to is its own copy, in its own
/// memory, and is torn down too. Controls: before the driver comes, what was written; relaxed too.
pub fn copied_page(vm: &Vm, seen: &mut Observations) -> Told {
    const MARK: u32 = 0x600d_c0de;
    let bar = Bar::driven(vm)?;
    let copy: Mapping = bar.map_as(Way::DevMem, Sharing::Private)?.in_process();
    copy.poke_u32(0, MARK)?;
    seen.control("before bind: read, copied page", MARK, copy.peek_u32(0))?;
    bar.claim()?;
    let tried = "held across bind: read, copied page";
    check_held(seen, Way::DevMem, tried, MARK.into(), copy.peek_u32(0))?;
    bar.release()?;
    Ok(None)
}

/// P10: when the driver has gone the mapping stays torn down. Control: a new one, OK.
pub fn after_release(vm: &Vm, seen: &mut Observations) -> Told {
    let bar = Bar::driven(vm)?;
    for way in bar.ways()? {
        let name = way.name();
        let held = bar.map(way)?;
        bar.claim()?;
        bar.release()?;
        bar.function.decode_memory()?;
        let tried = format!("held across bind and unbind, by {name}: read");
        check_held(seen, way, tried, bar.identity(), bar.read(&held))?;
        let new = bar.map(way)?;
        seen.control(
            format!("mapped after unbind, by {name}: read"),
            bar.identity(),
            bar.read(&new),
        )?;
        seen.check(
            format!("held across bind and unbind, by {name}: munmap"),
            Finding::Done,
            held.munmap(),
        )?;
        new.munmap()?;
    }
    Ok(None)
}
