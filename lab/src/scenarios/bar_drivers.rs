//! P11 and P12: drivers that do not claim a BAR when they come.

use super::{
    PAGE, Told,
    bar_exclusion::check_claimed,
    bars::{Bar, Way},
    groups::load_vfio,
};
use crate::{
    guest::{Denial, GuestError, Observe as _, VfioDevice},
    report::{Finding, Observations},
    vm::Vm,
};

/// P11: uio_pci_generic leaves BARs to user space, and claims none: OK.
/// Control: virtio-pci does: SIGBUS.
pub fn driver_without_claim(vm: &Vm, seen: &mut Observations) -> Told {
    let bar = Bar::driven(vm)?;
    vm.guest.load_module("uio_pci_generic", "").outcome()?;
    let held = bar.ways()?.into_iter().map(|way| Ok((way, bar.map(way)?)));
    let held = held.collect::<Result<Vec<_>, GuestError>>()?;
    bar.function.bind("uio_pci_generic")?;
    for (way, mapping) in &held {
        let tried = format!("held across bind to uio_pci_generic, by {}: read", way.name());
        seen.check(tried, bar.identity(), bar.read(mapping))?;
        let tried = format!("bound to uio_pci_generic: mmap by {}", way.name());
        seen.check(tried, Finding::Done, bar.map(*way))?;
    }
    bar.release()?;
    bar.claim()?;
    // Kernels that tear down anything tear down this one.
    for (_, mapping) in held.iter().filter(|(way, _)| *way == Way::DevMem) {
        let tried = "held across bind to virtio-pci, by /dev/mem: read";
        seen.control(tried, Denial::SIGBUS, bar.read(mapping))?;
    }
    bar.release()?;
    Ok(None)
}

/// P12: vfio-pci claims a BAR when its user first maps it, and no sooner.
/// Control: before that, OK.
pub fn claim_on_use(vm: &Vm, seen: &mut Observations) -> Told {
    let bar = Bar::driven(vm)?;
    load_vfio(vm)?;
    let held = bar.ways()?.into_iter().map(|way| Ok((way, bar.map(way)?)));
    let held = held.collect::<Result<Vec<_>, GuestError>>()?;
    bar.function.bind("vfio-pci")?;
    let process = vm.guest.spawn()?;
    let device = VfioDevice::open(&process, &bar.function)?;
    for (way, mapping) in &held {
        let name = way.name();
        let tried = format!("open by VFIO, BAR unused, held by {name}: read");
        seen.control(tried, bar.identity(), bar.read(mapping))?;
        let tried = format!("open by VFIO, BAR unused: mmap by {name}");
        seen.control(tried, Finding::Done, bar.map(*way))?;
    }
    let used = device.map(bar.index(), PAGE)?;
    seen.check("mapped by VFIO: read", bar.identity(), bar.read(&used))?;
    for (way, mapping) in &held {
        let name = way.name();
        let tried = format!("mapped by VFIO, held by {name}: read");
        let (by, read) = (way.torn_down_by(), bar.read(mapping));
        check_claimed(seen, by, tried, Denial::SIGBUS, bar.identity(), read)?;
        let tried = format!("mapped by VFIO: mmap by {name}");
        let (by, mapping) = (way.refused_by(), bar.map(*way));
        check_claimed(seen, by, tried, way.refusal(), Finding::Done, mapping)?;
    }
    used.munmap()?;
    device.close()?;
    bar.release()?;
    Ok(None)
}
