//! P4 to P10: what becomes of mappings of a BAR that are held when a driver claims it.
//!
//! "/dev/mem: Revoke mappings when a driver claims the region" (Linux 5.8), and "resource: Move
//! devmem revoke code to resource framework" and its like (5.12), which brought sysfs and procfs
//! under it. `revoke_iomem()` leaves out what the policy allows anyhow: with `iomem=relaxed` the
//! mappings survive, which is the control.

use testvm::{
    PAGE,
    guest::{Mapping, Sharing, Width},
    vm::{Vm, VmError},
};

use crate::{
    framework::{Case, CaseResult, Expect as _, Finding, Profile, Recorder, Requirement, Scenario},
    suites::{
        pci_bar::bar::{Bar, Way},
        virtio_mem::dev_mem::DevMem,
    },
};

/// P4: a process that holds a mapping of the BAR by sysfs gets SIGBUS, for reads and for writes, each
/// time.
pub fn held_by_sysfs(vm: &Vm, t: &mut Recorder) -> CaseResult {
    held(vm, t, Way::Sysfs)?;
    if Bar::driven(vm)?.ways()?.contains(&Way::WriteCombining) {
        held(vm, t, Way::WriteCombining)?;
    }
    Ok(None)
}

/// P5: the same by /dev/mem.
pub fn held_by_dev_mem(vm: &Vm, t: &mut Recorder) -> CaseResult {
    held(vm, t, Way::DevMem).map(|()| None)
}

/// P6: the same by procfs.
pub fn held_by_procfs(vm: &Vm, t: &mut Recorder) -> CaseResult {
    held(vm, t, Way::Procfs).map(|()| None)
}

/// Controls: before the driver claims the BAR, OK; relaxed, OK.
fn held(vm: &Vm, t: &mut Recorder, way: Way) -> Result<(), VmError> {
    let bar = Bar::driven(vm)?;
    let held = bar.map(way)?;
    t.when(format_args!("before bind, by {way}"));
    t.control("read", bar.identity(), bar.read(&held))?;
    t.control("write", Finding::Done, bar.write(&held))?;

    bar.claim()?;
    let before = bar.accesses(vm);
    t.when(format_args!("held across bind, by {way}"));
    for again in ["", ", again"] {
        let torn_down = way.torn_down().otherwise(bar.identity());
        t.check_claim(format_args!("read{again}"), torn_down, bar.read(&held))?;
        t.check_claim(format_args!("write{again}"), way.torn_down(), bar.write(&held))?;
    }
    if !t.is_relaxed() {
        let none = Finding::Count(0).by(way.torn_down_by()).otherwise_anything();
        t.check_count("accesses that the host sees", none, accesses_since(&bar, vm, before));
    }
    bar.release()?;
    Ok(())
}

fn accesses_since(bar: &Bar, vm: &Vm, before: Option<u64>) -> Option<u64> {
    Some(bar.accesses(vm)? - before?)
}

/// P7: a child that was forked before the driver came, and uses the BAR all the while by a mapping
/// that it inherited, dies of SIGBUS. Controls: it used the BAR before; relaxed, it lives.
pub fn inherited(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let bar = Bar::driven(vm)?;
    let held = bar.map(Way::Sysfs)?;
    let polling = held.start_polling(0, Width::Long)?;
    bar.claim()?;
    let polled = polling.stop()?;

    let accesses = if polled.accesses > 0 { "some" } else { "none" };
    t.when("before bind");
    t.control("accesses of a child that polls", "some", accesses)?;
    t.when("held across bind");
    t.check_claim("a child that polls", Way::Sysfs.torn_down(), Ok(polled))?;
    bar.release()?;
    Ok(None)
}

/// P8: of one mapping that covers two BARs only the claimed one is torn down. Control: the other.
pub fn two_bars(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let (claimed, idle) = (Bar::driven(vm)?, Bar::idle(vm)?);
    let start = claimed.range.start.min(idle.range.start);
    let end = claimed.range.end.max(idle.range.end);
    let held = DevMem::open(&vm.guest)?.map_pages(start, (end - start) / PAGE)?;
    claimed.claim()?;

    t.when("one mapping of two BARs, held across bind");
    let torn_down = Way::DevMem.torn_down().otherwise(claimed.identity());
    let read = claimed.read_at(&held, claimed.range.start - start);
    t.check_claim("read, claimed one", torn_down, read)?;
    let read = idle.read_at(&held, idle.range.start - start);
    t.control("read, idle one", idle.identity(), read)?;
    claimed.release()?;
    Ok(None)
}

