//! VM11 to VM13: what becomes of mappings of the region that are held when the driver comes.
//!
//! "/dev/mem: Revoke mappings when a driver claims the region" (Linux 5.8): `__request_region()`
//! calls `revoke_iomem()`, which tears down every mapping of the claimed range. Nothing can fault
//! it in again. All of it is compiled out without IO_STRICT_DEVMEM: such a kernel is the
//! control, run with `--expect-without io-strict-devmem`.

use testvm::{
    MIB, PAGE,
    guest::{Denial, Errno, OpenFlags},
    vm::Vm,
};

use crate::{
    framework::{
        Case, CaseResult, Expect as _, Finding, Mitigation, Profile, Recorder, Requirement,
        Scenario, after_load,
    },
    suites::virtio_mem::dev_mem::{DevMem, first_page, last_page, page_below},
};

/// A kernel that was built without IO_STRICT_DEVMEM tears nothing down.
const BY: &[Mitigation] = &[Mitigation::IoStrictDevmem];

/// VM11: SIGBUS for reads and writes, again and again, with iomem=relaxed too: what is SYSTEM_RAM
/// is not allowed in any case, and so `revoke_iomem()` does not leave out the region.
/// Controls: before load, OK; the page beside the region of the same mapping, OK.
pub fn held_mappings(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    let region = vm.region();
    let first = mem.map(first_page(&region))?;
    let last = mem.map(last_page(&region))?;
    let across = mem.map_pages(page_below(&region), 2)?;
    t.when("before load");
    t.control("read, held first page", Finding::Done, first.peek_u32(0))?;
    t.control("write, held last page", Finding::Done, last.poke_u32(0, 1))?;
    t.control("read, held page across", Finding::Done, across.peek_u32(PAGE))?;
    after_load(move |vm, t| {
        let writes = |vm: &Vm| vm.counters().map(|counters| counters.violations.writes);
        let before = writes(vm);
        t.when("held across load");
        for again in ["", ", again"] {
            let torn_down = || Denial::SIGBUS.by(BY);
            t.check(format_args!("read, first page{again}"), torn_down(), first.peek_u32(0))?;
            t.check(format_args!("write, last page{again}"), torn_down(), last.poke_u32(0, 1))?;
            let read = across.peek_u32(PAGE);
            t.check(format_args!("read, page across the start{again}"), torn_down(), read)?;
        }
        let written = before.zip(writes(vm)).map(|(before, after)| after - before);
        let expected = Finding::Count(0).by(BY).otherwise(Finding::Count(2));
        t.check_count("writes to unplugged memory that the host sees", expected, written);
        t.control("read, page below", Finding::Done, across.peek_u32(0))?;
        t.clear_state();
        t.check("mmap anew, first page", Errno::EPERM, mem.map(first_page(&region)))
    })
}

/// VM11: still SIGBUS when the driver has gone and left the region open.
/// Control: a new mapping, OK.
pub fn held_mapping_after_unload(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    let last = last_page(&vm.region());
    let held = mem.map(last)?;
    t.when("before load");
    t.control("read, held last page", Finding::Done, held.peek_u32(0))?;
    after_load(move |vm, t| {
        vm.resize(256 * MIB)?;
        vm.resize(0)?;
        vm.unload_driver()?;
        t.when("held, after a clean unload");
        t.check("read, last page", Denial::SIGBUS.by(BY), held.peek_u32(0))?;
        let new = mem.map(last)?;
        t.when("mapped after a clean unload");
        t.control("read, last page", Finding::Done, new.peek_u32(0))?;
        new.munmap()?;
        vm.load_driver()
    })
}

/// VM12: a page of a private mapping that the process has written to is its own copy, in its own
/// memory, and `unmap_mapping_range()` tears down copies too (`even_cows`): SIGBUS.
/// Control: before load, what was written.
pub fn copied_page(vm: &Vm, t: &mut Recorder) -> CaseResult {
    const MARK: u8 = 0xaa;
    let mem = DevMem::open(&vm.guest)?;
    let copy = mem.map_private(first_page(&vm.region()))?.in_process();
    copy.poke_u8(0, MARK)?;
    t.when("before load");
    t.control("read, copied page", MARK, copy.peek_u8(0))?;
    after_load(move |_, t| {
        t.when("held across load");
        t.check("read, copied page", Denial::SIGBUS.by(BY).otherwise(MARK), copy.peek_u8(0))
    })
}

/// VM13: read(2) into the mapping cannot store what it read: EFAULT. /proc/self/mem finds no page
/// for `generic_access_phys()`: EIO. Control: before load, both work.
pub fn access_by_the_kernel(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    // Unplugged: where the mapping survives, no memory in use is written to.
    let held = mem.map(last_page(&vm.region()))?;
    let file = mem.process.open("/init", OpenFlags::RDONLY)?;
    let own_memory = mem.process.open("/proc/self/mem", OpenFlags::RDONLY)?;
    t.when("before load");
    t.control("read(2) into held page", 4_u64, held.read_from(&file, 0, 0, 4))?;
    let by_kernel = own_memory.read_at(held.address(), 4);
    t.control("/proc/self/mem, held page", Finding::Done, by_kernel)?;
    after_load(move |_, t| {
        t.when("held across load");
        let stored = held.read_from(&file, 0, 0, 4);
        t.check("read(2) into last page", Errno::EFAULT.by(BY).otherwise(4_u64), stored)?;
        let by_kernel = own_memory.read_at(held.address(), 4);
        t.check("/proc/self/mem, last page", Errno::EIO.by(BY), by_kernel)
    })
}

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "VM11",
        title: "a held mapping of the region is torn down when the driver comes, for good",
        requires: &[Requirement::Driver, Requirement::DevMem],
        cases: &[
            Case::InGuest(Profile::Plain, held_mappings),
            Case::InGuest(Profile::Relaxed, held_mappings),
            Case::InGuest(Profile::Movable, held_mapping_after_unload),
        ],
    },
    Scenario {
        id: "VM12",
        title: "a private copy of a page of the region is torn down too",
        requires: &[Requirement::Driver, Requirement::DevMem],
        cases: &[Case::InGuest(Profile::Plain, copied_page)],
    },
    Scenario {
        id: "VM13",
        title: "the kernel itself does not reach the region through a torn-down mapping",
        requires: &[Requirement::Driver, Requirement::DevMem],
        cases: &[Case::InGuest(Profile::Plain, access_by_the_kernel)],
    },
];
