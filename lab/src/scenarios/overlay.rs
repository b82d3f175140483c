//! VM9 and VM10: another device's BAR over the region, which tells on x86 what closes it.
//!
//! `/dev/mem` asks `devmem_is_allowed()`, which refuses all that is SYSTEM_RAM. The files of PCI BARs
//! in sysfs and procfs ask `iomem_is_exclusive()` at once: what they refuse of the region they
//! refuse because it is EXCLUSIVE ("kernel/resource: disallow access to exclusive system RAM
//! regions", "virtio-mem: disallow mapping virtio-mem memory via /dev/mem", Linux 5.16).
//!
//! The guest moves a BAR there that is as large as the region: the driver's claim must fit into the
//! BAR's. `pci=nocrs` has the kernel accept it outside the windows of the host bridge.

use super::{
    Told, after_load,
    bars::{Bar, Way},
};
use crate::{
    guest::Denial,
    report::{Finding, Observations, Protection},
    vm::{Vm, VmError},
};

/// The ways that do not ask `devmem_is_allowed()`.
const WAYS: [Way; 2] = [Way::Sysfs, Way::Procfs];

/// VM9: EINVAL, relaxed too, for the policy of other devices does not concern RAM that is exclusive.
/// Control: before the driver comes, OK.
pub fn new_mappings(vm: &Vm, seen: &mut Observations) -> Told {
    let bar = over_region(vm)?;
    for way in WAYS {
        let tried = format!("before load: mmap of a BAR over the region by {}", way.name());
        seen.control(tried, Finding::Done, bar.map(way))?;
    }
    after_load(move |_, seen| {
        for way in WAYS {
            let tried = format!("mmap of a BAR over the region by {}", way.name());
            let (refusal, mapping) = (way.refusal(), bar.map(way));
            let by = [Protection::ExclusiveRegion];
            seen.check_with(&by, tried, refusal, Finding::Done, mapping)?;
        }
        Ok(())
    })
}

/// VM10: SIGBUS. Control: before the driver comes, OK.
pub fn held_mappings(vm: &Vm, seen: &mut Observations) -> Told {
    let bar = over_region(vm)?;
    let mut held = Vec::new();
    for way in WAYS {
        let mapping = bar.map(way)?;
        let tried = format!("before load: read of a BAR over the region by {}", way.name());
        seen.control(tried, Finding::Done, mapping.peek_u32(0))?;
        held.push((way, mapping));
    }
    after_load(move |_, seen| {
        for (way, mapping) in held {
            let by = way.torn_down_by();
            let name = way.name();
            let tried = format!("held across load: read of a BAR over the region by {name}");
            seen.check_with(by, tried, Denial::SIGBUS, Finding::Done, mapping.peek_u32(0))?;
            let tried = format!("held across load: write of a BAR over the region by {name}");
            let written = mapping.poke_u32(0, 0);
            seen.check_with(by, tried, Denial::SIGBUS, Finding::Done, written)?;
        }
        Ok(())
    })
}

/// The BAR, once it is where the region is.
fn over_region(vm: &Vm) -> Result<Bar, VmError> {
    let endpoint = vm.vmm().endpoints().overlay;
    let bar = Bar::of(vm, endpoint)?;
    let region = vm.region();
    if bar.range.start == region.start {
        return Ok(bar);
    }
    // Behind the kernel's back, which then finds it there.
    let register = 0x10 + 4 * endpoint.bar as u64;
    bar.function.write_config(register, &region.start.to_le_bytes())?;
    bar.function.remove()?;
    vm.guest.rescan_pci()?;
    let bar = Bar::of(vm, endpoint)?;
    bar.function.decode_memory()?;
    match bar.range.start == region.start && bar.range.end >= region.end {
        true => Ok(bar),
        false => {
            Err(VmError::Absent("BAR that stays over the region when the bus is scanned again"))
        }
    }
}
