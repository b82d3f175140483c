//! VM11 to VM13: what becomes of mappings of the region that are held when the driver comes.
//!
//! "/dev/mem: Revoke mappings when a driver claims the region" (Linux 5.8): `__request_region()`
//! calls `revoke_iomem()`, which tears down every mapping of the claimed range. Nothing can fault
//! it in again. All of it is compiled out without IO_STRICT_DEVMEM: that kernel is the control, to
//! be had with `--expect-without io-strict-devmem`.

use super::{
    MIB, PAGE, Told, after_load,
    dev_mem::{DevMem, first_page, last_page, page_below},
};
use crate::{
    guest::{Denial, Errno, GuestError, OpenFlags},
    report::{Finding, Observations, Observe, Protection},
    vm::Vm,
};

/// What a kernel does that was built with IO_STRICT_DEVMEM, and what one does that was not.
fn check_revoked(
    seen: &mut Observations,
    tried: impl Into<String>,
    expected: impl Into<Finding>,
    otherwise: impl Into<Finding>,
    observed: impl Observe,
) -> Result<(), GuestError> {
    seen.check_with(&[Protection::IoStrictDevmem], tried, expected, otherwise, observed)
}

/// VM11: SIGBUS for reads and writes, again and again, with iomem=relaxed too: what is SYSTEM_RAM
/// is not allowed in any case, and so `revoke_iomem()` does not leave out the region.
/// Controls: before load, OK; the page beside the region of the same mapping, OK.
pub fn held_mappings(vm: &Vm, seen: &mut Observations) -> Told {
    let mem = DevMem::open(&vm.guest)?;
    let region = vm.region();
    let first = mem.map(first_page(&region))?;
    let last = mem.map(last_page(&region))?;
    let across = mem.map_pages(page_below(&region), 2)?;
    seen.control("before load: read, held first page", Finding::Done, first.peek_u32(0))?;
    seen.control("before load: write, held last page", Finding::Done, last.poke_u32(0, 1))?;
    seen.control("before load: read, held page across", Finding::Done, across.peek_u32(PAGE))?;
    after_load(move |vm, seen| {
        let writes = |vm: &Vm| vm.witness().map(|witness| witness.violations.writes);
        let before = writes(vm);
        for again in ["", ", again"] {
            let tried = |what| format!("held across load: {what}{again}");
            let (sigbus, ok) = (Denial::SIGBUS, Finding::Done);
            check_revoked(seen, tried("read, first page"), sigbus, ok.clone(), first.peek_u32(0))?;
            check_revoked(
                seen,
                tried("write, last page"),
                sigbus,
                ok.clone(),
                last.poke_u32(0, 1),
            )?;
            let inside = across.peek_u32(PAGE);
            check_revoked(seen, tried("read, page across the start"), sigbus, ok, inside)?;
        }
        let written = before.zip(writes(vm)).map(|(before, after)| after - before);
        let expected = if seen.lacks(Protection::IoStrictDevmem) { 2 } else { 0 };
        let tried = "held across load: writes to unplugged memory that the host sees";
        seen.check_count(tried, expected, written)?;
        seen.control("held across load: read, page below", Finding::Done, across.peek_u32(0))?;
        Ok(seen.check("mmap anew, first page", Errno::EPERM, mem.map(first_page(&region)))?)
    })
}

/// VM11: still SIGBUS when the driver has gone and left the region open.
/// Control: a new mapping, OK.
pub fn held_mapping_after_unload(vm: &Vm, seen: &mut Observations) -> Told {
    let mem = DevMem::open(&vm.guest)?;
    let last = last_page(&vm.region());
    let held = mem.map(last)?;
    seen.control("before load: read, held last page", Finding::Done, held.peek_u32(0))?;
    after_load(move |vm, seen| {
        vm.resize(256 * MIB)?;
        vm.resize(0)?;
        vm.unload_driver()?;
        let again = held.peek_u32(0);
        let tried = "held, after a clean unload: read, last page";
        check_revoked(seen, tried, Denial::SIGBUS, Finding::Done, again)?;
        let new = mem.map(last)?;
        let tried = "mapped after a clean unload: read, last page";
        seen.control(tried, Finding::Done, new.peek_u32(0))?;
        new.munmap()?;
        vm.load_driver()
    })
}

/// VM12: a page of a private mapping that the process has written to is its own copy, in its own
/// memory, and `unmap_mapping_range()` is told to take copies along (`even_cows`): SIGBUS.
/// Control: before load, what was written.
pub fn copied_page(vm: &Vm, seen: &mut Observations) -> Told {
    const MARK: u8 = 0xaa;
    let mem = DevMem::open(&vm.guest)?;
    let copy = mem.map_private(first_page(&vm.region()))?.in_process();
    copy.poke_u8(0, MARK)?;
    seen.control("before load: read, copied page", MARK, copy.peek_u8(0))?;
    after_load(move |_, seen| {
        let held = copy.peek_u8(0);
        Ok(check_revoked(seen, "held across load: read, copied page", Denial::SIGBUS, MARK, held)?)
    })
}

/// VM13: read(2) into the mapping cannot store what it read: EFAULT. /proc/self/mem finds no page
/// for `generic_access_phys()`: EIO. Control: before load, both work.
pub fn access_by_the_kernel(vm: &Vm, seen: &mut Observations) -> Told {
    let mem = DevMem::open(&vm.guest)?;
    // Unplugged: where the mapping survives, nobody's memory is written to.
    let held = mem.map(last_page(&vm.region()))?;
    let file = mem.process.open("/init", OpenFlags::RDONLY)?;
    let own_memory = mem.process.open("/proc/self/mem", OpenFlags::RDONLY)?;
    let read = |file: &_| held.read_from(file, 0, 0, 4);
    seen.control("before load: read(2) into held page", 4_u64, read(&file))?;
    let seen_by_kernel = own_memory.read_at(held.address(), 4);
    seen.control("before load: /proc/self/mem, held page", Finding::Done, seen_by_kernel)?;
    after_load(move |_, seen| {
        let stored = held.read_from(&file, 0, 0, 4);
        let tried = "held across load: read(2) into last page";
        check_revoked(seen, tried, Errno::EFAULT, 4_u64, stored)?;
        let seen_by_kernel = own_memory.read_at(held.address(), 4);
        let tried = "held across load: /proc/self/mem, last page";
        Ok(check_revoked(seen, tried, Errno::EIO, Finding::Done, seen_by_kernel)?)
    })
}
