//! What a virtio-mem request costs in a region of 1 TiB, compared with one of 1 GiB: the same number of
//! requests, of 2 MiB each and as far apart as they can be.
//!
//! Nothing that a VMM has to do for a request depends on the size of the region. But it may allocate its
//! own data for a piece of the region at first use, so the first PLUGs, those after UNPLUG_ALL, have a
//! figure of their own.

use bare_metal::virtio_mem::{Answer, PLUG, UNPLUG};

use vmm::{MemoryDeviceConfig, Size};

use crate::{
    bare_metal_vm::BareMetalVm,
    monitor::{Guests, Monitor},
    report::{Figure, Report},
};

const BYTES: u64 = 2 << 20;
const REQUESTS: u64 = 64;

/// What is measured in a region.
struct Figures {
    region: u64,
    first_plug: Figure,
    plug: Figure,
    unplug: Figure,
}

const SMALL: Figures = Figures {
    region: 1 << 30,
    first_plug: Figure::request("first PLUG of 2 MiB in 1 GiB", BYTES),
    plug: Figure::request("another PLUG in 1 GiB", BYTES),
    unplug: Figure::request("UNPLUG of 2 MiB in 1 GiB", BYTES),
};

const LARGE: Figures = Figures {
    region: 1 << 40,
    first_plug: Figure::request("first PLUG of 2 MiB in 1 TiB", BYTES).beside(&SMALL.first_plug),
    plug: Figure::request("another PLUG in 1 TiB", BYTES).beside(&SMALL.plug),
    unplug: Figure::request("UNPLUG of 2 MiB in 1 TiB", BYTES).beside(&SMALL.unplug),
};

const MONITORS: [Monitor; 3] = [Monitor::MOAT, Monitor::MOAT_UNENFORCED, Monitor::QEMU_Q35];

/// How often a run repeats itself.
const TIMES: u32 = 4;

/// Has the guests make the requests in turn.
pub fn section(guests: &Guests, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    let mut vms = Vec::new();
    for monitor in MONITORS {
        for figures in [SMALL, LARGE] {
            let requested = figures.region;
            let device = MemoryDeviceConfig {
                requested: Size(requested),
                ..MemoryDeviceConfig::new(requested)
            };
            let vm = BareMetalVm::start(guests, monitor, 1, device)?;
            vms.push((monitor, figures, vm));
        }
    }
    for round in 0..=runs {
        eprintln!("round {round} of {runs}: requests in a large region");
        for (monitor, figures, vm) in &mut vms {
            let apart = figures.region / vm.driver.block_size / REQUESTS;
            let firsts = || (0..REQUESTS).map(|n| n * apart);
            let plugs = vm.requests(PLUG, firsts(), BYTES);
            let unplugs = vm.requests(UNPLUG, firsts(), BYTES);
            let mut sums = [0.0; 3];
            for _ in 0..TIMES {
                assert_eq!(vm.driver.unplug_all(&mut vm.program), Answer::Ack);
                sums[0] += vm.clock(&plugs)?;
                sums[2] += vm.clock(&unplugs)? / 2.0;
                sums[1] += vm.clock(&plugs)?;
                sums[2] += vm.clock(&unplugs)? / 2.0;
            }
            if round > 0 {
                let all = [figures.first_plug, figures.plug, figures.unplug];
                for (figure, sum) in all.into_iter().zip(sums) {
                    report.add(figure, *monitor, sum / f64::from(TIMES));
                }
            }
        }
    }
    Ok(())
}
