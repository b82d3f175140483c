//! P1 to P3: what user space gets of a BAR, before a driver claims it and afterwards.
//!
//! A claim is `request_region()`'s, BUSY in /proc/iomem. With IO_STRICT_DEVMEM what is BUSY is
//! exclusive, unless `iomem=relaxed`: `iomem_is_exclusive()`, which `devmem_is_allowed()`,
//! `pci_mmap_resource()` and, since Linux 5.12, `proc_bus_pci_mmap()` ask.

use testvm::{MIB, guest::Errno, vm::Vm};

use crate::{
    framework::{Case, CaseResult, Finding, Profile, Recorder, Requirement, Scenario, after_load},
    suites::{
        pci_bar::bar::{Bar, Way},
        virtio_mem::dev_mem::DevMem,
    },
};

/// P1: no driver has claimed it, so it can be mapped in every way, and read.
/// Control: RAM cannot be mapped.
pub fn idle(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let bar = Bar::idle(vm)?;
    for (way, mapping) in bar.map_every_way()? {
        t.when(format_args!("idle BAR by {way}"));
        t.check("identity", bar.identity(), bar.read(&mapping))?;
        mapping.munmap()?;
    }
    let ram = DevMem::open(&vm.guest)?.map(32 * MIB);
    t.when("RAM by /dev/mem");
    t.control("mmap", Errno::EPERM, ram)?;
    Ok(None)
}

/// P2: EPERM by /dev/mem, EINVAL by sysfs and procfs. Controls: before the driver claims it, OK;
/// relaxed, OK.
pub fn claimed(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let bar = Bar::driven(vm)?;
    t.when("before bind");
    for way in bar.ways()? {
        t.control(format_args!("mmap by {way}"), Finding::Done, bar.map(way))?;
    }
    bar.claim()?;
    t.when("claimed BAR");
    for way in bar.ways()? {
        t.check_claim(format_args!("mmap by {way}"), way.refused(), bar.map(way))?;
    }
    bar.release()?;
    Ok(None)
}

/// P3: `read_mem()` compares with `high_memory` first, which is below every BAR while all RAM is:
/// EFAULT. Memory that is plugged at 4 GiB has it above them: then EPERM if the BAR is claimed.
/// Control: if it is idle, OK.
pub fn read(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let bar = Bar::driven(vm)?;
    let mem = DevMem::open(&vm.guest)?;
    let registers = bar.range.start;
    t.when("RAM below the BAR");
    t.check("pread, idle BAR", Errno::EFAULT, mem.read(registers))?;
    bar.claim()?;
    t.check("pread, claimed BAR", Errno::EFAULT, mem.read(registers))?;
    after_load(move |_, t| {
        t.when("RAM above the BAR");
        bar.release()?;
        bar.claim()?;
        t.check_claim("pread, claimed BAR", Way::DevMem.refused(), mem.read(registers))?;
        bar.release()?;
        t.control("pread, idle BAR", Finding::Done, mem.read(registers))
    })
}

const BARS: &[Requirement] = &[Requirement::DevMem, Requirement::VirtioPci];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "P1",
        title: "a BAR that no driver has claimed is open",
        requires: &[Requirement::DevMem],
        cases: &[Case::InGuest(Profile::Plain, idle)],
    },
    Scenario {
        id: "P2",
        title: "a BAR that a driver has claimed is closed, by /dev/mem, sysfs and procfs",
        requires: BARS,
        cases: &[Case::InGuest(Profile::Plain, claimed), Case::InGuest(Profile::Relaxed, claimed)],
    },
    Scenario {
        id: "P3",
        title: "read of /dev/mem reaches a BAR only if there is RAM above it and no claim",
        requires: &[Requirement::Driver, Requirement::DevMem, Requirement::VirtioPci],
        cases: &[Case::InGuest(Profile::Plain, read), Case::InGuest(Profile::Relaxed, read)],
    },
];
