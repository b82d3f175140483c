//! P1 to P3: what user space gets of a BAR, before a driver claims it and afterwards.
//!
//! A claim is `request_region()`'s, BUSY in /proc/iomem. With IO_STRICT_DEVMEM what is BUSY is
//! exclusive, unless `iomem=relaxed`: `iomem_is_exclusive()`, which `devmem_is_allowed()`,
//! `pci_mmap_resource()` and, since Linux 5.12, `proc_bus_pci_mmap()` ask.

use super::{
    MIB, Told, after_load,
    bars::{Bar, Way},
    dev_mem::DevMem,
};
use crate::{
    guest::{Errno, GuestError},
    report::{Finding, Observations, Observe, Protection},
    vm::Vm,
};

/// What a kernel does that looks at claims and has these protections, and what one does otherwise.
/// Told not to look, every kernel is its own control.
pub fn check_claimed(
    seen: &mut Observations,
    protections: &[Protection],
    tried: impl Into<String>,
    expected: impl Into<Finding>,
    otherwise: impl Into<Finding>,
    observed: impl Observe,
) -> Result<(), GuestError> {
    match seen.is_relaxed() {
        true => seen.control(tried, otherwise, observed),
        false => seen.check_with(protections, tried, expected, otherwise, observed),
    }
}

/// P1: nobody has claimed it, so everything maps it, and what is there can be read.
/// Control: RAM cannot be mapped.
pub fn idle(vm: &Vm, seen: &mut Observations) -> Told {
    let bar = Bar::idle(vm)?;
    for way in bar.ways()? {
        let mapping = bar.map(way)?;
        let tried = format!("idle BAR by {}: identity", way.name());
        seen.check(tried, bar.identity(), bar.read(&mapping))?;
        mapping.munmap()?;
    }
    let ram = DevMem::open(&vm.guest)?.map(32 * MIB);
    seen.control("RAM by /dev/mem: mmap", Errno::EPERM, ram)?;
    Ok(None)
}

/// P2: EPERM by /dev/mem, EINVAL by sysfs and procfs. Controls: before the driver claims it, OK;
/// relaxed, OK.
pub fn claimed(vm: &Vm, seen: &mut Observations) -> Told {
    let bar = Bar::driven(vm)?;
    for way in bar.ways()? {
        let tried = format!("before bind: mmap by {}", way.name());
        seen.control(tried, Finding::Done, bar.map(way))?;
    }
    bar.claim()?;
    for way in bar.ways()? {
        let tried = format!("claimed BAR: mmap by {}", way.name());
        let mapping = bar.map(way);
        check_claimed(seen, way.refused_by(), tried, way.refusal(), Finding::Done, mapping)?;
    }
    bar.release()?;
    Ok(None)
}

/// P3: `read_mem()` compares with `high_memory` first, which is below every BAR while all RAM is:
/// EFAULT. Memory that is plugged at 4 GiB has it above them: then EPERM if the BAR is claimed.
/// Control: if it is idle, OK.
pub fn read(vm: &Vm, seen: &mut Observations) -> Told {
    let bar = Bar::driven(vm)?;
    let mem = DevMem::open(&vm.guest)?;
    let registers = bar.range.start;
    seen.check("RAM below the BAR: pread, idle BAR", Errno::EFAULT, mem.read(registers))?;
    bar.claim()?;
    seen.check("RAM below the BAR: pread, claimed BAR", Errno::EFAULT, mem.read(registers))?;
    after_load(move |_, seen| {
        let tried = "RAM above the BAR: pread, claimed BAR";
        bar.release()?;
        bar.claim()?;
        let by = Way::DevMem.refused_by();
        check_claimed(seen, by, tried, Errno::EPERM, Finding::Done, mem.read(registers))?;
        bar.release()?;
        let tried = "RAM above the BAR: pread, idle BAR";
        Ok(seen.control(tried, Finding::Done, mem.read(registers))?)
    })
}
