//! VM1 to VM8: what /dev/mem gives of the region, before the driver comes and afterwards.
//!
//! "virtio-mem: disallow mapping virtio-mem memory via /dev/mem" and "kernel/resource: disallow
//! access to exclusive system RAM regions", both of Linux 5.16. On x86 these checks alone do not
//! prove that work: `devmem_is_allowed()` refuses whatever is SYSTEM_RAM before it looks at
//! EXCLUSIVE, and the region's resource is both. They prove that the region is closed, not why.

use testvm::{
    MIB, PAGE,
    guest::{Errno, Guest, GuestError, OpenFlags},
    vm::{Vm, VmError},
};

use crate::{
    framework::{Case, CaseResult, Finding, Profile, Recorder, Requirement, Scenario, after_load},
    suites::virtio_mem::dev_mem::{
        DevMem, first_page, last_page, middle_page, page_above, page_below,
    },
};

/// VM1: no driver has claimed the region, so `devmem_is_allowed()` allows it: OK.
/// Control: when the driver has come, EPERM.
pub fn mmap_before_load(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    let region = vm.region();
    t.when("before load");
    t.check("mmap, first page", Finding::Done, mem.map(first_page(&region)))?;
    t.check("mmap, middle page", Finding::Done, mem.map(middle_page(&region)))?;
    t.check("mmap, last page", Finding::Done, mem.map(last_page(&region)))?;
    after_load(move |_, t| {
        t.control("mmap, first page", Errno::EPERM, mem.map(first_page(&region)))
    })
}

/// VM2: `read_mem()` and `write_mem()` compare with `high_memory` first: EFAULT.
/// Control: once the driver has added memory there and given it back, and gone, OK.
pub fn read_and_write_before_load(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    let first = first_page(&vm.region());
    t.when("before load");
    t.check("pread, first page", Errno::EFAULT, mem.read(first))?;
    t.check("pwrite, first page", Errno::EFAULT, mem.write(first))?;
    after_load(move |vm, t| {
        vm.resize(256 * MIB)?;
        vm.resize(0)?;
        vm.unload_driver()?;
        t.when("after a clean unload");
        t.control("pread, first page", Finding::Done, mem.read(first))?;
        t.control("pwrite, first page", Finding::Done, mem.write(first))?;
        vm.load_driver()
    })
}

/// VM3: `mmap_mem()` asks `devmem_is_allowed()`: EPERM. Control: before load, OK.
pub fn mmap_of_plugged_memory(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    let plugged = first_page(&vm.region());
    t.when("before load");
    t.control("mmap, first page", Finding::Done, mem.map(plugged))?;
    after_load(move |_, t| {
        t.check("mmap, plugged page", Errno::EPERM, mem.map(plugged))?;
        t.check("private mmap, plugged page", Errno::EPERM, mem.map_private(plugged))
    })
}

/// VM4: the driver claims the whole region, whatever is plugged: EPERM.
/// Control: the pages beside the region, OK.
pub fn mmap_of_the_rest_of_the_region(vm: &Vm, _: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    after_load(move |vm, t| {
        let region = vm.region();
        let (below, above) = (page_below(&region), page_above(&region));
        t.check("mmap, never plugged page", Errno::EPERM, mem.map(middle_page(&region)))?;
        t.check("mmap, last page", Errno::EPERM, mem.map(last_page(&region)))?;
        t.check("mmap across the region's start", Errno::EPERM, mem.map_pages(below, 2))?;
        t.control("mmap, page below the region", Finding::Done, mem.map(below))?;
        t.control("mmap, page above the region", Finding::Done, mem.map(above))
    })
}

/// VM5: 260 MiB end inside a memory block of 128 MiB, the rest of which is added, but unplugged and
/// offline to the page allocator (`virtio_mem_set_fake_offline()`): EPERM.
/// Control: before load, OK.
pub fn mmap_of_an_unplugged_subblock(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    let start = vm.region().start;
    let unplugged = start + 300 * MIB;
    t.when("before load");
    t.control("mmap, page at 300 MiB", Finding::Done, mem.map(unplugged))?;
    after_load(move |vm, t| {
        vm.resize(260 * MIB)?;
        let plugged = || page_state(&vm.guest, start + 258 * MIB);
        // /proc/iomem has memory before its pages are there.
        vm.wait_until("the page at 258 MiB is online", || Ok(plugged()? == "added, online"))?;
        let state = page_state(&vm.guest, unplugged)?;
        t.when("260 MiB plugged");
        t.check("page at 300 MiB", "added, offline", state)?;
        t.control("page at 258 MiB", "added, online", plugged()?)?;
        t.check("mmap, page at 300 MiB", Errno::EPERM, mem.map(unplugged))
    })
}

/// The state of a page of the guest by /proc/kpageflags: its Documentation/admin-guide/mm/
/// pagemap.rst.
fn page_state(guest: &Guest, address: u64) -> Result<&'static str, GuestError> {
    const NO_PAGE: u64 = 1 << 20;
    const OFFLINE: u64 = 1 << 23;
    let flags = guest.spawn()?.open("/proc/kpageflags", OpenFlags::RDONLY)?;
    let flags = flags.read_at(address / PAGE * 8, 8)?;
    let flags = flags.try_into().map_or(NO_PAGE, u64::from_le_bytes);
    Ok(match () {
        () if flags & NO_PAGE != 0 => "not added",
        () if flags & OFFLINE != 0 => "added, offline",
        () => "added, online",
    })
}

