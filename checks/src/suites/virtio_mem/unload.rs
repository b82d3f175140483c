//! VM14 to VM17: what a driver leaves behind, and what the next one makes of it.
//!
//! The functions are those of Linux's drivers/virtio/virtio_mem.c.

use std::collections::BTreeSet;

use testvm::{
    MIB,
    guest::{Errno, Guest, GuestError},
    vm::{ADDED_MEMORY, Feature, Vm, VmError},
};

use crate::{
    framework::{Case, CaseResult, Finding, Profile, Recorder, Requirement, Scenario, after_load},
    suites::virtio_mem::{
        dev_mem::{DevMem, first_page, last_page},
        host_view::counters,
    },
};

/// VM14: `virtio_mem_deinit_hotplug()` cannot remove memory that is in use. It warns, and keeps the
/// claim: EPERM. The next driver finds the region taken: `virtio_mem_create_resource()`, EBUSY.
/// Control: a driver that has nothing left leaves no claim: OK.
pub fn unclean(vm: &Vm, _: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    after_load(move |vm, t| {
        let (guest, region) = (&vm.guest, vm.region());
        vm.resize(0)?;
        vm.unload_driver()?;
        t.when("unload with nothing plugged");
        t.control("claim", "none", claims(vm)?)?;
        t.control("mmap, first page", Finding::Done, mem.map(first_page(&region)))?;

        vm.request(256 * MIB)?;
        vm.load_driver()?;
        let log = guest.log_end()?;
        t.clear_state();
        t.check("unload with 256 MiB plugged", Finding::Done, vm.unload_driver())?;
        let warning = log_since(guest, log, "device still has system memory added")?;
        t.check("its warning of memory left behind", "logged", warning)?;
        t.check("its claim afterwards", "region with memory", claims(vm)?)?;
        let mmap = mem.map(last_page(&region));
        t.check("mmap, last page, afterwards", Errno::EPERM, mmap)?;
        t.check("next load", Finding::Done, vm.guest.load_module(testvm::vm::DRIVER, ""))?;
        let refusal = log_since(guest, log, "could not reserve device region")?;
        t.check("its complaint that the region is taken", "logged", refusal)
    })
}

/// VM15: shrunk to nothing, the driver keeps its claim: EPERM. Once it is unloaded the claim is
/// gone, and the region is as before: OK. The next driver closes it again: EPERM. (A mapping held
/// all the time stays torn down: VM11.) Control: VM14, and here the region open in between.
pub fn clean(vm: &Vm, _: &mut Recorder) -> CaseResult {
    let mem = DevMem::open(&vm.guest)?;
    after_load(move |vm, t| {
        let first = first_page(&vm.region());
        vm.resize(256 * MIB)?;
        t.when("256 MiB plugged");
        t.control("claim", "region with memory", claims(vm)?)?;
        vm.resize(0)?;
        t.when("shrunk to nothing");
        t.check("claim", "region", claims(vm)?)?;
        t.check("mmap, first page", Errno::EPERM, mem.map(first))?;
        vm.unload_driver()?;
        t.when("after unload");
        t.check("claim", "none", claims(vm)?)?;
        t.control("mmap, first page", Finding::Done, mem.map(first))?;
        t.control("pread, first page", Finding::Done, mem.read(first))?;
        vm.load_driver()?;
        t.when("loaded again");
        t.check("mmap, first page", Errno::EPERM, mem.map(first))
    })
}

/// VM16: a page of the kernel's own does not move, and with it a whole block stays plugged, so that
/// no unload is clean. In ZONE_MOVABLE there are none: all can be unplugged.
pub fn movable_memory(_: &Vm, _: &mut Recorder) -> CaseResult {
    after_load(move |vm, t| {
        vm.resize(256 * MIB)?;
        t.when("256 MiB plugged");
        t.check("zones of it", "Movable", zones(vm)?)?;
        vm.resize(0)?;
        let left = format!("{} MiB", vm.device()?.plugged / MIB);
        t.when("shrunk to nothing");
        t.check("still plugged", "0 MiB", left)
    })
}

/// VM16, control: where the policy is another one, nothing keeps the kernel's pages out.
pub fn kernel_memory(_: &Vm, _: &mut Recorder) -> CaseResult {
    after_load(|vm, t| t.control("256 MiB plugged: zones of it", "Normal", zones(vm)?))
}

