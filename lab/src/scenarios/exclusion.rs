//! VM1 to VM8: what /dev/mem gives of the region, before the driver comes and afterwards.
//!
//! "virtio-mem: disallow mapping virtio-mem memory via /dev/mem" and "kernel/resource: disallow
//! access to exclusive system RAM regions", both of Linux 5.16. On x86 these checks alone do not
//! prove that work: `devmem_is_allowed()` refuses whatever is SYSTEM_RAM before it looks at
//! EXCLUSIVE, and the region's resource is both. They prove that the region is closed, not why.

use super::{
    MIB, Told, after_load,
    dev_mem::{DevMem, first_page, last_page, middle_page, page_above, page_below},
};
use crate::{
    guest::{Errno, Guest, GuestError, OpenFlags},
    report::{Finding, Observations},
    vm::{Vm, VmError},
};

/// VM1: nobody has claimed the region, so `devmem_is_allowed()` has nothing against it: OK.
/// Control: when the driver has come, EPERM.
pub fn mmap_before_load(vm: &Vm, seen: &mut Observations) -> Told {
    let mem = DevMem::open(&vm.guest)?;
    let region = vm.region();
    seen.check("before load: mmap, first page", Finding::Done, mem.map(first_page(&region)))?;
    seen.check("before load: mmap, middle page", Finding::Done, mem.map(middle_page(&region)))?;
    seen.check("before load: mmap, last page", Finding::Done, mem.map(last_page(&region)))?;
    after_load(move |_, seen| {
        Ok(seen.control("mmap, first page", Errno::EPERM, mem.map(first_page(&region)))?)
    })
}

/// VM2: `read_mem()` and `write_mem()` compare with `high_memory` first: EFAULT.
/// Control: once the driver has added memory there and given it back, and gone, OK.
pub fn read_and_write_before_load(vm: &Vm, seen: &mut Observations) -> Told {
    let mem = DevMem::open(&vm.guest)?;
    let first = first_page(&vm.region());
    seen.check("before load: pread, first page", Errno::EFAULT, mem.read(first))?;
    seen.check("before load: pwrite, first page", Errno::EFAULT, mem.write(first))?;
    after_load(move |vm, seen| {
        vm.resize(256 * MIB)?;
        vm.resize(0)?;
        vm.unload_driver()?;
        seen.control("after a clean unload: pread, first page", Finding::Done, mem.read(first))?;
        seen.control("after a clean unload: pwrite, first page", Finding::Done, mem.write(first))?;
        vm.load_driver()
    })
}

/// VM3: `mmap_mem()` asks `devmem_is_allowed()`: EPERM. Control: before load, OK.
pub fn mmap_of_plugged_memory(vm: &Vm, seen: &mut Observations) -> Told {
    let mem = DevMem::open(&vm.guest)?;
    let plugged = first_page(&vm.region());
    seen.control("before load: mmap, first page", Finding::Done, mem.map(plugged))?;
    after_load(move |_, seen| {
        seen.check("mmap, plugged page", Errno::EPERM, mem.map(plugged))?;
        Ok(seen.check("private mmap, plugged page", Errno::EPERM, mem.map_private(plugged))?)
    })
}

/// VM4: the driver claims the whole region, whatever is plugged: EPERM.
/// Control: the pages beside the region, OK.
pub fn mmap_of_the_rest_of_the_region(vm: &Vm, _: &mut Observations) -> Told {
    let mem = DevMem::open(&vm.guest)?;
    after_load(move |vm, seen| {
        let region = vm.region();
        let (below, above) = (page_below(&region), page_above(&region));
        seen.check("mmap, never plugged page", Errno::EPERM, mem.map(middle_page(&region)))?;
        seen.check("mmap, last page", Errno::EPERM, mem.map(last_page(&region)))?;
        seen.check("mmap across the region's start", Errno::EPERM, mem.map_pages(below, 2))?;
        seen.control("mmap, page below the region", Finding::Done, mem.map(below))?;
        Ok(seen.control("mmap, page above the region", Finding::Done, mem.map(above))?)
    })
}

/// VM5: 260 MiB end inside a memory block of 128 MiB, the rest of which is added, but unplugged and
/// offline to the page allocator (`virtio_mem_set_fake_offline()`): EPERM.
/// Control: before load, OK.
pub fn mmap_of_an_unplugged_subblock(vm: &Vm, seen: &mut Observations) -> Told {
    let mem = DevMem::open(&vm.guest)?;
    let start = vm.region().start;
    let unplugged = start + 300 * MIB;
    seen.control("before load: mmap, page at 300 MiB", Finding::Done, mem.map(unplugged))?;
    after_load(move |vm, seen| {
        vm.resize(260 * MIB)?;
        let plugged = || page_state(&vm.guest, start + 258 * MIB);
        // /proc/iomem has memory before its pages are there.
        vm.wait_until("the page at 258 MiB is online", || Ok(plugged()? == "added, online"))?;
        let state = page_state(&vm.guest, unplugged)?;
        seen.check("260 MiB plugged: page at 300 MiB", "added, offline", state)?;
        seen.control("260 MiB plugged: page at 258 MiB", "added, online", plugged()?)?;
        Ok(seen.check("mmap, page at 300 MiB", Errno::EPERM, mem.map(unplugged))?)
    })
}