/// P9: a page of a private mapping that the process has written to is its own copy, in its own
/// memory, and is torn down too. Controls: before the driver comes, what was written; relaxed too.
pub fn copied_page(vm: &Vm, t: &mut Recorder) -> CaseResult {
    const MARK: u32 = 0x600d_c0de;
    let bar = Bar::driven(vm)?;
    let copy: Mapping = bar.map_as(Way::DevMem, Sharing::Private)?.in_process();
    copy.poke_u32(0, MARK)?;
    t.when("before bind");
    t.control("read, copied page", MARK, copy.peek_u32(0))?;

    bar.claim()?;
    t.when("held across bind");
    let torn_down = Way::DevMem.torn_down().otherwise(MARK);
    t.check_claim("read, copied page", torn_down, copy.peek_u32(0))?;
    bar.release()?;
    Ok(None)
}

/// P10: when the driver has gone the mapping stays torn down. Control: a new one, OK.
pub fn after_release(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let bar = Bar::driven(vm)?;
    for way in bar.ways()? {
        let held = bar.map(way)?;
        bar.claim()?;
        bar.release()?;
        bar.function.decode_memory()?;
        t.when(format_args!("held across bind and unbind, by {way}"));
        let torn_down = way.torn_down().otherwise(bar.identity());
        t.check_claim("read", torn_down, bar.read(&held))?;
        t.check("munmap", Finding::Done, held.munmap())?;

        let new = bar.map(way)?;
        t.when(format_args!("mapped after unbind, by {way}"));
        t.control("read", bar.identity(), bar.read(&new))?;
        new.munmap()?;
    }
    Ok(None)
}

const BARS: &[Requirement] = &[Requirement::DevMem, Requirement::VirtioPci];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "P4",
        title: "a held mapping of a BAR by sysfs is torn down when a driver claims it",
        requires: BARS,
        cases: &[
            Case::InGuest(Profile::Plain, held_by_sysfs),
            Case::InGuest(Profile::Relaxed, held_by_sysfs),
        ],
    },
    Scenario {
        id: "P5",
        title: "a held mapping of a BAR by /dev/mem is torn down when a driver claims it",
        requires: BARS,
        cases: &[
            Case::InGuest(Profile::Plain, held_by_dev_mem),
            Case::InGuest(Profile::Relaxed, held_by_dev_mem),
        ],
    },
    Scenario {
        id: "P6",
        title: "a held mapping of a BAR by procfs is torn down when a driver claims it",
        requires: BARS,
        cases: &[
            Case::InGuest(Profile::Plain, held_by_procfs),
            Case::InGuest(Profile::Relaxed, held_by_procfs),
        ],
    },
    Scenario {
        id: "P7",
        title: "a mapping that a child has inherited, and uses, is torn down too",
        requires: BARS,
        cases: &[
            Case::InGuest(Profile::Plain, inherited),
            Case::InGuest(Profile::Relaxed, inherited),
        ],
    },
    Scenario {
        id: "P8",
        title: "of a mapping of two BARs only the claimed one is torn down",
        requires: BARS,
        cases: &[
            Case::InGuest(Profile::Plain, two_bars),
            Case::InGuest(Profile::Relaxed, two_bars),
        ],
    },
    Scenario {
        id: "P9",
        title: "a private copy of a page of a BAR is torn down too",
        requires: BARS,
        cases: &[
            Case::InGuest(Profile::Plain, copied_page),
            Case::InGuest(Profile::Relaxed, copied_page),
        ],
    },
    Scenario {
        id: "P10",
        title: "a mapping that was torn down stays so when the driver has gone",
        requires: BARS,
        cases: &[
            Case::InGuest(Profile::Plain, after_release),
            Case::InGuest(Profile::Relaxed, after_release),
        ],
    },
];