/// VM17: less than a memory block, offline, is removed by `virtio_mem_deinit_hotplug()`, but not
/// unplugged. The next driver cannot know what is in it: `virtio_mem_send_unplug_all_request()`.
/// Control: with nothing plugged the driver does not send that request.
pub fn unplug_all(_: &Vm, _: &mut Recorder) -> CaseResult {
    after_load(move |vm, t| {
        vm.resize(0)?;
        let reload = |requested| -> Result<String, VmError> {
            vm.unload_driver()?;
            let before = counters(vm)?.requests;
            vm.request(requested)?;
            vm.start_driver()?;
            vm.wait_until(
                "the driver asks for something",
                || Ok(counters(vm)?.requests != before),
            )?;
            Ok(format!("{} UNPLUG_ALL", counters(vm)?.requests.unplug_all - before.unplug_all))
        };
        let requests = reload(64 * MIB)?;
        t.when("loaded with nothing plugged");
        t.control("the driver asks", "0 UNPLUG_ALL", requests)?;
        vm.wait_until_plugged(64 * MIB)?;
        let requests = reload(0)?;
        t.when("loaded with 64 MiB plugged");
        t.check("the driver asks", "1 UNPLUG_ALL", requests)?;
        vm.wait_until_plugged(0)
    })
}

/// What the driver has claimed of the region, as /proc/iomem shows it.
fn claims(vm: &Vm) -> Result<&'static str, GuestError> {
    let iomem = vm.guest.iomem()?;
    let region = vm.region();
    let is_whole = |range: &std::ops::RangeInclusive<u64>| {
        *range.start() == region.start && *range.end() == region.end - 1
    };
    let whole = iomem.at(last_page(&region)).iter().any(|claim| is_whole(&claim.range));
    Ok(match (whole, iomem.size_of(ADDED_MEMORY)) {
        (true, 0) => "region",
        (true, _) => "region with memory",
        (false, 0) => "none",
        (false, _) => "memory without region",
    })
}

/// Whether the kernel's log contains a text, from a record on.
fn log_since(guest: &Guest, from: u64, text: &str) -> Result<&'static str, GuestError> {
    let log = guest.kernel_log(from)?;
    let is_there = log.iter().any(|record| record.text.contains(text));
    Ok(if is_there { "logged" } else { "not logged" })
}

/// The zones of the memory blocks in the region, once all are online: Linux's Documentation/ABI/
/// testing/sysfs-devices-memory.
fn zones(vm: &Vm) -> Result<String, VmError> {
    const DIRECTORY: &str = "/sys/devices/system/memory";
    let guest = &vm.guest;
    let size = guest.read_text(&format!("{DIRECTORY}/block_size_bytes"))?;
    let size = u64::from_str_radix(size.trim(), 16)
        .map_err(|_| VmError::Absent("memory block size that can be read"))?;
    let region = vm.region();
    let names = guest.list_directory(DIRECTORY)?;
    let blocks: Vec<_> = names
        .iter()
        .filter(|name| {
            let number = name.strip_prefix("memory").and_then(|number| number.parse::<u64>().ok());
            number.is_some_and(|number| region.contains(&(number * size)))
        })
        .collect();
    let read = |block: &str, file: &str| guest.read_text(&format!("{DIRECTORY}/{block}/{file}"));
    vm.wait_until("the memory blocks of the region are online", || {
        let states: Result<Vec<_>, _> = blocks.iter().map(|block| read(block, "state")).collect();
        Ok(states?.iter().all(|state| state.trim() == "online"))
    })?;
    let zones: Result<BTreeSet<_>, _> = blocks
        .iter()
        .map(|block| Ok::<_, GuestError>(read(block, "valid_zones")?.trim().to_owned()))
        .collect();
    Ok(zones?.into_iter().collect::<Vec<_>>().join(", "))
}

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        id: "VM14",
        title: "a driver that leaves memory behind leaves the region closed",
        requires: &[Requirement::Driver, Requirement::DevMem],
        cases: &[Case::Last(Profile::Offline, unclean)],
    },
    Scenario {
        id: "VM15",
        title: "a driver that leaves nothing behind opens the region, and the next one closes it",
        requires: &[Requirement::Driver, Requirement::DevMem],
        cases: &[Case::InGuest(Profile::Movable, clean)],
    },
    Scenario {
        id: "VM16",
        title: "movable memory can be unplugged, so that the driver can be unloaded",
        requires: &[Requirement::Driver],
        cases: &[
            Case::InGuest(Profile::Movable, movable_memory),
            Case::InGuest(Profile::Relaxed, kernel_memory),
        ],
    },
    Scenario {
        id: "VM17",
        title: "a driver that finds memory plugged has all of it unplugged first",
        requires: &[Requirement::Driver, Requirement::Monitor(Feature::Counters)],
        cases: &[Case::InGuest(Profile::Offline, unplug_all)],
    },
];