/// VM6: the driver claims the region before it plugs anything: EPERM. Control: before load, OK.
pub fn mmap_with_nothing_plugged(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    let region = vm.region();
    t.when("before load");
    t.control("mmap, first page", Finding::Done, mem.map(first_page(&region)))?;
    after_load(move |vm, t| {
        vm.resize(0)?;
        t.when("nothing plugged");
        t.check("mmap, first page", Errno::EPERM, mem.map(first_page(&region)))?;
        t.check("mmap, middle page", Errno::EPERM, mem.map(middle_page(&region)))?;
        t.check("mmap, last page", Errno::EPERM, mem.map(last_page(&region)))
    })
}

/// VM7: adding memory has raised `high_memory` above plugged pages: EPERM. The rest of the region
/// is beyond it: EFAULT. Control: before load, EFAULT for what is EPERM afterwards.
pub fn read_and_write(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    let region = vm.region();
    let (plugged, last) = (first_page(&region), last_page(&region));
    t.when("before load");
    t.control("pread, first page", Errno::EFAULT, mem.read(plugged))?;
    t.control("pwrite, first page", Errno::EFAULT, mem.write(plugged))?;
    after_load(move |_, t| {
        t.check("pread, plugged page", Errno::EPERM, mem.read(plugged))?;
        t.check("pwrite, plugged page", Errno::EPERM, mem.write(plugged))?;
        t.check("pread, last page", Errno::EFAULT, mem.read(last))?;
        t.check("pwrite, last page", Errno::EFAULT, mem.write(last))
    })
}

/// VM8, where nothing is relaxed: the registers of a device that a driver has claimed are closed.
/// `iomem_is_exclusive()` with IO_STRICT_DEVMEM: EPERM.
pub fn another_device_is_closed(vm: &Vm, _: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    after_load(move |vm, t| {
        let registers = claimed_registers(&vm.guest)?;
        t.control("mmap, registers of a claimed device", Errno::EPERM, mem.map(registers))
    })
}

/// VM8: VM3, VM4 and VM7 as ever. Control: the same registers, OK.
pub fn relaxed_for_other_devices_only(vm: &Vm, _: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    after_load(move |vm, t| {
        let region = vm.region();
        let plugged = first_page(&region);
        t.check("mmap, plugged page", Errno::EPERM, mem.map(plugged))?;
        t.check("mmap, never plugged page", Errno::EPERM, mem.map(middle_page(&region)))?;
        t.check("mmap, last page", Errno::EPERM, mem.map(last_page(&region)))?;
        let across = mem.map_pages(page_below(&region), 2);
        t.check("mmap across the region's start", Errno::EPERM, across)?;
        t.check("pread, plugged page", Errno::EPERM, mem.read(plugged))?;
        let registers = claimed_registers(&vm.guest)?;
        t.control("mmap, registers of a claimed device", Finding::Done, mem.map(registers))
    })
}

/// Where the registers of a device are that its driver has claimed: of one that ACPI declares as an
/// `LNRO0005`, under whose name virtio-mmio's claim is, or of a PCI function.
fn claimed_registers(guest: &Guest) -> Result<u64, VmError> {
    let iomem = guest.iomem()?;
    let claims = ["LNRO0005", "virtio-pci-modern"];
    let claim = iomem.iter().find(|claim| claims.iter().any(|name| claim.name.starts_with(name)));
    claim
        .map(|claim| *claim.range.start())
        .ok_or(VmError::Absent("claimed virtio device in /proc/iomem"))
}

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "VM1",
        title: "before the driver comes, /dev/mem maps the region",
        requires: &[Requirement::Driver, Requirement::DevMem],
        cases: &[Case::InGuest(Profile::Plain, mmap_before_load)],
    },
    Scenario {
        id: "VM2",
        title: "before the driver comes, read and write of /dev/mem do not reach the region",
        requires: &[Requirement::Driver, Requirement::DevMem],
        cases: &[Case::InGuest(Profile::Movable, read_and_write_before_load)],
    },
    Scenario {
        id: "VM3",
        title: "/dev/mem does not map plugged memory (on x86 for being RAM, EXCLUSIVE or not)",
        requires: &[Requirement::Driver, Requirement::DevMem],
        cases: &[Case::InGuest(Profile::Plain, mmap_of_plugged_memory)],
    },
    Scenario {
        id: "VM4",
        title: "/dev/mem maps no part of the region, and all that is beside it",
        requires: &[Requirement::Driver, Requirement::DevMem],
        cases: &[Case::InGuest(Profile::Plain, mmap_of_the_rest_of_the_region)],
    },
    Scenario {
        id: "VM5",
        title: "/dev/mem does not map what is unplugged in a memory block that is added",
        requires: &[Requirement::Driver, Requirement::DevMem, Requirement::PageFlags],
        cases: &[Case::InGuest(Profile::Movable, mmap_of_an_unplugged_subblock)],
    },
    Scenario {
        id: "VM6",
        title: "/dev/mem maps no part of a region in which nothing is plugged",
        requires: &[Requirement::Driver, Requirement::DevMem],
        cases: &[Case::InGuest(Profile::Offline, mmap_with_nothing_plugged)],
    },
    Scenario {
        id: "VM7",
        title: "read and write of /dev/mem do not reach the region",
        requires: &[Requirement::Driver, Requirement::DevMem],
        cases: &[Case::InGuest(Profile::Plain, read_and_write)],
    },
    Scenario {
        id: "VM8",
        title: "iomem=relaxed opens other devices' memory, and not the region",
        requires: &[Requirement::Driver, Requirement::DevMem, Requirement::IoStrictDevmem],
        cases: &[
            Case::InGuest(Profile::Plain, another_device_is_closed),
            Case::InGuest(Profile::Relaxed, relaxed_for_other_devices_only),
        ],
    },
];