/// What a guest's kernel says of a page in /proc/kpageflags: its Documentation/admin-guide/mm/
/// pagemap.rst.
fn page_state(guest: &Guest, address: u64) -> Result<&'static str, GuestError> {
    const NO_PAGE: u64 = 1 << 20;
    const OFFLINE: u64 = 1 << 23;
    let flags = guest.spawn()?.open("/proc/kpageflags", OpenFlags::RDONLY)?;
    let flags = flags.read_at(address / super::PAGE * 8, 8)?;
    let flags = flags.try_into().map_or(NO_PAGE, u64::from_le_bytes);
    Ok(match () {
        () if flags & NO_PAGE != 0 => "not added",
        () if flags & OFFLINE != 0 => "added, offline",
        () => "added, online",
    })
}

/// VM6: the driver claims the region before it plugs anything: EPERM. Control: before load, OK.
pub fn mmap_with_nothing_plugged(vm: &Vm, seen: &mut Observations) -> Told {
    let mem = DevMem::open(&vm.guest)?;
    let region = vm.region();
    seen.control("before load: mmap, first page", Finding::Done, mem.map(first_page(&region)))?;
    after_load(move |vm, seen| {
        vm.resize(0)?;
        let pages = [first_page(&region), middle_page(&region), last_page(&region)];
        for (name, page) in ["first", "middle", "last"].into_iter().zip(pages) {
            let tried = format!("nothing plugged: mmap, {name} page");
            seen.check(tried, Errno::EPERM, mem.map(page))?;
        }
        Ok(())
    })
}

/// VM7: adding memory has raised `high_memory` above plugged pages: EPERM. The rest of the region
/// is beyond it: EFAULT. Control: before load, EFAULT for what is EPERM afterwards.
pub fn read_and_write(vm: &Vm, seen: &mut Observations) -> Told {
    let mem = DevMem::open(&vm.guest)?;
    let region = vm.region();
    let (plugged, last) = (first_page(&region), last_page(&region));
    seen.control("before load: pread, first page", Errno::EFAULT, mem.read(plugged))?;
    seen.control("before load: pwrite, first page", Errno::EFAULT, mem.write(plugged))?;
    after_load(move |_, seen| {
        seen.check("pread, plugged page", Errno::EPERM, mem.read(plugged))?;
        seen.check("pwrite, plugged page", Errno::EPERM, mem.write(plugged))?;
        seen.check("pread, last page", Errno::EFAULT, mem.read(last))?;
        Ok(seen.check("pwrite, last page", Errno::EFAULT, mem.write(last))?)
    })
}

/// VM8, where nothing is relaxed: the registers of a device that a driver has claimed are closed.
/// `iomem_is_exclusive()` with IO_STRICT_DEVMEM: EPERM.
pub fn another_device_is_closed(vm: &Vm, _: &mut Observations) -> Told {
    let mem = DevMem::open(&vm.guest)?;
    after_load(move |vm, seen| {
        let registers = claimed_registers(&vm.guest)?;
        let tried = "mmap, registers of a claimed device";
        Ok(seen.control(tried, Errno::EPERM, mem.map(registers))?)
    })
}

/// VM8: VM3, VM4 and VM7 as ever. Control: the same registers, OK.
pub fn relaxed_for_other_devices_only(vm: &Vm, _: &mut Observations) -> Told {
    let mem = DevMem::open(&vm.guest)?;
    after_load(move |vm, seen| {
        let region = vm.region();
        let plugged = first_page(&region);
        seen.check("mmap, plugged page", Errno::EPERM, mem.map(plugged))?;
        seen.check("mmap, never plugged page", Errno::EPERM, mem.map(middle_page(&region)))?;
        seen.check("mmap, last page", Errno::EPERM, mem.map(last_page(&region)))?;
        let across = mem.map_pages(page_below(&region), 2);
        seen.check("mmap across the region's start", Errno::EPERM, across)?;
        seen.check("pread, plugged page", Errno::EPERM, mem.read(plugged))?;
        let registers = claimed_registers(&vm.guest)?;
        let tried = "mmap, registers of a claimed device";
        Ok(seen.control(tried, Finding::Done, mem.map(registers))?)
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
