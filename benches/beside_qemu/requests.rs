//! virtio-mem requests for memory that is never accessed, in a region of 1 GiB.
//!
//! A VMM is fast here with few steps from the guest's notification to the answer, and little work
//! per block. QEMU serves the device in the exit of the vCPU, since its virtio-mem-pci has no ioeventfd;
//! moat wakes a thread of its own, so that no vCPU works for a device. And moat makes unplugged blocks
//! inaccessible, which changes its mapping with each request.

use bare_metal::virtio_mem::{PLUG, UNPLUG};

use vmm::{MemoryDeviceConfig, Size};

use crate::{
    bare_metal_vm::BareMetalVm,
    monitor::{Guests, Monitor},
    report::{Figure, Report, Unit},
};

const REGION: u64 = 1 << 30;
const SMALL: u64 = 2 << 20;
const LARGE: u64 = 128 << 20;

const PLUG_SMALL: Figure = Figure::request("PLUG of 2 MiB", SMALL);
const UNPLUG_SMALL: Figure = Figure::request("UNPLUG of 2 MiB, never accessed", SMALL);
const BOTH_LARGE: Figure = Figure::request("PLUG or UNPLUG of 128 MiB, never accessed", LARGE);
const NOTHING: Figure = Figure::new("an empty batch, which is subtracted", Unit::Microseconds);

const MONITORS: [Monitor; 4] =
    [Monitor::MOAT, Monitor::MOAT_PCI, Monitor::MOAT_UNENFORCED, Monitor::QEMU_Q35];

/// Has the guests make the requests in turn.
pub fn section(guests: &Guests, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    let device = MemoryDeviceConfig { requested: Size(REGION), ..MemoryDeviceConfig::new(REGION) };
    let mut vms = Vec::new();
    for monitor in MONITORS {
        vms.push((monitor, BareMetalVm::start(guests, monitor, 1, device.clone())?));
    }
    for round in 0..=runs {
        eprintln!("round {round} of {runs}: requests");
        for (monitor, vm) in &mut vms {
            let block = vm.driver.block_size;
            let small = || 0..REGION / block;
            let plugged = vm.clock(&vm.requests(PLUG, small(), SMALL))?;
            let unplugged = vm.clock(&vm.requests(UNPLUG, small(), SMALL))?;
            // So few requests that one batch has all of them several times.
            let large = || (0..REGION / block).step_by((LARGE / block) as usize);
            let [plugs, unplugs] = [PLUG, UNPLUG].map(|kind| vm.requests(kind, large(), LARGE));
            let both = vm.clock(&[plugs, unplugs].concat().repeat(4))?;
            if round > 0 {
                report.add(PLUG_SMALL, *monitor, plugged);
                report.add(UNPLUG_SMALL, *monitor, unplugged);
                report.add(BOTH_LARGE, *monitor, both);
                report.add(NOTHING, *monitor, vm.clock_nothing());
            }
        }
    }
    Ok(())
}
